"""Whether a finding's trouble was there before any step or came with the training. No entry of the shelf."""

from __future__ import annotations

import msgspec

from gradwell.errors import NotMeasurable
from gradwell.records.run import Run
from gradwell.records.verdict import RANK, Finding
from gradwell.shelf import shelf

WRECKS = (
    "vanishing_gradient", "exploding_gradient", "vanishing_through_time", "exploding_through_time", "rank_collapse",
    "dead_units", "saturated_units", "nonfinite_value",
)  # fmt: skip
"""Symptoms of the network itself that steps can cause as well."""


def came_later(run: Run, finding: Finding) -> bool:
    """True where the network was sound at the first sampled step: at most a milder case of the same, and no gradient
    that explodes seriously.
    """
    if len(run.steps) == 1 and not run.events:  # a check: there is nothing later
        return False
    before = _at_first(run, finding.symptom)
    most = min(RANK[finding.severity], RANK["serious"])
    return before < most and not exploded(run)


def exploded(run: Run) -> bool:
    """True where the gradient exploded seriously at the first sampled step."""
    return _at_first(run, "exploding_gradient") >= RANK["serious"]


def _at_first(run: Run, symptom: str) -> int:
    """Rank of what a symptom's rule says of the first sampled step alone; 0 for nothing."""
    steps = [step for step in run.steps if step.step == run.steps[0].step]
    try:
        found = list(shelf("gradwell.symptoms")[symptom](msgspec.structs.replace(run, steps=steps, events=[])))
    except NotMeasurable:
        return 0
    return max((RANK[finding.severity] for finding in found), default=0)
