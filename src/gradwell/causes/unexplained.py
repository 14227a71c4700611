"""What the sizes alone do not explain: this gradient is not a random direction."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, share_of
from gradwell.records.numbers import decades
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES
PLACED = 0.05
"""Decades that the attribution may leave without a word."""


def unexplained(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """What the sizes alone do not explain: the alignment of this gradient with these weights and units.

    What it is:
        The other causes say what happens to a random direction. The real gradient may point where a matrix is larger or
        smaller than on average: after training it usually points where it is larger.

    How it is measured:
        Measured gain minus the gain for a random direction, for each layer on the way, times the share of the flow. At
        level deep also what the attribution could not place: the rest of its quadrature, and layers behind a function
        that can be differentiated once only.

    What changes it:
        Nothing directly; a large part here says that the weights have few large directions (low rank), or that a
        layer's gain for a random direction could not be computed.

    Source:
        Pennington, Schoenholz and Ganguli 2017 (the spread of singular values).
    """
    text = "this gradient is not a random direction"
    if step.deep is not None and abs(step.deep.rest or 0.0) >= PLACED:
        text += f"; {decades(step.deep.rest)} decades of it could not be placed"
    return share_of(run, step, "unexplained", text)
