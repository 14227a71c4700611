"""The loss rises again and again, beyond what the batches' noise can do."""

from __future__ import annotations

from collections.abc import Iterator

from gradwell.measure.curves import setbacks, swing
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import count, curves, sampled_near, steps_of
from gradwell.symptoms._words import worst

ORDER = 5
STEPS = 200
"""Steps that its nets are trained."""
LEAST = 50
"""Losses from which on a curve is judged."""

SICK = (
    NetConfig(depth=5, activation="tanh", init="lecun", lr=0.5),
    NetConfig(depth=1, activation="tanh", init="lecun", lr=2.0, batch_size=32),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", batch_size=4, lr=5e-3),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3, batch_size=8),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-2),
    NetConfig(depth=4, init="he", norm="batch", lr=0.5),
)


def oscillating_loss(run: Run, *, mild: float = 0.3, serious: float = 2.0) -> Iterator[Finding]:
    """The loss rises again and again and gives back what it had gained, beyond what the batches' noise can do.

    What it does to training:
        The steps jump over the valley and back. What is learnt in one stretch is lost in the next; the best loss comes
        late or never.

    How it is measured:
        The curve (from 50 losses on) is cut into 60 blocks, of five losses at least. A setback is a rise between the
        medians of two blocks of more than four standard errors, by the noise around them. From two setbacks on: the sum
        of what they gave back over the best gain of the curve, `mild`, `serious`.

    When it is no problem:
        Noise from batch to batch, however large, is none: it does not last over blocks. Warm restarts and cyclic rates
        raise the loss on purpose, by less than `mild` of the gain. Adversaries (GAN) are not judged.

    What helps first:
        A lower learning rate, by 3 and by 10; a larger batch or less momentum; clipping, where single steps do it.

    Source:
        LeCun, Bottou, Orr and Müller 1998, section 5; Cohen et al. 2021 (edge of stability). Bounds:
        docs/calibration.md.
    """
    yield from worst(
        finding for curve in curves(run, LEAST) for finding in _judge(steps_of(run, curve), curve, mild, serious)
    )


def _judge(run: Run, curve: Curve, mild: float, serious: float) -> Iterator[Finding]:
    number, lost = swing(curve.values)
    if number < 2 or lost < mild:
        return
    rises = setbacks(curve.values)
    begin, end = curve.steps[rises[0].begin], curve.steps[rises[-1].end]
    severity: Severity = "serious" if lost >= serious else "mild"
    text = (
        f"the loss went up {count(number, 'time')} beyond its noise between steps {begin} and {end} and gave back "
        f"{size(lost)} times its best gain"
    )
    evidence = [Evidence("given back / gained", lost, "ratio", serious if severity == "serious" else mild)]
    evidence += sampled_near(run, begin)
    yield Finding("oscillating_loss", severity, [], begin, end, evidence, text)
