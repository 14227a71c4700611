"""The loss stays where it began, and the outputs are the same for all samples."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from gradwell.errors import NotMeasurable
from gradwell.measure.curves import quarters, start
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run, finite
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import count, curves, sampled_near, steps_of
from gradwell.symptoms._words import worst

ORDER = 8
STEPS = 80
"""Steps that its nets are trained."""
LEAST = 50
"""Losses from which on a curve is judged."""
NEAR = 0.8
"""Share of the loss at the start above which the loss is where it began."""
LAST = 3
"""Sampled steps at the end whose outputs are looked at."""
LOST = 10.0
"""Times by which the spread of the outputs has fallen since the start when it is lost."""

SICK = (
    NetConfig(depth=8, activation="sigmoid"),
    NetConfig(depth=3, init="he", lr=1.5),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3),
    NetConfig(depth=3, init="he", lr=1e-6),
    NetConfig(depth=4, init="he", norm="batch", lr=0.5),
    NetConfig(kind="transformer", depth=1, width=32, optimizer="Adam", lr=1e-3),
)


def loss_plateau(run: Run, *, alike: float = 1e-3, serious: float = 100.0) -> Iterator[Finding]:
    """The loss stays where it began, and the outputs are the same for all samples: chance level.

    What it does to training:
        The net answers the same to every input. The loss is that of a good constant guess, no batch tells it more, and
        the curve is flat however long it goes on.

    How it is measured:
        From 50 losses on: the medians of the third and the fourth quarter are surely within 2 % of each other and above
        80 % of the loss at the start, and in the last sampled steps the variance of the model's output between the
        samples is below `alike` of its mean square. Serious when half the curve is at least `serious` steps long, or
        when the outputs did differ in the first sampled steps, ten times more at least: such a net is not slow to
        begin, it has lost what told the samples apart.

    When it is no problem:
        A loss that is flat because it is done: a curve alone cannot tell what is reachable, so a plateau below the
        start or one whose outputs differ is not reported. Some tasks have a plateau first (XOR, long sequences).

    What helps first:
        What keeps the signal from passing is found by other symptoms (vanishing gradients, dead units, steps that are
        too large): treat that. Without such a finding: a lower rate where the loss had jumped, else a higher one.

    Source:
        Saad and Solla 1995 for plateaus; Glorot and Bengio 2010 for sigmoid nets. Bounds: docs/calibration.md.
    """
    found = curves(run, LEAST)
    if all(step.output is None or step.at("spread", step.output) is None for step in run.steps):
        raise NotMeasurable("the outputs of the model were not seen, so a flat loss may be a good one.")
    yield from worst(finding for curve in found for finding in _judge(steps_of(run, curve), curve, alike, serious))


def _judge(run: Run, curve: Curve, alike: float, serious: float) -> Iterator[Finding]:
    course, first = quarters(curve.values), start(curve.values)
    level = course.medians[3]
    if not course.flat or level < NEAR * first:
        return
    spreads = finite([step.at("spread", step.output) for step in run.steps[-LAST:] if step.output is not None])
    if not spreads or median(spreads) >= alike:
        return
    flat = len(curve.values) // 2
    had = finite([step.at("spread", step.output) for step in run.steps[:LAST] if step.output is not None])
    lost = bool(had) and max(had) >= max(alike, LOST * median(spreads))
    severity: Severity = "serious" if flat >= serious or lost else "mild"
    text = (
        f"the loss has been flat at {size(level)} for {count(flat, 'step')}, where it began ({size(first)}), "
        f"and the outputs are the same for all samples{', which they were not at the start' if lost else ''}"
    )
    evidence = [
        Evidence("loss / loss at the start", level / first, "ratio", NEAR),
        Evidence("output variance between samples / mean square", median(spreads), "ratio", alike),
    ]
    evidence += sampled_near(run, curve.steps[-1])
    yield Finding("loss_plateau", severity, [], curve.steps[flat], curve.steps[-1], evidence, text)
