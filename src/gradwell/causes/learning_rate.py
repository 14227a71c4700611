"""The learning rate does not fit."""

from __future__ import annotations

from statistics import median, median_low

from gradwell.causes._onset import WRECKS, came_later, exploded
from gradwell.causes.bad_batch import odd_batch
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = (
    "oversized_update", "undersized_update", "slow_loss", "loss_plateau", "oscillating_loss", "loss_spike",
    "diverging_loss", *WRECKS,
)  # fmt: skip
ORDER = 2
USUAL = 3e-3
"""Update / weight that a fitting rate gives in the first steps: the middle of what learns in docs/calibration.md."""
LARGE = {
    "oscillating_loss": 3e-3, "diverging_loss": 3e-3, "loss_plateau": 1e-2, "loss_spike": 2e-2,
    **dict.fromkeys(WRECKS, 0.1),
}  # fmt: skip
"""Update / weight before the trouble, the third largest, from which on the rate is named: a loss that rises for good
says by itself that steps are too large, one that jumps or a unit that dies does not."""
ONCE = 3.0
"""Update / weight of one step that is enough by itself: it leaves nothing of what the weights were."""
SOUND = 1e-3
"""Gradient / weight from which on a gradient is sound, so that it is the rate that makes a plain step small."""


def learning_rate(run: Run, finding: Finding, step: Step) -> Attribution | None:
    """The learning rate does not fit: steps are too large or too small for the weights.

    What it is:
        An update is the learning rate times the gradient (SGD) or times about 1 (Adam). What counts is its size
        relative to the weight.

    How it is measured:
        The rate of the optimizer's first group, and the rate that would give updates of 0.3 % by simple proportion,
        which does not hold for the next steps: it is where to start a search. Under SGD a small update is put down to
        the rate only where gradient / weight is at least 1e-3, and a large one only where the gradient did not explode
        at the first sampled step; else it is the gradient that is small or large. A loss that rises, jumps or stays at
        chance is put down to it where the steps before were large enough for that. So is a sick network (a
        gradient that vanishes or explodes, units that die, values that are not finite) that was sound at the first
        sampled step, unless one odd batch has broken it: three steps of 10 % of the weights' size, or one of 300 %. The
        rate then stands before the layers' shares, which say where the wreck lies and not what has caused it.

    What changes it:
        Another rate, in steps of 3; warmup where only the start is too large.

    Source:
        Bengio 2012, section 3.1.1; Smith 2017.
    """
    optimizer = run.optimizer
    rate = None if optimizer is None else optimizer.settings.get("lr")
    if optimizer is None or not isinstance(rate, (int, float)):
        return None
    if finding.symptom == "oversized_update" and not optimizer.adaptive and exploded(run):
        return None
    small = finding.symptom in ("undersized_update", "slow_loss")
    if small and not optimizer.adaptive and _gradient(run, step) < SOUND:
        return None
    ratio = next((e.value for e in finding.evidence if e.quantity == "update / weight"), None)
    if finding.symptom in LARGE:
        wreck = finding.symptom in WRECKS
        if wreck and (not came_later(run, finding) or odd_batch(run, finding.first_step)):
            return None
        ratio = _update(run, step.step if wreck else finding.first_step)
        if ratio < LARGE[finding.symptom]:
            return None
    text = f"{optimizer.kind} has a learning rate of {rate:g}"
    if ratio and rate:
        text += f"; by proportion {size(rate * USUAL / ratio)} would give steps of 0.3 %"
    return Attribution(0, "learning_rate", "condition", None, None, text)


def _update(run: Run, before: int) -> float:
    """Update / weight, median over the weights with two or more axes, of the steps before: the third largest, and the
    largest where one was enough.
    """
    steps = [step for step in run.steps if step.step < before] or run.steps
    found = sorted(median_low(known) for step in steps if (known := _ratios(run, step, "update_rms")))
    if not found:
        return 0.0
    return found[-1] if found[-1] >= ONCE else found[-min(3, len(found))]


def _gradient(run: Run, step: Step) -> float:
    """Median of gradient / weight over the weights with two or more axes, without the loss scale."""
    known = _ratios(run, step, "grad_rms")
    return median(known) if known else 0.0


def _ratios(run: Run, step: Step, column: str) -> list[float]:
    """A column over the size of the weight, for each weight with two or more axes."""
    pairs = [
        (step.of(column, i), step.of("weight_rms", i))
        for i, param in enumerate(run.header.params) if len(param.shape) >= 2
    ]  # fmt: skip
    return finite([part / weight for part, weight in pairs if part and weight])
