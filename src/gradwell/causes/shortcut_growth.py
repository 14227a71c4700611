"""Residual branches that add up without a scale."""

from __future__ import annotations

import math

from gradwell.measure.flow import ledger
from gradwell.measure.profile import between, trunk
from gradwell.records.numbers import decades, times
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("exploding_gradient", "nonfinite_value", "saturated_output", "saturated_units")


def shortcut_growth(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """Residual branches that add up without a scale: activations and gradients double at every few blocks.

    What it is:
        x + F(x) with a branch of gain g has sqrt(1 + g^2): with He weights 1.4 a block, 2^(L/2) after L blocks. A norm
        at the start of each branch makes the growth linear instead.

    How it is measured:
        There are forks on the gradient's way, and either the additions give at least a decade or the activations grow
        at least tenfold from the first to the last site of the trunk.

    What changes it:
        A scale of 1 / sqrt(L) on the branches, or 0 at the start (ReZero, Fixup); a norm in each branch.

    Source:
        Zhang, Dauphin and Ma 2019; De and Smith 2020; Hayou et al. 2021.
    """
    forks = [i for i in between(run.sites, step) if 0.02 < abs(step.at("flow", i) or 0.0) < 0.98]
    if not forks:
        return None
    book = ledger(run.sites, step)
    added = book.between_modules if book is not None else 0.0
    grown = _growth(run, step)
    if added < 1 and grown < 1:
        return None
    what = (
        f"activations grow {times(grown)}" if grown >= 1 else f"gradients gain {decades(added, signed=False)} decades"
    )
    return Attribution(0, "shortcut_growth", "condition", None, None, f"where the branches are added up, {what}")


def _growth(run: Run, step: Step) -> float:
    """log10 of the largest over the first activation size on the trunk and in its branches."""
    sizes = [step.at("act_rms", i) for i in between(run.sites, step)]
    known = [value for value in sizes if value is not None and math.isfinite(value) and value > 0]
    return math.log10(max(known) / known[0]) if known and trunk(run.sites, step) else 0.0
