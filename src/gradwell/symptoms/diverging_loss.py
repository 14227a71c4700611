"""The loss leaves its start upwards and stays there."""

from __future__ import annotations

from collections.abc import Iterator

from gradwell.measure.curves import rise, start
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import curves, sampled_near, steps_of
from gradwell.symptoms._words import worst

ORDER = 3
STEPS = 40
"""Steps that its nets are trained."""
LEAST = 3
"""Losses from which on a curve is judged."""

SICK = (
    NetConfig(depth=5, activation="tanh", init="lecun", lr=1.5),
    NetConfig(kind="residual", depth=6, norm="layer", lr=0.5),
    NetConfig(depth=3, init="he", lr=15.0, batch_size=8),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", batch_size=1, lr=5e-3),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3, batch_size=8),
    NetConfig(depth=3, init="he", lr=1e-6, batch_size=2),
    NetConfig(depth=4, init="he", norm="batch", lr=0.5),
)


def diverging_loss(run: Run, *, serious: float = 3.0, fatal: float = 10.0) -> Iterator[Finding]:
    """The loss leaves its start upwards and stays there.

    What it does to training:
        Each step makes the loss larger, and with it the next gradient: it ends in NaN, or the loss settles far above
        where it began, with units that are saturated or dead.

    How it is measured:
        The median of the last five losses over the loss at the start: `serious`, `fatal`. A curve that ends in a loss
        that is not finite is judged by the losses before. Where the loss starts at zero or below, the rise counts in
        the scatter of the first ten losses.

    When it is no problem:
        Losses that grow by their making: a weight that is raised over the training (beta in a VAE), a new task. The
        losses of adversaries (GAN) are not judged. A NaN out of a quiet curve is `nonfinite_value`, not a divergence.

    What helps first:
        A learning rate ten times lower; clipping; a warmup where only the start is too steep.

    Source:
        LeCun, Bottou, Orr and Müller 1998, section 5: twice the best rate diverges. Bounds: docs/calibration.md.
    """
    yield from worst(
        finding for curve in curves(run, LEAST) for finding in _judge(steps_of(run, curve), curve, serious, fatal)
    )


def _judge(run: Run, curve: Curve, serious: float, fatal: float) -> Iterator[Finding]:
    times, onset = rise(curve.values)
    if times < serious:
        return
    severity: Severity = "fatal" if times >= fatal else "serious"
    begin = curve.steps[min(onset, len(curve.steps) - 1)]
    last = sorted(curve.values[-5:])[len(curve.values[-5:]) // 2]
    text = (
        f"the loss rose from {size(start(curve.values))} to {size(last)} ({times:.3g} times) "
        f"and has been above its start since step {begin}"
    )
    evidence = [Evidence("loss / loss at the start", times, "ratio", fatal if severity == "fatal" else serious)]
    evidence += sampled_near(run, begin)
    yield Finding("diverging_loss", severity, [], begin, curve.steps[-1], evidence, text)
