"""The loss falls as slowly at the end as at the start: the steps are too short."""

from __future__ import annotations

from collections.abc import Iterator

from gradwell.measure.curves import quarters
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import count, curves, sampled_near, steps_of, usual_update
from gradwell.symptoms._words import worst

ORDER = 7
STEPS = 80
"""Steps that its nets are trained."""
LEAST = 50
"""Losses from which on a curve is judged."""
LEFT = 0.4
"""Share of the first quarter's loss below which the training has got somewhere."""
STILL = 0.9
"""Share of the first quarter's loss above which a loss has not moved."""
STILLER = 10.0
"""Times smaller than for a falling loss that the steps are where the loss does not move: it may be at its optimum."""

SICK = (
    NetConfig(depth=3, init="he", optimizer="Adam", lr=5e-5),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-6),
    NetConfig(depth=3, init="he", lr=3e-4),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3, batch_size=8),
    NetConfig(depth=3, init="he", lr=0.5),
    NetConfig(kind="residual", depth=6, norm="layer", optimizer="Adam", lr=1e-3),
)


def slow_loss(run: Run, *, mild: float = 3.15, serious: float = 3.5) -> Iterator[Finding]:
    """The loss falls as slowly at the end as at the start, in steps far shorter than the weights would bear.

    What it does to training:
        Ten times shorter steps need about ten times as many of them. Nothing looks wrong: the curve is smooth, it
        falls, and it is still near its beginning when the budget is spent.

    How it is measured:
        Medians of the four quarters of the curve, from 50 losses on. Slow is a loss that still stands above two fifths
        of its first quarter's and has fallen in the end at least two fifths as fast as at first, while update / weight
        (the third largest of the sampled steps) is `mild`, `serious` decades below 1. Where the loss has not moved at
        all, the steps must be ten times smaller still: it may be at its optimum.

    When it is no problem:
        A curve that has begun to level off has found its pace, at whatever level. During a warmup, while the steps
        still grow, nothing is said. Small steps on purpose, to change a trained net little.

    What helps first:
        A learning rate three to ten times higher, until the loss no longer likes it; Adam, where the gradient itself is
        small.

    Source:
        Bengio 2012, section 3.1.1; Smith 2017. Bounds: docs/calibration.md.
    """
    yield from worst(
        finding for curve in curves(run, LEAST) for finding in _judge(steps_of(run, curve), curve, (mild, serious))
    )


def _judge(run: Run, curve: Curve, bounds: tuple[float, float]) -> Iterator[Finding]:
    found = quarters(curve.values)
    first, last = found.medians[0], found.medians[3]
    still = last >= STILL * first
    if last <= LEFT * first or not (found.steady or still):
        return
    update, growing = usual_update(run)
    mild, serious = (10**-bound / (1.0 if found.steady else STILLER) for bound in bounds)
    if growing or update >= mild:
        return
    severity: Severity = "serious" if update < serious else "mild"
    course = f"has hardly moved from {size(first)}" if still else f"fell from {size(first)} to {size(last)} only"
    pace = ", at a pace that does not slacken" if found.steady and not still else ""
    text = (
        f"the loss {course} in {count(len(curve.values), 'step')}{pace}; "
        f"a step changes the weights by {size(100 * update)} % of their size"
    )
    evidence = [Evidence("update / weight", update, "ratio", serious if severity == "serious" else mild)]
    evidence += [Evidence("loss, last quarter / first", last / first, "ratio", STILL if still else None)]
    evidence += sampled_near(run, curve.steps[-1])
    yield Finding("slow_loss", severity, [], curve.steps[0], curve.steps[-1], evidence, text)
