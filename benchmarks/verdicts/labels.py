"""The truth about each run: what training says, and what a float64 backward pass says; nothing here knows gradwell.

A sick network is trained at 0.3, 1 and 3 times its rate until its smoothed loss reaches the family's target, and so is
its healthy twin; the ratio of the two best numbers of steps is how bad the fault is (1.5 mild, 5 serious, 20 fatal). A
net that has come less than a tenth of the way from chance to the target in twice the twin's steps is fatal too. Others
are given up after 20 times the twin's steps, or after `MOST`, with the ratio reached. Faults of the rate, and those
that come at a step, are trained at their own rate. A training without a fault is healthy when it reaches the target
within its own steps. No run is healthy that ends near chance as it was watched, at its own rate: it has no label. The
float64 pass measures, with hooks of its own, which symptoms are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.verdicts.cases import CASES, Case, mark
from benchmarks.verdicts.families import Bench
from benchmarks.verdicts.training import SMOOTHING, built, train
from torch import Tensor, nn

FILE = Path(__file__).with_name("labels.json")
GRID = (1.0, 3.0, 0.3)
MOST = 300
AGAIN = 2
"""A net that is near chance after so many times its twin's steps is given up."""
BOUNDS = {"mild": 1.5, "serious": 5.0, "fatal": 20.0}
RANK = {"healthy": 0, "mild": 1, "serious": 2, "fatal": 3}
UNKNOWN = {"class": None, "steps": None, "twin": None, "ratio": None}
"""No label: the training without the fault does not reach the target."""
NEARLY = 0.8
"""Kinds of layers that did so much of what the strongest did are both right as the first cause."""
SETTLED = 10
"""Steps after an event before its recovery is looked for."""


def label(case: Case, seed: int) -> dict[str, Any]:
    """The class of one run, how it was found, and what the float64 pass measured."""
    found = {"mark": mark(case), **outcome(case, seed), "measured": measure(case, seed)}
    return found | {"ending": ending(case, seed)} if case.fault else found


# ------------------------------------------------------------------ by training


def outcome(case: Case, seed: int) -> dict[str, Any]:
    if not case.fault:
        own = train(case, seed, until_target=True).reached
        well = {"class": "healthy", "steps": own, "twin": own, "ratio": 1.0}
        return well if own is not None else UNKNOWN
    best = best_steps(twin_of(case), seed)
    if best is None:
        return UNKNOWN
    limit = min(MOST, math.ceil(BOUNDS["fatal"] * best))
    if case.at:
        steps, stuck = recovery(case, seed, limit)
    else:
        rates = (1.0,) if case.fault == "rate" else GRID
        steps, stuck = first_of(case, seed, rates, limit, doubt=AGAIN * best)
    ratio = (steps or limit) / best
    reached = [name for name, bound in BOUNDS.items() if ratio >= bound]
    found = "fatal" if steps is None and stuck else reached[-1] if reached else "healthy"
    return {"class": found, "steps": steps, "twin": best, "ratio": round(ratio, 2)}


def twin_of(case: Case) -> Case:
    """The same training without the fault."""
    knobs = {**case.knobs, **case.cured}
    family = knobs.pop("family", case.family)
    rate = CASES[f"{case.family} {case.optimizer}"].lr if case.fault == "rate" else case.lr
    return case._replace(id="", family=family, knobs=knobs, lr=rate, fault="", cured={}, at=0)


@cache
def _best(twin: str, seed: int) -> int | None:
    fields = json.loads(twin)
    return first_of(Case(**fields), seed, GRID, MOST)[0]


def best_steps(case: Case, seed: int) -> int | None:
    """Steps to the target at the best of the rates; the same twin is trained once."""
    return _best(json.dumps({**case._asdict(), "names": (), "causes": (), "steps": 0}, sort_keys=True), seed)


def first_of(
    case: Case, seed: int, rates: Iterable[float], limit: int, *, doubt: int | None = None
) -> tuple[int | None, bool]:
    """The fewest steps to the target over some rates, and whether all of them ended near chance.

    What is near chance after `doubt` steps is given up.
    """
    best: int | None = None
    stuck = True

    def hopeless(step: int, smooth: float) -> bool:
        return doubt is not None and step == doubt and at_chance(case, smooth)

    for times in rates:
        most = limit if best is None else best - 1
        run = train(case, seed, times=times, steps=most, until_target=True, hopeless=hopeless)
        best = run.reached or best
        stuck = stuck and at_chance(case, run.last)
        if best == 1:
            break
    return best, stuck and best is None


