"""The learning rate does not fit."""

from __future__ import annotations

from statistics import median

from gradwell.records.numbers import size
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("oversized_update", "undersized_update")
USUAL = 3e-3
"""Update / weight that a fitting rate gives in the first steps: the middle of what learns in docs/calibration.md."""
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
        the rate only where gradient / weight is at least 1e-3; else the gradient is small.

    What changes it:
        Another rate, in steps of 3; warmup where only the start is too large.

    Source:
        Bengio 2012, section 3.1.1; Smith 2017.
    """
    optimizer = run.optimizer
    rate = None if optimizer is None else optimizer.settings.get("lr")
    if optimizer is None or not isinstance(rate, (int, float)):
        return None
    if finding.symptom == "undersized_update" and not optimizer.adaptive and _gradient(run, step) < SOUND:
        return None
    ratio = next((e.value for e in finding.evidence if e.quantity == "update / weight"), None)
    text = f"{optimizer.kind} has a learning rate of {rate:g}"
    if ratio and rate:
        text += f"; by proportion {size(rate * USUAL / ratio)} would give steps of 0.3 %"
    return Attribution(0, "learning_rate", "condition", None, None, text)


def _gradient(run: Run, step: Step) -> float:
    """Median of gradient / weight over the weights with two or more axes, without the loss scale."""
    pairs = [
        (step.of("grad_rms", i), step.of("weight_rms", i))
        for i, param in enumerate(run.header.params) if len(param.shape) >= 2
    ]  # fmt: skip
    known = finite([grad / weight for grad, weight in pairs if grad and weight])
    return median(known) if known else 0.0
