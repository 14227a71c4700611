"""Hidden units that sit on the flat ends of their activation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import by_way, course
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding
from gradwell.symptoms._units import fractions, hidden, kinds_with
from gradwell.symptoms._words import adaptive, bound_of, grade, judged_at, needs_steps, place, span, where, worst

ORDER = 4

SICK = (
    NetConfig(depth=3, activation="tanh", init="lecun", gain=15.0),
    NetConfig(depth=3, activation="sigmoid", input_scale=300.0),
    NetConfig(depth=2, activation="tanh", init="lecun", input_scale=300.0),
)
HEALTHY = (
    NetConfig(depth=4, activation="tanh"),
    NetConfig(depth=12, activation="tanh", init="lecun"),
    NetConfig(depth=3, activation="tanh", init="lecun", input_scale=10.0),
    NetConfig(depth=4),
    NetConfig(depth=4, activation="sigmoid"),
)
MOST = 2.0
"""Decades that one layer counts at most: a layer that is all saturated is a random feature, not the end."""


def saturated_units(
    run: Run, *, mild: float = 1.3, serious: float = 1.8, fatal: float = 6.0, adaptive_serious: float = 2.5
) -> Iterator[Finding]:
    """Hidden units that sit on the flat ends of their activation, where its slope is almost zero.

    What it does to training:
        A saturated unit passes almost no gradient to its weights and to what lies before it, and it needs large weight
        changes to come back; the layer acts like a fixed switch. The layers behind it can still learn on it, so one
        saturated layer costs little and several cost a lot.

    How it is measured:
        An activation that is flat on both sides (sigmoid, tanh and their kin; a fact of the shelf of activations) is
        saturated where its slope is below 1/20 of the largest: for tanh |h| > 2.2, for sigmoid |h| > 4.4; the slope is
        gradient out over gradient in. The zeros of ReLU6 do not count: they are ReLU's. U = -sum of log10(1 -
        saturated share) over the hidden layers, each weighted with the share of the flow that passes it and counted
        with 2 decades at most: the decades by which open ways through the net are fewer. `mild`, `serious`, `fatal` in
        decades; under Adam and its kin, which lift small gradients, `adaptive_serious`, as without an optimizer. Over
        several sampled steps the median of the last third counts.

    When it is no problem:
        Gates of recurrent cells are meant to saturate (they are inside the cell and not looked at). Binary codes.

    What helps first:
        Standardised inputs; smaller weights or a normalisation before the activation; ReLU.

    Source:
        Glorot and Bengio 2010; LeCun et al. 1998. Bounds: docs/calibration.md.
    """
    needs_steps(run)
    if not any(hidden(run.sites, step, "SATURATES") for step in run.steps):
        raise NotMeasurable("no hidden activation is flat on both sides: there is no sigmoid, tanh or kin of them.")
    bounds = (mild, serious if adaptive(run) is False else adaptive_serious, fatal)
    ways = by_way(run) or [run]
    if all(shut(way, step) is None for way in ways for step in way.steps):
        raise NotMeasurable("no gradient went through the hidden activations, so their slopes are not known.")
    yield from worst(found for way in ways for found in _judge(way, bounds))


def _judge(run: Run, bounds: Sequence[float]) -> Iterator[Finding]:
    """At most one finding about the steps of one way of the gradient: a GAN's two nets take turns."""
    judged = course(run, lambda step: shut(run, step))
    severity = None if judged is None else grade(judged.end, bounds)
    if judged is None or severity is None:
        return
    step = judged.last_step
    found = sorted(shares(run, step), key=lambda pair: -pair[1])
    sites = [run.sites[i] for i, share in found if share >= 0.5 * found[0][1]]
    first, last = span(judged, bounds[0])
    text = f"{100 * found[0][1]:.0f} % of the outputs of {place(sites[0])} lie where {sites[0].kind} is flat"
    others = f"; {len(sites)} layers are like that" if len(sites) > 1 else ""
    evidence = [
        Evidence("open ways", -judged.end, "decades", -bound_of(severity, bounds)),
        Evidence("saturated_frac", found[0][1], "of the elements"),
        judged_at(step),
    ]
    yield Finding(
        "saturated_units", severity, [where(site) for site in sites[:3]], first, last, evidence, text + others
    )


def shut(run: Run, step: Step) -> float | None:
    """U: decades by which saturation thins out the ways through the net; None where no slope was measured."""
    found = shares(run, step)
    if not found:
        return None
    return math.fsum(
        max(step.at("flow", i) or 0.0, 0.0) * min(MOST, -math.log10(max(1 - share, 1e-9))) for i, share in found
    )


def shares(run: Run, step: Step) -> list[tuple[int, float]]:
    """(index, saturated share) of the hidden activations that are flat on both sides.

    Zeros of one that can die (ReLU6) are at rest and not at the ceiling: the share is that of the others.
    """
    resting = kinds_with("CAN_DIE")
    found = []
    for i, share in fractions(run.sites, step, "saturated_frac", "SATURATES"):
        rest = (step.at("zero_frac", i) or 0.0) if run.sites[i].kind in resting else 0.0
        found.append((i, max(0.0, (share - rest) / (1 - rest)) if rest < 1 else 0.0))
    return found