@cache
def _goal(family: str, knobs: str) -> tuple[float, float]:
    bench = built(Case("", family, "sgd", 0.0, 0, json.loads(knobs)), 0)
    return bench.target, bench.chance


def at_chance(case: Case, value: float) -> bool:
    """Whether a smoothed loss is not finite or has come less than a tenth of the way from chance to the target."""
    target, chance = _goal(case.family, json.dumps(case.knobs))
    return not value < chance - 0.1 * (chance - target)


def ended_at_chance(case: Case, values: Iterable[float]) -> bool:
    """Whether a run with these losses, smoothed, ended near chance."""
    mean, count = 0.0, 0
    for value in values:
        mean, count = SMOOTHING * mean + (1 - SMOOTHING) * value, count + 1
    return count > 0 and at_chance(case, mean / (1 - SMOOTHING**count))


def recovery(case: Case, seed: int, limit: int) -> tuple[int | None, bool]:
    """Steps from the event on until the loss, smoothed anew, is at the target; and whether it ended near chance."""
    run = train(case, seed, steps=case.at + SETTLED + limit)
    target, _ = _goal(case.family, json.dumps(case.knobs))
    mean = 0.0
    values = run.values[case.at + SETTLED :]
    for step, value in enumerate(values, start=1):
        mean = 0.9 * mean + 0.1 * value
        if step >= SETTLED and mean / (1 - 0.9**step) < target:
            return step, False
    return None, at_chance(case, run.last)


# ------------------------------------------------------------------ by a float64 backward pass

WEIGHTS = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
ACTIVE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU)
NONE_LEFT = -99.0
CHAINS = ("mlp", "cnn", "autoencoder")
"""Families in which the leaves' gains multiply to the whole."""


def measure(case: Case, seed: int) -> dict[str, Any]:
    """What one backward pass in float64 shows, with plain hooks.

    `gain`: log10 of the gradient at the first over that at the last weight layer's output, -99 where the first is
    exactly zero. `activation`, `weight`, `norm`: their parts of it, on chains. `time`: log10 of the gradient at the
    first over that at the last input step. `dead`: the largest share of a ReLU layer's units that are 0 for the whole
    batch. `twins`: the smallest share of equal rows in a hidden weight. `unreached`: share of the elements without a
    gradient. `bad`: some gradient is not finite. `input`: mean and RMS of the input.
    """
    return measured(case, built(case, seed), seed)


def ending(case: Case, seed: int) -> dict[str, Any]:
    """The same after the training of a sick case, and whether its loss ended at NaN (`lost`) or far above its start."""
    trained = train(case, seed)
    tail = [loss for loss in trained.losses[-10:] if math.isfinite(loss)]
    found: dict[str, Any] = {"lost": not tail, "risen": bool(tail) and min(tail) > 2 * abs(trained.losses[0])}
    return found if not tail else found | measured(case, trained.bench, seed)


def measured(case: Case, bench: Bench, seed: int) -> dict[str, Any]:
    bench.model.double()
    bench.model.zero_grad()
    x, y = next(bench.batches)
    x, y = x.double(), y.double() if y.is_floating_point() else y
    x.requires_grad_()
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        for tensor in (inputs[0], out):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        calls.append((module, inputs[0], out))

    handles = [m.register_forward_hook(seen) for m in bench.model.modules() if not list(m.children())]
    torch.manual_seed(seed)
    loss = bench.turns[-1].loss((x, y))
    loss.backward()
    for handle in handles:
        handle.remove()
    moments = (x.detach().mean(), x.detach().square().mean().sqrt())
    found: dict[str, Any] = {"input": [round(float(moment), 4) for moment in moments]}
    found |= gains(case, calls)
    found |= units(bench, calls)
    if x.grad is not None and case.family in ("rnn", "lstm", "gru"):
        found["time"] = decades(norm(x.grad[:, 0]), norm(x.grad[:, -1]))
    return found


def norm(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.detach().norm())


def decades(above: float, below: float) -> float | None:
    """log10 of a ratio; None where one of the two is 0 or not finite."""
    sound = above > 0 and below > 0 and math.isfinite(above) and math.isfinite(below)
    return round(math.log10(above / below), 3) if sound else None


