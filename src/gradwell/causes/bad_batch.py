"""One batch was not like the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from gradwell.records.numbers import size
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("loss_spike", "nonfinite_value", "diverging_loss")
UNLIKE = 3.0
"""Times larger or smaller than usual that a batch's RMS is unlike the others."""
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
        spike of at most three losses, which no step caused, as the labels of one batch may do.

    What changes it:
        Find the batch: its number is the step's. Guard against the next one: skip steps whose gradient is not finite,
        clip the gradient's norm, bound the inputs.

    Source:
        Chowdhery et al. 2022, section 5.1; Karpathy 2019, "become one with the data".
    """
    number = finding.first_step
    seen = _input(run, number)
    if seen is None and finding.symptom == "nonfinite_value":
        number, seen = step.step, step.input_rms
    usual = finite([s.input_rms for s in run.steps if s.step != number])
    if seen is not None and not math.isfinite(seen):
        return _told(f"the batch of step {number} itself holds values that are not finite")
    if seen and usual and (middle := median(usual)) and max(seen / middle, middle / seen) > UNLIKE:
        return _told(f"the batch of step {number} has an RMS of {size(seen)}, others {size(middle)}")
    if finding.symptom == "loss_spike" and 0 <= finding.last_step - number <= SOON:
        same = " and its values have the usual size: look at its labels" if seen and usual else ""
        return _told(f"only the batch of step {number} had this loss{same}")
    return None


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
