"""How well the severities that are read off one step predict what training costs.

For each family a sick net and its cured twin are trained, each at the best of several learning rates, until the
smoothed loss reaches the target; the ratio of their steps is the truth: 1.5 mild, 5 serious, 20 fatal. A net that does
not get there in 20 times the twin's steps (at most 800) counts with the ratio at which it was given up. The same sick
net's first step is diagnosed as `gradwell check` does. Prints a line for each net and a table: hits and false alarms.

    python benchmarks/calibrate.py [--first-seed 1] [--seeds 1] [--only SYMPTOM] [--out FILE.jsonl] [--again FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.lab.tasks import batches, optimizer, setup
from gradwell.lab.train import SMOOTHING, steps_to
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.records.verdict import RANK
from gradwell.symptoms import (
    dead_units,
    exploding_gradient,
    rank_collapse,
    saturated_output,
    saturated_units,
    vanishing_gradient,
)
from gradwell.symptoms._words import adaptive

BOUNDS = {"mild": 1.5, "serious": 5.0, "fatal": 20.0}
OPTIMIZERS = {"SGD": 0.05, "Adam": 1e-3}
GRID = (1.0, 0.3, 3.0, 0.1, 10.0, 0.03)
MAX_STEPS = 800
Net = NetConfig


class Pair(NamedTuple):
    """A sick net, its cured twin, and the symptom that should tell them apart."""

    symptom: str
    label: str
    sick: NetConfig
    cured: NetConfig
    target: float = 0.5
    lr_scale: float = 1.0
    push: float = 0.0


def families() -> Iterator[Pair]:
    yield from vanishing()
    yield from exploding()
    yield from units()
    yield from collapsing()
    yield from shut_outputs()


def vanishing() -> Iterator[Pair]:
    """Default initialisation against a fitting one (THEORY 2.3)."""
    for depth in (1, 2, 3, 4, 6, 8, 12, 24):
        yield Pair("vanishing_gradient", f"ReLU {depth}, default", Net(depth=depth), Net(depth=depth, init="he"))
    for depth in (4, 8, 12):
        gelu = Net(depth=depth, activation="gelu")
        yield Pair("vanishing_gradient", f"GELU {depth}, default", gelu, with_(gelu, init="he"))
    for depth in (5, 10, 20):
        tanh = Net(depth=depth, activation="tanh")
        yield Pair("vanishing_gradient", f"tanh {depth}, default", tanh, with_(tanh, init="lecun"))
    for depth in (1, 2, 3, 5):
        sigmoid = Net(depth=depth, activation="sigmoid")
        yield Pair("vanishing_gradient", f"sigmoid {depth}, default", sigmoid, with_(sigmoid, init="centred_sigmoid"))
    cnn = Net(kind="cnn", width=8, batch_size=64)
    yield Pair("vanishing_gradient", "CNN 4, default", with_(cnn, depth=4), with_(cnn, depth=4, init="he"))


def exploding() -> Iterator[Pair]:
    """Too large weights, batch norm without shortcuts, residual sums without a scale."""
    for depth, gains in ((4, (1.5, 3.0)), (8, (1.25, 1.5, 2.0, 3.0)), (12, (1.5, 2.0, 3.0))):
        he = Net(depth=depth, init="he")
        for gain in gains:
            yield Pair("exploding_gradient", f"ReLU {depth}, He x {gain:g}", with_(he, gain=gain), he)
    for depth in (4, 12, 20, 30):
        twin = Net(kind="residual", depth=depth // 2, norm="layer")
        yield Pair("exploding_gradient", f"batch norm ReLU {depth}", Net(depth=depth, init="he", norm="batch"), twin)
    lecun = Net(depth=20, activation="tanh", init="lecun")
    for gain in (1.5, 2.0, 3.0):
        yield Pair("exploding_gradient", f"tanh 20, LeCun x {gain:g}", with_(lecun, gain=gain), lecun)
    for depth in (6, 12, 24):
        sum_ = Net(kind="residual", depth=depth, init="he")
        yield Pair("exploding_gradient", f"residual {depth}, no scale", sum_, with_(sum_, shortcut=depth**-0.5))


def units() -> Iterator[Pair]:
    """Dead and saturated hidden units."""
    for shift in (-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -1.0):
        he = Net(depth=3, init="he")
        yield Pair("dead_units", f"ReLU 3, biases {shift:g}", with_(he, bias_value=shift), he)
    for depth in (4, 12):
        twin = Net(kind="residual", depth=depth // 2, norm="layer")
        yield Pair("dead_units", f"ReLU {depth}, He", Net(depth=depth, init="he"), twin)
    for scale in (3.0, 10.0, 30.0, 100.0, 300.0):
        tanh = Net(depth=3, activation="tanh", init="lecun")
        yield Pair("saturated_units", f"tanh 3, input x {scale:g}", with_(tanh, input_scale=scale), tanh)
    for gain in (2.0, 4.0, 8.0):
        tanh = Net(depth=3, activation="tanh", init="lecun")
        yield Pair("saturated_units", f"tanh 3, LeCun x {gain:g}", with_(tanh, gain=gain), tanh)


def collapsing() -> Iterator[Pair]:
    """Inputs that are all alike."""
    for shift in (0.5, 1.0, 2.0, 3.0, 10.0, 100.0):
        he = Net(depth=3, init="he")
        yield Pair("rank_collapse", f"ReLU 3, input + {shift:g}", with_(he, input_shift=shift), he)


def shut_outputs() -> Iterator[Pair]:
    """A sigmoid under a squared error, all outputs pushed to 1 by the head's bias; SGD needs large rates here."""
    net = Net(depth=1, init="he", output_activation="sigmoid", loss="mse")
    for bias in (3.0, 5.0, 6.0, 8.0, 12.0, 16.0):
        yield Pair("saturated_output", f"sigmoid, head bias {bias:g}", net, net, 0.05, 20.0, bias)


