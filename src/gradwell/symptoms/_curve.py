"""What detectors of the loss curve share: curves that can be judged, the nearest record. No entry of the shelf."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import median

import msgspec

from gradwell.errors import NotMeasurable
from gradwell.records.run import Curve, Run
from gradwell.records.verdict import Evidence
from gradwell.symptoms._updates import ratios
from gradwell.symptoms._words import judged_at, needs_steps

GAINED = 0.2
"""Share of the loss at the start below which nothing has been gained."""
TOO_FEW = "these are too few steps for a loss curve; `gradwell run` records the loss of every step."


def has_gained(run: Run) -> bool:
    """Whether the newest sampled loss is well below the start; True where no loss is known."""
    first = next((step.loss for step in run.steps if step.loss is not None), None)
    last = run.steps[-1].loss
    return first is None or last is None or first - last > GAINED * abs(first)


def curves(run: Run, least: int) -> list[Curve]:
    """The loss curves with at least so many finite losses, without those that are not.

    Raises `NotMeasurable` where there is none, and where optimizers step in turn: the losses of adversaries may rise
    while all is well.
    """
    if len(run.steps) < least and not run.events and any(step.loss is not None for step in run.steps):
        raise NotMeasurable(TOO_FEW)  # a check: no more losses are known than sampled ones
    known = run.losses()
    if not known:
        needs_steps(run)
        raise NotMeasurable("no loss could be read: the backward passes began at no scalar.")
    if any(_overlap(a, b) for a, b in combinations(known, 2)):
        raise NotMeasurable("several optimizers step in turn on losses of their own, which may rise while all is well.")
    found = [curve for curve in map(_finite, known) if len(curve.values) >= least]
    if not found:
        raise NotMeasurable(TOO_FEW)
    return found


def _finite(curve: Curve) -> Curve:
    kept = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if math.isfinite(value)]
    return Curve(curve.optimizer, [step for step, _ in kept], [value for _, value in kept])


def _overlap(one: Curve, other: Curve) -> bool:
    return one.steps[0] < other.steps[-1] and other.steps[0] < one.steps[-1]


def steps_of(run: Run, curve: Curve) -> Run:
    """The run with only the sampled steps of this curve, all of them where none lies within."""
    within = [step for step in run.steps if curve.steps[0] <= step.step <= curve.steps[-1]]
    return msgspec.structs.replace(run, steps=within) if within else run


def sampled_near(run: Run, step: int) -> list[Evidence]:
    """Which sampled step the causes are looked for at: this step, else the next one after it, else the last one."""
    return [judged_at(next((s for s in run.steps if s.step >= step), run.steps[-1]))] if run.steps else []


def usual_update(run: Run) -> tuple[float, bool]:
    """Update / weight of the sampled steps: the third largest, and whether it is still growing, as in a warmup."""
    found = [ratio for _, ratio in ratios(run)]
    third = max(len(found) // 3, 1)
    growing = len(found) >= 6 and median(found[-third:]) > 1.5 * median(found[third:-third])
    return sorted(found)[-min(3, len(found))], growing


def count(number: int, word: str) -> str:
    """`1 step`, `12 steps`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
