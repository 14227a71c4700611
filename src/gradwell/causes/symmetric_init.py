"""All weights of a layer start at the same value."""

from __future__ import annotations

from gradwell.measure.profile import weight_of
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("symmetric_units", "vanishing_gradient")


def symmetric_init(run: Run, finding: Finding, step: Step) -> Attribution | None:
    """All weights of a layer start at the same value, so that nothing tells its units apart.

    What it is:
        Gradient descent keeps symmetries: units with the same incoming and outgoing weights compute the same, get the
        same gradient and stay the same. Only different starting weights (or dropout) part them.

    How it is measured:
        Layers in which every unit has a twin; whether their weights are exactly zero or a constant.

    What changes it:
        Draw the weights at random, with the variance that fits the activation; biases may be equal.

    Source:
        Rumelhart, Hinton and Williams 1986.
    """
    named = {place.site for place in finding.where}
    weights = {i: weight_of(run, i) for i, site in enumerate(run.sites) if site.site in named}
    twins = {i: w for i, w in weights.items() if w is not None and step.of("twin_frac", w) == 1}
    if not twins:
        return None
    i, weight = next(iter(twins.items()))
    rms = step.of("weight_rms", weight) or 0.0
    value = "exactly 0" if rms == 0 else f"alike from unit to unit (RMS {size(rms)})"
    more = f", and so in {len(twins) - 1} more" if len(twins) > 1 else ""
    text = f"the weights of {run.sites[i].site} are {value}{more}: they were not drawn at random"
    return Attribution(0, "symmetric_init", "condition", None, None, text)
