"""One batch was not like the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from gradwell.causes._onset import WRECKS, came_later
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import Attribution, Finding

BROKEN = ("oversized_update", *WRECKS)
"""Symptoms for which the batches of the last few steps are looked at, not that of one step."""
EXPLAINS = ("loss_spike", "diverging_loss", *BROKEN)
ORDER = 0
UNLIKE = 3.0
"""Times larger or smaller than usual that a batch's RMS is unlike the others."""
WAKE = 5
"""Steps after such a batch in which a network that breaks has been broken by it."""
SOON = 3
"""Losses after which a spike is back that only one batch has made."""


def bad_batch(run: Run, finding: Finding, step: Step) -> Attribution | None:
    """One batch was not like the others: damaged values, another scale, labels that do not belong to it.

    What it is:
        The loss of a step is taken before its update. When it jumps out of a quiet curve from one step to the next, the
        weights are still those that fitted the batch before: it is the batch that does not fit. Its gradient then
        harms the weights.

    How it is measured:
        RMS of the batch at the step of the jump (read from what the first layer kept of it, also where the step was not
        sampled) against the sampled batches: not finite, or three times larger or smaller. Without such a difference: a
        spike of at most three losses, which no step caused, as the labels of one batch may do. A network that breaks
        within five steps of such a batch (units that die, a gradient that explodes) has been broken by it.

    What changes it:
        Find the batch: its number is the step's. Guard against the next one: skip steps whose gradient is not finite,
        clip the gradient's norm, bound the inputs.

    Source:
        Chowdhery et al. 2022, section 5.1; Karpathy 2019, "become one with the data".
    """
    if finding.symptom in BROKEN:
        odd = odd_batch(run, finding.first_step) if came_later(run, finding) else ""
        if odd or finding.symptom != "nonfinite_value":
            return _told(odd) if odd else None
    number = finding.first_step
    seen = _input(run, number)
    if seen is None and finding.symptom == "nonfinite_value":
        number, seen = step.step, step.input_rms
    if odd := _odd(run, number, seen):
        return _told(odd)
    if finding.symptom == "loss_spike" and 0 <= finding.last_step - number <= SOON:
        same = " and its values have the usual size: look at its labels" if seen and _usual(run, number) else ""
        return _told(f"only the batch of step {number} had this loss{same}")
    return None


def odd_batch(run: Run, until: int) -> str:
    """Words about a batch of the last few steps that was not like the others; empty without one."""
    found = (_odd(run, number, _input(run, number)) for number in range(max(0, until - WAKE), until + 1))
    return next(filter(None, found), "")


def _odd(run: Run, number: int, seen: float | None) -> str:
    """What is odd about the batch of a step, given its RMS; empty for nothing."""
    if seen is not None and not math.isfinite(seen):
        return f"the batch of step {number} itself holds values that are not finite"
    usual = _usual(run, number)
    if seen and usual and (middle := median(usual)) and max(seen / middle, middle / seen) > UNLIKE:
        return f"the batch of step {number} has an RMS of {size(seen)}, others {size(middle)}"
    return ""


def _usual(run: Run, number: int) -> list[float]:
    return finite([step.input_rms for step in run.steps if step.step != number])


def _told(text: str) -> Attribution:
    return Attribution(0, "bad_batch", "condition", None, None, text)


def _input(run: Run, number: int) -> float | None:
    """RMS of a step's batch, as sampled or as noted where its loss stood out."""
    noted: Iterable[float | None] = (
        event.detail.get("input_rms") for event in run.events
        if event.step == number and event.event in ("unusual_loss", "nonfinite_loss")
    )  # fmt: skip
    sampled = (step.input_rms for step in run.steps if step.step == number)
    return next((value for value in (*sampled, *noted) if value is not None), None)
