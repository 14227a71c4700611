"""A loss that jumps far out of its curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from gradwell.measure.curves import PAST, Spike, noise, spikes, start
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Curve, Run, finite
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
SLOW = 5.0
"""Times smaller steps from which on a training is seriously slowed down."""
LATEST = 5
"""Losses that say where the curve stands."""
SURE = 4.0
"""Standard errors that they must stand above the usual loss."""

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
        cost are `serious` times the steps before it, or when half of the gain is still lost 20 losses later. Under Adam
        and RMSprop the gradient of the spike, R times the usual one, stays in the second moment, and the steps are at
        least five times smaller for n = ln(((1 - b) (R^2 - 1) + 24 b^t) / 24) / -ln b steps after step t (b is beta2 or
        alpha). They count as lost where the last five losses stand above the usual one by four standard errors.

    When it is no problem:
        One spike that is back after a few steps costs just those. Batches of a few samples give far losses now and then
        by themselves; they are not reported.

    What helps first:
        Look at the batch. Clip the gradient's norm at twice its usual size, leave out steps whose gradient is not
        finite; a lower rate or a warmup where spikes come back.

    Source:
        Chowdhery et al. 2022, section 5.1 (batches skipped at spikes); Kingma and Ba 2015 for the second moment.
        Bounds: docs/calibration.md.
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
    slow, level = _slowed(run, curve, found[-1]), median(curve.values[-LATEST:])
    late = slow >= serious * found[0].at and _stands_above(curve, found[-1], level)
    severity: Severity = "serious" if lost >= serious * found[0].at or late or _ruined(curve, found[-1]) else "mild"
    after = (
        f"is not back {count(len(curve.values) - spike.at, 'step')} later" if spike.length is None
        else f"was back after {count(spike.length, 'step')}"
    )  # fmt: skip
    others = f", one of {len(found)} spikes" if len(found) > 1 else ""
    text = f"the loss jumped from {size(spike.usual)} to {size(spike.top)} at step {step}{others} and {after}"
    if late:
        text += (
            f"; its gradient keeps the steps small for {slow:.0f} steps more, and the loss has risen to {size(level)}"
        )
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


def _slowed(run: Run, curve: Curve, spike: Spike) -> float:
    """Steps for which the second moment keeps the steps `SLOW` times smaller after the gradient of a spike; 0 where it
    was not measured or there is none.
    """
    settings = run.header.optimizers[curve.optimizer].settings if curve.optimizer < len(run.header.optimizers) else {}
    begin, end = curve.steps[spike.at], curve.steps[min(spike.at + (spike.length or 0), len(curve.steps) - 1)]
    far = [e.detail.get("grad_norm") for e in run.events if e.event == "unusual_loss" and begin <= e.step <= end]
    usual = finite([step.grad_norm for step in run.steps if step.step < begin])
    if not usual or not median(usual) or not finite(far):
        return 0.0
    times = max(finite(far)) / median(usual)
    if isinstance(beta2 := settings.get("beta2"), float):
        return steps_slowed(times, memory=beta2, before=spike.at)
    alpha = settings.get("alpha")
    return steps_slowed(times, memory=alpha) if isinstance(alpha, float) else 0.0


def steps_slowed(times: float, *, memory: float, before: float = math.inf) -> float:
    """Steps that are less than 1 / `SLOW` of the usual one after one gradient `times` as large as all others.

    `memory`: share of the second moment that a step keeps; `before`: steps before, for Adam's bias correction.
    """
    if not 0 < memory < 1 or times <= 1:
        return 0.0
    # mean square of the gradients / usual = SLOW^2:  b^n ((1 - b) (R^2 - 1) + (SLOW^2 - 1) b^t) = SLOW^2 - 1
    rest = SLOW**2 - 1
    return max(0.0, math.log(((1 - memory) * (times**2 - 1) + rest * memory**before) / rest) / -math.log(memory))


def _stands_above(curve: Curve, spike: Spike, level: float) -> bool:
    """Whether the last losses are surely above the usual one before the spike, which is over."""
    before = curve.values[max(spike.at - PAST, 0) : spike.at]
    if spike.length is None or len(curve.values) - (spike.at + spike.length) < LATEST:
        return False
    return level - spike.usual > SURE * 1.25 * noise(before) / math.sqrt(LATEST)
