"""How well the two symptoms through time, read off one step, predict what training costs a recurrent net.

As `benchmarks/calibrate.py`: a net and its cured twin are trained, each at the best of two learning rates, until the
smoothed loss is below 0.3 of what guessing costs; the ratio of the steps is the truth. Twins of an RNN: one with tanh
and orthogonal weights, one with ReLU that starts as the identity, the faster one counts; of an LSTM: one whose forget
gates start open. A net that does not get there in 20 times its twin's steps (at most 500) was given up. Three
kinds of task: a symbol that was shown so many steps before the end (`recall`), at every step the symbol of so many
steps before (`echo`), and the sum of two marked numbers (`adding`). Prints a line for each net and a table of hits and
false alarms.

    python benchmarks/calibrate_time.py [--seed 1] [--only TEXT] [--out FILE.jsonl] [--again FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from calibrate import table, truth
from torch import nn

from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.lab import data
from gradwell.lab.tasks import batches, optimizer, setup
from gradwell.lab.train import SMOOTHING
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.symptoms import exploding_through_time, vanishing_through_time

RATES = {"SGD": (0.1, 0.01), "Adam": (1e-2, 3e-3)}
MAX_STEPS = 500
Net = NetConfig


class Trial(NamedTuple):
    """A net on a task; `clip` bounds the norm of the gradient (0: not at all)."""

    symptom: str
    label: str
    net: NetConfig
    clip: float = 0.0


def trials() -> Iterator[Trial]:
    kinds = {"RNN": {"kind": "rnn", "activation": "tanh"}, "LSTM": {"kind": "lstm"}}
    tasks = [_recall(40, 3), _echo(30, 3), _recall(8, 7), _recall(40, 8), _recall(12, 11), _echo(30, 12)]
    for task in (*tasks, _recall(20, 19), _recall(40, 39), _adding(10), _adding(30)):
        for name, kind in kinds.items():
            yield Trial("vanishing_through_time", f"{name}, {task}", _net(task, **kind), 1.0)
    for task in (_recall(30, 4), _recall(60, 4), _echo(30, 3)):
        for clip in (0.0, 1.0):
            how = ", clipped" if clip else ""
            for gain in (1.0, 3.0, 4.0, 6.0):
                net = _net(task, kind="rnn", activation="tanh", gain=gain)
                yield Trial("exploding_through_time", f"tanh x {gain:g}{how}, {task}", net, clip)
            net = _net(task, kind="rnn", activation="relu", init="orthogonal", gain=2.0)
            yield Trial("exploding_through_time", f"ReLU x 2{how}, {task}", net, clip)


def twins(net: NetConfig) -> list[NetConfig]:
    """The same kind of net, cured."""
    if net.kind != "rnn":
        return [with_(net, bias_value=OPEN)]
    return [with_(net, activation="tanh", init="orthogonal"), with_(net, activation="relu", init="identity")]


OPEN = 99.0
"""Stands for forget gates that start open, which a `NetConfig` cannot say."""


def _recall(steps: int, lag: int) -> str:
    return _known(f"recall {lag} of {steps}", data.recall(steps, lag))


def _echo(steps: int, lag: int) -> str:
    return _known(f"echo {lag} of {steps}", data.echo(steps, lag))


def _adding(steps: int) -> str:
    return _known(f"adding {steps}", data.adding(steps))


def _known(name: str, task: data.Task) -> str:
    data.TASKS[name] = task
    return name


def _net(task: str, **settings: Any) -> NetConfig:
    loss = "mse" if task.startswith("adding") else "cross_entropy"
    return Net(depth=1, width=32, batch_size=32, task=task, loss=loss, **settings)


def with_(config: NetConfig, **changes: Any) -> NetConfig:
    return msgspec.structs.replace(config, **changes)


def ready(config: NetConfig) -> tuple[nn.Module, Any, Any, torch.optim.Optimizer]:
    """`setup`, the open gates included."""
    model, batch, loss, stepper = setup(with_(config, bias_value=None) if config.bias_value == OPEN else config)
    if config.bias_value == OPEN:
        units = config.width
        model.get_parameter("cell.bias_ih_l0").data[units : 2 * units] = math.log(data.task(config).rows)
    return model, batch, loss, stepper


@cache
def cost(config: NetConfig, clip: float, limit: int) -> int | None:
    """Steps to the target at the best rate."""
    best: int | None = None
    for rate in RATES[config.optimizer]:
        best = _steps(config, rate, clip, limit if best is None else best - 1) or best
    return best


@cache
def twins_cost(config: NetConfig) -> int | None:
    """Steps of the fastest twin."""
    best: int | None = None
    for twin in twins(config):
        best = cost(twin, 1.0, MAX_STEPS if best is None else best - 1) or best
    return best


def _steps(config: NetConfig, rate: float, clip: float, limit: int) -> int | None:
    model, _, loss, _ = ready(config)
    stepper = optimizer(config, model, lr=rate)
    target = 0.3 * (1 / 6 if config.loss == "mse" else math.log(4))
    mean = 0.0
    for step, batch in enumerate(islice(batches(config), limit), start=1):
        stepper.zero_grad()
        value = loss(model, batch)
        torch.autograd.backward(value)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        stepper.step()
        if not math.isfinite(value.item()):
            return None
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value.item()
        if mean / (1 - SMOOTHING**step) < target:
            return step
    return None


def row(trial: Trial, kind: str, seed: int) -> dict[str, Any]:
    """The truth and the prediction for one net."""
    net = with_(trial.net, optimizer=kind, lr=RATES[kind][0], seed=seed)
    run = measure(*setup(net))
    best = twins_cost(with_(net, activation="tanh", init="torch_default", gain=1.0))
    limit = MAX_STEPS if best is None else min(MAX_STEPS, 20 * best)
    steps = cost(net, trial.clip, limit)
    ratio = None if best is None else (steps or limit) / best
    return {
        "symptom": trial.symptom, "label": trial.label, "optimizer": kind, "seed": seed, "sick": steps, "cured": best,
        "ratio": ratio, "truth": truth(ratio), "run": run,
    }  # fmt: skip


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what the symptoms say now."""
    run = record["run"]
    own = [f.severity for f in diagnose(run).findings if f.symptom == record["symptom"]]
    numbers = {
        "D": vanishing_through_time.missing(run, run.steps[0]),
        "E": exploding_through_time.grown(run, run.steps[0]),
    }
    return {**record, "said": own[0] if own else "healthy", **numbers}