def gains(case: Case, calls: list[tuple[nn.Module, Tensor, Tensor]]) -> dict[str, Any]:
    weights = (*WEIGHTS, nn.RNNBase)
    layers = [n for n, (module, _, out) in enumerate(calls) if isinstance(module, weights) and out.grad is not None]
    if len(layers) < 2:
        return {}
    first, last = layers[0], layers[-1]
    above, below = norm(calls[first][2].grad), norm(calls[last][2].grad)
    found: dict[str, Any] = {"gain": NONE_LEFT if above == 0 < below else decades(above, below)}
    if case.family in CHAINS:
        for name, kinds in (("activation", ACTIVE), ("weight", WEIGHTS), ("norm", NORMS)):
            parts = [
                decades(norm(into.grad), norm(out.grad)) for module, into, out in calls[first + 1 : last + 1]
                if isinstance(module, kinds)
            ]  # fmt: skip
            found[name] = None if None in parts else round(math.fsum(part or 0.0 for part in parts), 3)
    return found


def units(bench: Bench, calls: list[tuple[nn.Module, Tensor, Tensor]]) -> dict[str, Any]:
    dead = [
        float((out.detach() == 0).flatten(2 if out.dim() == 4 else 1).all(-1).all(0).double().mean())
        if out.dim() == 4 else float((out.detach() == 0).flatten(0, -2).all(0).double().mean())
        for module, _, out in calls if isinstance(module, nn.ReLU)
    ]  # fmt: skip
    parameters = [p for turn in bench.turns for p in turn.parameters]
    held = bench.turns[-1].parameters
    missed = sum(p.numel() for p in held if p.grad is None)
    bad = any(p.grad is not None and not bool(p.grad.isfinite().all()) for p in parameters)
    hidden = [p for p in bench.model.parameters() if p.dim() >= 2 and len(p) > 1 and p.grad is not None][:-1]
    return {
        "dead": round(max(dead, default=0.0), 4),
        "twins": round(min((twins(p) for p in hidden), default=0.0), 4),
        "unreached": round(missed / sum(p.numel() for p in held), 4),
        "bad": bad,
    }


def twins(parameter: Tensor) -> float:
    """Share of the rows of a weight that equal the first row, in weight and in gradient."""
    assert parameter.grad is not None
    both = torch.cat([parameter.detach().flatten(1), parameter.grad.flatten(1)], 1)
    scale = both.abs().max().clamp_min(1e-300)
    return float(((both - both[0]).abs().amax(1) <= 1e-9 * scale).double().mean())


# ------------------------------------------------------------------ what follows from it


def symptoms(measured: dict[str, Any]) -> set[str]:
    """The symptoms that the float64 pass shows, by bounds that are far from gradwell's thresholds' fine print."""
    found = set()
    gain, time = measured.get("gain"), measured.get("time")
    if gain is not None and gain <= -1.5:
        found.add("vanishing_gradient")
    if gain is not None and gain >= 1.5:
        found.add("exploding_gradient")
    if time is not None and time <= -1.5:
        found.add("vanishing_through_time")
    if time is not None and time >= 1.5:
        found.add("exploding_through_time")
    facts = (("dead", 0.7, "dead_units"), ("twins", 0.9, "symmetric_units"), ("unreached", 0.01, "unreached_parameter"))
    found |= {name for key, bound, name in facts if measured.get(key, 0.0) >= bound}
    found |= {"diverging_loss"} if measured.get("risen") else set()
    return found | ({"nonfinite_value"} if measured.get("bad") or measured.get("lost") else set())


def causes(case: Case, measured: dict[str, Any]) -> set[str]:
    """The causes that the label knows: those of the fault, and on a chain the kinds of layers that did most."""
    kinds = {"activation": "activation_slope", "weight": "weight_gain", "norm": "normalization_gain"}
    gain, known = measured.get("gain"), {kinds[key]: measured.get(key) for key in kinds}
    if gain is None or abs(gain) < 1.5 or None in known.values():
        return set(case.causes)
    parts = {name: part * math.copysign(1, gain) for name, part in known.items() if part is not None}
    return {*case.causes, *(name for name, part in parts.items() if part >= NEARLY * max(parts.values()))}


# ------------------------------------------------------------------ the file


def read() -> dict[str, dict[str, Any]]:
    """{case: {seed: label}} as written by `write`."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def write(labels: dict[str, dict[str, Any]]) -> None:
    """One line a run, so that a change shows in a diff."""
    cases = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f" {json.dumps(seed)}: {json.dumps(run)}" for seed, run in sorted(runs.items()))
        + "\n}"
        for name, runs in labels.items()
    ]
    FILE.write_text("{\n" + ",\n".join(cases) + "\n}\n")
