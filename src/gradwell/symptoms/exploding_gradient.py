"""The gradient grows on its way from the output to the first layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradwell.measure.flow import ledger
from gradwell.measure.profile import course, layers, profile
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades, times
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity
from gradwell.symptoms._words import adaptive, grade, layers_word, milder, needs_depth, place, span, where

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
    mild: float = 2.0,
    serious: float = 3.5,
    fatal: float = 6.0,
    adaptive_mild: float = 2.5,
    adaptive_serious: float = 5.0,
    adaptive_fatal: float = 8.0,
) -> Iterator[Finding]:
    """The gradient grows on its way from the output to the first layers.

    What it does to training:
        The first layers take steps far too large, or the one learning rate that they bear is far too small for the
        last layers; the loss jumps, becomes NaN, or stalls. Adaptive optimizers rescale each layer's step and forgive
        more, but a net whose gradient explodes is chaotic: near inputs get unrelated outputs, and what it learns does
        not carry over to the next batch.

    How it is measured:
        E = largest log10 |delta_l| / |delta_out| over the trunk, the sites that carry more than half of the gradient's
        flow; delta_l is dLoss/d(output of l), the L2 norm per sample. Bounds in decades: `mild`, `serious`, `fatal`
        for SGD and its kin, `adaptive_...` for adaptive optimizers and where no optimizer was seen (then at most
        serious). Over several sampled steps the median of the last third counts; when only the start was bad, the
        finding is mild. Gradients that are already NaN or infinite are the business of `nonfinite_value`.

    When it is no problem:
        Half a decade up or down is luck at width 64. Batch norm without shortcuts grows by a factor 1.2 a layer and
        trains well up to about 30 layers, since each weight's step is divided by its own size again.

    What helps first:
        An initialisation that fits the activation; a normalisation in each layer; a smaller scale on the branches of
        a residual net (1 / sqrt(number of blocks)); clipping by norm against single jumps.

    Source:
        Pascanu, Mikolov and Bengio 2013; Poole et al. 2016; Yang et al. 2019 for batch norm. Bounds:
        docs/calibration.md.
    """
    steps = needs_depth(run)
    whole = course(run, lambda step: grown(run, step))
    if whole is None:
        return
    known = adaptive(run.optimizer)
    bounds = (mild, serious, fatal) if known is False else (adaptive_mild, adaptive_serious, adaptive_fatal)

    def judge(value: float) -> Severity | None:
        severity = grade(value, bounds)
        return milder(severity, "serious") if known is None else severity

    start, end = judge(whole.start), judge(whole.end)
    first, last = span(whole, bounds[0])
    if end is not None:
        bound = bounds[("mild", "serious", "fatal").index(end)]
        evidence = [Evidence("log10_gain", whole.end, "decades", bound)]
        text = _summary(run, whole.last_step, whole.end)
        if known is None and (harder := grade(whole.end, (mild, serious, fatal))) != end:
            text += f"; judged for an adaptive optimizer, under plain SGD it would be {harder}"
        yield Finding("exploding_gradient", end, _places(run, whole.last_step), first, last, evidence, text)
    elif start is not None and RANK[start] >= RANK["serious"] and len(steps) > 1:
        text = (
            f"at the start the gradient grew by {decades(whole.start, signed=False)} decades on its way to the input "
            f"({start}); recovered, now {decades(whole.end, signed=False)}"
        )
        evidence = [Evidence("log10_gain at the start", whole.start, "decades", bounds[0])]
        yield Finding("exploding_gradient", "mild", _places(run, whole.first_step), first, last, evidence, text)


def grown(run: Run, step: Step) -> float | None:
    """E: decades that the gradient grows on the trunk at most; None where it was not measured or is not finite."""
    gains = [gain for _, gain in profile(run.sites, step) if math.isfinite(gain)]
    return max(gains) if gains else None


def _worst(run: Run, step: Step) -> int:
    gains = [(i, gain) for i, gain in profile(run.sites, step) if math.isfinite(gain)]
    return max(gains, key=lambda pair: pair[1])[0]


def _places(run: Run, step: Step) -> list:
    book = ledger(run.sites, step)
    worst = _worst(run, step)
    large = [i for i, part in book.by_site if part >= 0.25 * book.total] if book is not None and book.total > 1 else []
    named = large[:2] if len(large) <= 2 else []
    return [where(run.sites[i]) for i in (worst, *(i for i in named if i != worst))]


def _summary(run: Run, step: Step, value: float) -> str:
    worst = _worst(run, step)
    assert step.output is not None
    count = layers_word(layers(run.sites, step, worst))
    way = f"from {run.sites[step.output].site or 'the output'} to {place(run.sites[worst])}"
    return f"{way} the gradient grows by {decades(value, signed=False)} decades ({times(value)}), {count}"