def line(r: dict[str, Any]) -> str:
    """One row of the table of all nets."""
    ratio = "?" if r["ratio"] is None else f"{'' if r['sick'] else '>'}{r['ratio']:.1f}"
    letter = "D" if r["symptom"].startswith("vanishing") else "E"
    size = "" if r[letter] is None else f"{letter} {r[letter]:.2f}"
    return f"| {r['label']} | {r['optimizer']} | {ratio} | {r['truth']} | {r['said']} | {size} |"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the thresholds were chosen on seed 0")
    parser.add_argument("--only", default="", help="part of a symptom's or a net's name")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, help="judge the records of an earlier run with the thresholds of now")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    print("| net | optimizer | times slower | truth | said | measured |\n|---|---|---|---|---|---|")
    records = []
    for record in _reread(options.again) if options.again else _train(options.seed, options.only):
        records.append(judge(record))
        print(line(records[-1]), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({**record, "run": msgspec.to_builtins(record["run"])}) + "\n")
    print("\n| symptom | optimizer | class | hits | false alarms |\n|---|---|---|---|---|")
    for symptom in dict.fromkeys(r["symptom"] for r in records):
        print("\n".join(table(records, symptom, "said")))
    print(f"\n{len(records)} nets, {time.perf_counter() - started:.0f} s")


def _train(seed: int, only: str) -> Iterator[dict[str, Any]]:
    for trial in trials():
        for kind in RATES:
            if only in f"{trial.symptom} {trial.label}":
                yield row(trial, kind, seed)


def _reread(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text().splitlines():
        record = json.loads(text)
        yield {**record, "run": msgspec.convert(record["run"], Run)}


if __name__ == "__main__":
    main(sys.argv[1:])
