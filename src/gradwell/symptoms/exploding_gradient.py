"""The gradient grows on its way from the output to the first layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.measure.flow import ledger
from gradwell.measure.profile import course, layers, normalised, through_depth
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades, times
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity, Where
from gradwell.symptoms._words import (
    adaptive,
    bound_of,
    grade,
    judged_at,
    milder,
    needs_depth,
    over_layers,
    place,
    span,
    where,
    worst,
)

ORDER = 1

SICK = (
    NetConfig(depth=12, init="he", gain=3.0),
    NetConfig(depth=12, init="he", gain=3.0, optimizer="Adam", lr=1e-3),
    NetConfig(depth=8, init="uniform"),
    NetConfig(depth=30, activation="tanh", init="lecun", gain=3.0),
    NetConfig(kind="residual", depth=24, init="he"),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(depth=12, init="he"),
    NetConfig(depth=12, norm="batch"),
    NetConfig(depth=12, activation="tanh", init="lecun"),
    NetConfig(kind="residual", depth=12, norm="layer"),
    NetConfig(kind="transformer", depth=6, width=32, optimizer="Adam", lr=1e-3),
    NetConfig(depth=20, activation="sigmoid"),
)


def exploding_gradient(
    run: Run,
    *,
    mild: float = 1.5,
    serious: float = 2.6,
    fatal: float = 4.2,
) -> Iterator[Finding]:
    """The gradient grows on its way from the output to the first layers.

    What it does to training:
        The first layers take steps far too large, or the one learning rate that they bear is far too small for the
        last layers; the loss jumps, becomes NaN, or stalls. Adaptive optimizers rescale each layer's step, but that
        helps less than with vanishing: a net whose gradient explodes is chaotic, near inputs get unrelated outputs,
        and what one batch teaches does not carry over to the next.

    How it is measured:
        E = largest log10 |delta_l| / |delta_out| over the trunk, the sites that carry more than half of the gradient's
        flow; delta_l is dLoss/d(output of l), the L2 norm per sample. From a weight layer on to the next normalisation
        nothing counts: it divides by the scale of what it reads, so the gradient is large there where that is small,
        and a step that is too large makes it larger. `mild`, `serious`, `fatal` in decades; without an optimizer at
        most serious. Over several sampled steps the median of the last third counts; when only the start was bad, the
        finding is mild. Gradients that are NaN or infinite are the business of `nonfinite_value`.

    When it is no problem:
        Half a decade up or down is luck at width 64. Batch norm without shortcuts grows by a factor 1.2 a layer: 12
        layers of it are fine, 20 train twice to three times more slowly, 30 ten times. A class token that starts at
        zero in front of a layer norm has a gradient 10^4 times that of the output, and is gone after one step.

    What helps first:
        An initialisation that fits the activation; a normalisation in each layer; a smaller scale on the branches of
        a residual net (1 / sqrt(number of blocks)); clipping by norm against single jumps.

    Source:
        Pascanu, Mikolov and Bengio 2013; Poole et al. 2016; Yang et al. 2019 for batch norm; Arora, Li and Lyu 2019 for
        weights in front of a normalisation. Bounds: docs/calibration.md; docs/architectures.md.
    """
    bounds = (mild, serious, fatal)
    yield from worst(found for way in needs_depth(run) for found in _judge(way, bounds))


def _judge(run: Run, bounds: Sequence[float]) -> Iterator[Finding]:
    """At most one finding: how bad it is at the end, or that it was serious at the start."""
    whole = course(run, lambda step: grown(run, step))
    if whole is None:
        return
    most: Severity = "serious" if adaptive(run) is None else "fatal"
    start, end = (milder(grade(value, bounds), most) for value in (whole.start, whole.end))
    first, last = span(whole, bounds[0])
    if end is not None:
        evidence = [Evidence("log10_gain", whole.end, "decades", bound_of(end, bounds)), judged_at(whole.last_step)]
        text = _summary(run, whole.last_step, whole.end)
        yield Finding("exploding_gradient", end, _places(run, whole.last_step), first, last, evidence, text)
    elif start is not None and RANK[start] >= RANK["serious"]:
        text = (
            f"at the start the gradient grew by {decades(whole.start, signed=False)} decades on its way to the input "
            f"({start}); recovered, now {decades(whole.end, signed=False)}"
        )
        evidence = [Evidence("log10_gain at the start", whole.start, "decades", bounds[0]), judged_at(whole.first_step)]
        yield Finding("exploding_gradient", "mild", _places(run, whole.first_step), first, last, evidence, text)


def grown(run: Run, step: Step) -> float | None:
    """E: decades that the gradient grows on the trunk at most; None where it was not measured or is not finite."""
    return max((gain for _, gain in _gains(run, step)), default=None)


def _loudest(run: Run, step: Step) -> int:
    return max(_gains(run, step), key=lambda pair: pair[1])[0]


def _gains(run: Run, step: Step) -> list[tuple[int, float]]:
    """The finite part of the profile, without the sites whose scale the next normalisation takes away."""
    read = normalised(run.sites, step)
    return [(i, gain) for i, gain in through_depth(run.sites, step) if math.isfinite(gain) and i not in read]


def _places(run: Run, step: Step) -> list[Where]:
    book = ledger(run.sites, step)
    site = _loudest(run, step)
    large = [i for i, part in book.by_site if part >= 0.25 * book.total] if book is not None and book.total > 1 else []
    named = large[:2] if len(large) <= 2 else []
    return [where(run.sites[i]) for i in (site, *(i for i in named if i != site))]


def _summary(run: Run, step: Step, value: float) -> str:
    site = _loudest(run, step)
    assert step.output is not None
    count = over_layers(layers(run.sites, step, site))
    way = f"from {run.sites[step.output].site or 'the output'} to {place(run.sites[site])}"
    return f"{way} the gradient grows by {decades(value, signed=False)} decades ({times(value)}){count}"
