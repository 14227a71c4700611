"""A loss that jumps far out of its curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from gradwell.measure.curves import Spike, spikes, start
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import count, curves, sampled_near, steps_of
from gradwell.symptoms._words import worst

ORDER = 1
STEPS = 40
"""Steps that its nets are trained."""
LEAST = 12
"""Losses from which on a curve is judged."""
LONG = 20
"""Losses after which a spike that is not back, and has undone half of the gain, has ruined the net."""

SICK = (
    NetConfig(depth=3, init="he", lr=1.0),
    NetConfig(depth=4, init="he", norm="batch", lr=5.0),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", batch_size=1, lr=5e-3),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3, batch_size=8),
    NetConfig(depth=4, init="he", norm="batch", lr=0.5),
)


def loss_spike(run: Run, *, distance: float = 8.0, beyond: float = 3.0, serious: float = 4.0) -> Iterator[Finding]:
    """A loss that jumps far out of its curve, whether it comes back or not.

    What it does to training:
        One batch or one step throws the weights off: the steps until the loss is back are lost, Adam's second moment
        stays inflated for hundreds more, and sometimes the loss never comes back.

    How it is measured:
        A loss at least `distance` standard deviations (robust, of the 20 losses before) above the median before, that
        undoes half of what was gained since the start. It must also be `beyond` times as far away as any loss before,
        or as any of the last hundred where these were quiet (more, where few are known). Serious when the steps that it
        cost are `serious` times the steps before it, or when half of the gain is still lost 20 losses later.

    When it is no problem:
        One spike that is back after a few steps costs just those. Batches of a few samples give far losses now and then
        by themselves; they are not reported.

    What helps first:
        Look at the batch. Clip the gradient's norm at twice its usual size, leave out steps whose gradient is not
        finite; a lower rate or a warmup where spikes come back.

    Source:
        Chowdhery et al. 2022, section 5.1 (batches skipped at spikes). Bounds: docs/calibration.md.
    """
    yield from worst(
        _judge(steps_of(run, curve), curve, found, distance, serious)
        for curve in curves(run, LEAST)
        if (found := spikes(curve.values, distance=distance, beyond=beyond))
    )


def _judge(run: Run, curve: Curve, found: Sequence[Spike], distance: float, serious: float) -> Finding:
    spike = max(found, key=lambda spike: spike.distance)
    step = curve.steps[spike.at]
    lost = sum(len(curve.values) - s.at if s.length is None else s.length for s in found)
    severity: Severity = "serious" if lost >= serious * found[0].at or _ruined(curve, found[-1]) else "mild"
    after = (
        f"is not back {count(len(curve.values) - spike.at, 'step')} later" if spike.length is None
        else f"was back after {count(spike.length, 'step')}"
    )  # fmt: skip
    others = f", one of {len(found)} spikes" if len(found) > 1 else ""
    text = f"the loss jumped from {size(spike.usual)} to {size(spike.top)} at step {step}{others} and {after}"
    evidence = [
        Evidence("distance", spike.distance, "standard deviations", distance),
        Evidence("losses until usual", None if spike.length is None else float(spike.length), "steps"),
    ]
    evidence += sampled_near(run, step)
    end = len(curve.steps) - 1 if spike.length is None else min(spike.at + spike.length, len(curve.steps) - 1)
    return Finding("loss_spike", severity, [], step, curve.steps[end], evidence, text)


def _ruined(curve: Curve, spike: Spike) -> bool:
    """True where the net has not recovered and half of what was gained before the spike is lost."""
    left = median(curve.values[-LONG // 2 :]) - spike.usual
    return (
        spike.length is None and len(curve.values) - spike.at >= LONG and 2 * left > start(curve.values) - spike.usual
    )