def with_(config: NetConfig, **changes: Any) -> NetConfig:
    return msgspec.structs.replace(config, **changes)


_COST: dict[tuple[str, float, float], float | None] = {}


def cost(config: NetConfig, target: float, limit: int, push: float = 0.0) -> float | None:
    """Steps to the target at the best rate; the same net is trained once. `push` is added to the head's bias."""
    key = (str(config), target, push)
    if key not in _COST:
        _COST[key] = (
            pushed(config, target, limit, push)
            if push
            else steps_to(config, target_loss=target, max_steps=limit, lr_grid=GRID)
        )
    return _COST[key]


def pushed(config: NetConfig, target: float, limit: int, push: float) -> float | None:
    """`steps_to` of a net whose outputs are pushed to one side."""
    best: int | None = None
    for factor in GRID:
        model, _, loss, _ = setup(config)
        add(model, push)
        stepper = optimizer(config, model, lr=factor * config.lr)
        mean = 0.0
        for step, batch in enumerate(islice(batches(config), limit if best is None else best - 1), start=1):
            stepper.zero_grad()
            value = loss(model, batch)
            value.backward()
            stepper.step()
            mean = SMOOTHING * mean + (1 - SMOOTHING) * value.item()
            if mean / (1 - SMOOTHING**step) < target:
                best = step
                break
    return best


def add(model: torch.nn.Module, push: float) -> None:
    with torch.no_grad():
        model.get_submodule("head").get_parameter("bias").add_(push)


def row(pair: Pair, kind: str, seed: int) -> dict[str, Any]:
    """The truth and the prediction for one sick net."""
    rate = OPTIMIZERS[kind] * (pair.lr_scale if kind == "SGD" else 1.0)
    sick, cured = (with_(c, optimizer=kind, lr=rate, seed=seed) for c in (pair.sick, pair.cured))
    model, batch, loss, stepper = setup(sick)
    add(model, pair.push)
    run = measure(model, batch, loss, stepper)
    best = cost(cured, pair.target, MAX_STEPS)
    limit = MAX_STEPS if best is None else min(MAX_STEPS, math.ceil(BOUNDS["fatal"] * best))
    steps = cost(sick, pair.target, limit, pair.push)
    ratio = None if best is None else (steps or limit) / best  # not reached: at least this
    return {
        "symptom": pair.symptom, "label": pair.label, "optimizer": kind, "seed": seed, "sick": steps,
        "cured": best, "limit": limit, "ratio": ratio, "truth": truth(ratio), **numbers(run), "run": run,
    }  # fmt: skip


