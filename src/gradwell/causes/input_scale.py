"""Inputs that are far from size 1 or far off centre."""

from __future__ import annotations

import math

from gradwell.causes._onset import came_later
from gradwell.causes._share import PROFILES
from gradwell.causes.bad_batch import odd_batch
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = (
    "nonfinite_value", "dead_units", "saturated_units", "saturated_output", "rank_collapse", *PROFILES,
    "oversized_update",
)  # fmt: skip
ORDER = 1
LARGE, SMALL = 5.0, 0.02
"""RMS of the input outside of which its scale is named; standardised data have 1, images in [0, 1] about 0.5."""
OFF_CENTRE = 3.0
"""|mean| over standard deviation from which on the input is called off centre."""


def input_scale(run: Run, finding: Finding, step: Step) -> Attribution | None:
    """Inputs that are far from size 1 or far off centre: every initialisation assumes standardised data.

    What it is:
        Inputs in the hundreds saturate or kill the first layer's units, tiny ones leave only the biases, and a large
        common mean makes all samples look alike to the net.

    How it is measured:
        RMS and mean of the first floating tensor that the model was given at this step: RMS above 5 or below 0.02, or
        a mean of more than 3 standard deviations. A gradient that explodes or vanishes is put down to it only where the
        first sampled step was sound: the first layer's gradient grows with the input, and so do the steps that then
        wreck or saturate the net. One batch unlike the others is the business of `bad_batch`.

    What changes it:
        Subtract the training set's mean and divide by its standard deviation, per feature.

    Source:
        LeCun, Bottou, Orr and Müller 1998.
    """
    rms, mean = step.input_rms, step.input_mean
    if rms is None or not math.isfinite(rms) or odd_batch(run, step.step):
        return None
    if finding.symptom in PROFILES and not came_later(run, finding):
        return None
    if mean is not None and abs(mean) > OFF_CENTRE * math.sqrt(max(rms * rms - mean * mean, 0.0)):
        text = f"the input has mean {size(mean)} and RMS {size(rms)}: its samples differ little from each other"
    elif rms > LARGE or rms < SMALL:
        text = f"the input has an RMS of {size(rms)}; initialisations assume about 1"
    else:
        return None
    return Attribution(0, "input_scale", "condition", None, None, text)