def truth(ratio: float | None) -> str | None:
    """The class that a ratio of steps means; None where the twin does not learn either."""
    if ratio is None:
        return None
    reached = [name for name, bound in BOUNDS.items() if ratio >= bound]
    return reached[-1] if reached else "healthy"


def numbers(run: Run) -> dict[str, float | None]:
    """What the detectors look at."""
    step = run.steps[0]
    found = {
        "D": vanishing_gradient.lost(run, step),
        "E": exploding_gradient.grown(run, step, scale=exploding_gradient.ADAPTIVE_SCALE if adaptive(run) else 1.0),
        "C": rank_collapse.collapsed(run, step),
        "dead": dead_units.worst(run, step)[1],
        "U": saturated_units.shut(run, step),
        "C0": rank_collapse.given(run, step),
        "S": saturated_output.shut(run, step, 0.8, 1.8),
    }
    return {name: None if value is None or math.isnan(value) else value for name, value in found.items()}


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what the detectors say now: of its own symptom, and over all."""
    found = diagnose(record["run"])
    own = [f.severity for f in found.findings if f.symptom == record["symptom"]]
    return {**record, "said": own[0] if own else "healthy", "verdict": found.verdict}


def table(records: Sequence[dict[str, Any]], symptom: str, column: str) -> list[str]:
    """Hits and false alarms of each class, as lines of a Markdown table.

    A net that was given up below a class's ratio counts neither way: how bad it is is not known.
    """
    lines = []
    for kind in OPTIMIZERS:
        mine = [r for r in records if r["symptom"] == symptom and r["optimizer"] == kind and r["truth"]]
        for name in BOUNDS:
            sick = [r for r in mine if RANK[r["truth"]] >= RANK[name]]
            well = [r for r in mine if RANK[r["truth"]] < RANK[name] and r["sick"] is not None]
            hits = sum(RANK[r[column]] >= RANK[name] for r in sick)
            false = sum(RANK[r[column]] >= RANK[name] for r in well)
            lines.append(f"| {symptom} | {kind} | {name} | {hits} of {len(sick)} | {false} of {len(well)} |")
    return lines


def line(r: dict[str, Any]) -> str:
    numbers = " ".join(f"{k} {r[k]:5.2f}" for k in ("D", "E", "C", "C0", "dead", "U", "S") if r[k] is not None)
    ratio = "?" if r["ratio"] is None else f"{'' if r['sick'] else '>'}{r['ratio']:.1f}"
    return (
        f"{r['symptom'][:10]:10} {r['label']:24} {r['optimizer']:4} {ratio:>6} {r['truth']!s:8} {r['said']:8} {numbers}"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1, help="the thresholds were chosen on seed 0")
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, help="judge the records of an earlier run with the thresholds of now")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    records = list(_reread(options.again)) if options.again else []
    if not options.again:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for pair in families():
                for kind in OPTIMIZERS:
                    if options.only in pair.symptom:
                        records.append(judge(row(pair, kind, seed)))
                        print(line(records[-1]), flush=True)
    else:
        print("\n".join(map(line, records)))
    if options.out:
        options.out.write_text("\n".join(json.dumps({**r, "run": msgspec.to_builtins(r["run"])}) for r in records))
    print("\n| symptom | optimizer | class | hits | false alarms |\n|---|---|---|---|---|")
    for symptom in dict.fromkeys(r["symptom"] for r in records):
        print("\n".join(table(records, symptom, "said")))
    print(f"\n{len(records)} nets, {time.perf_counter() - started:.0f} s")


def _reread(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text().splitlines():
        record = json.loads(text)
        yield judge({**record, "run": msgspec.convert(record["run"], Run)})


if __name__ == "__main__":
    main(sys.argv[1:])
