"""The gradient grows on its way from the output to the first layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median_high

from gradwell.measure.flow import ledger
from gradwell.measure.profile import course, layers, log10_gain, normalised, through_depth, trunk
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades, times
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity, Where
from gradwell.symptoms._curve import has_gained
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
ADAPTIVE_SCALE = 0.75

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
    serious: float = 2.5,
    fatal: float = 4.2,
    adaptive_fatal: float = 3.6,
    adaptive_scale: float = ADAPTIVE_SCALE,
) -> Iterator[Finding]:
    """The gradient grows on its way from the output to the first layers.

    What it does to training:
        The first layers take steps far too large, or the one learning rate that they bear is far too small for the
        last layers; the loss jumps, becomes NaN, or stalls. Adaptive optimizers rescale each layer's step, and so bear
        outputs that are merely too large somewhat better. They do not help where the net is chaotic (near inputs get
        unrelated outputs): what one batch teaches does not carry over to the next.

    How it is measured:
        E = largest log10 |delta_l| / |delta_out| over the trunk, the sites that carry more than half of the gradient's
        flow; delta_l is dLoss/d(output of l), the L2 norm per sample. From a weight layer on to the next normalisation
        nothing counts: it divides by the scale of what it reads, so the gradient is large there where that is small,
        and a step that is too large makes it larger. Nor does what only makes up for a loss: where the outputs have
        become smaller before l and larger again behind it, other than by large weights, these decades are taken off.
        What is left has two parts: the growth of the outputs from l on (their RMS), and that of |output||delta|, which
        is chaos. Under an adaptive optimizer the first part counts `adaptive_scale` times. `mild`, `serious`, `fatal`
        (under an adaptive optimizer `adaptive_fatal`) in decades; without an optimizer at most serious. Over several
        sampled steps the median of the last third counts, over fewer than six the higher median of all (the bounds are
        those of a first step); when only the start was bad, the finding is mild,
        unless it was so at the first step and the loss has not fallen by a fifth since: then the steps have wrecked the
        net. Gradients that are NaN or infinite are the business of `nonfinite_value`.

    When it is no problem:
        Half a decade up or down is luck at width 64. Batch norm without shortcuts grows by a factor 1.2 a layer: 12
        layers of it are fine, 20 train twice to three times more slowly, 30 ten times. A class token that starts at
        zero in front of a layer norm has a gradient 10^4 times that of the output, and is gone after one step. The
        same where small weights let the signal fade and some later sum or mean is divided by its own size.

    What helps first:
        An initialisation that fits the activation; a normalisation in each layer; a smaller scale on the branches of
        a residual net (1 / sqrt(number of blocks)); clipping by norm against single jumps.

    Source:
        Pascanu, Mikolov and Bengio 2013; Poole et al. 2016; Yang et al. 2019 for batch norm; Arora, Li and Lyu 2019 for
        weights in front of a normalisation. Bounds: docs/calibration.md; docs/architectures.md.
    """
    rescaled = adaptive(run)
    bounds = (mild, serious, adaptive_fatal if rescaled else fatal)
    share = adaptive_scale if rescaled else 1.0
    yield from worst(found for way in needs_depth(run) for found in _judge(way, bounds, share))


def _judge(run: Run, bounds: Sequence[float], share: float) -> Iterator[Finding]:
    """At most one finding: how bad it is at the end, or that it was serious at the start."""
    least = min(bounds)
    if share <= 1 and not any(gain >= least for step in run.steps for _, gain in through_depth(run.sites, step)):
        return  # no more counts than what it grows
    whole = course(run, lambda step: grown(run, step, scale=share), of_few=median_high)
    if whole is None:
        return
    most: Severity = "serious" if adaptive(run) is None else "fatal"
    start, end = (milder(grade(value, bounds), most) for value in (whole.start, whole.end))
    first, last = span(whole, bounds[0])
    if end is not None:
        evidence = [Evidence("log10_gain", whole.end, "decades", bound_of(end, bounds)), judged_at(whole.last_step)]
        text = _summary(run, whole.last_step, share)
        yield Finding("exploding_gradient", end, _places(run, whole.last_step, share), first, last, evidence, text)
    elif start is not None and RANK[start] >= RANK["serious"]:
        step, value = whole.values[0]
        at_once = milder(grade(value, bounds), most)
        wrecked = at_once is not None and RANK[at_once] >= RANK["serious"] and not has_gained(run)
        if not wrecked:
            step, value, at_once = whole.first_step, whole.start, start
        now = decades(whole.end, signed=False)
        since = f"now {now} decades, and the loss is still where it began" if wrecked else f"recovered, now {now}"
        text = (
            f"at the start the gradient grew by {decades(value, signed=False)} decades on its way to the input "
            f"({at_once}); {since}"
        )
        evidence = [Evidence("log10_gain at the start", value, "decades", bounds[0]), judged_at(step)]
        severity: Severity = at_once if wrecked and at_once else "mild"
        yield Finding("exploding_gradient", severity, _places(run, step, share), first, last, evidence, text)


def grown(run: Run, step: Step, *, scale: float = 1.0) -> float | None:
    """E: decades that the gradient grows on the trunk at most, the growth of the outputs counted `scale` times; None
    where it was not measured or is not finite.
    """
    return max((counted for _, counted in _growth(run, step, scale)), default=None)


def _loudest(run: Run, step: Step, scale: float) -> tuple[int, float]:
    """The site where it grows most, and the decades that count."""
    return max(_growth(run, step, scale), key=lambda pair: pair[1])


def _growth(run: Run, step: Step, scale: float) -> list[tuple[int, float]]:
    """The finite part of the profile, without the sites whose scale the next normalisation takes away and without what
    the outputs get back behind a site.

    Got back is what makes up for a fall since the largest output before, unless large weights do it: then one step is
    far too large for the small ones. Activations, which squash by design, are compared among themselves.
    """
    sites = run.sites
    read, by_weights, sizes = normalised(sites, step), _by_weights(run, step), step.all_at("act_rms", len(sites))
    assert step.output is not None
    out = _size(sizes[step.output])
    largest = {True: -math.inf, False: -math.inf}
    found = []
    for i, gain in through_depth(sites, step):
        if i in read or not math.isfinite(gain):
            continue
        size, squashes = _size(sizes[i]), sites[i].role == "activation"
        if size is None or out is None:
            found.append((i, gain))
            continue
        largest[squashes] = max(largest[squashes], size)
        back = max(0.0, min(largest[squashes], out) - size - by_weights.get(i, 0.0))
        beyond = max(0.0, out - largest[squashes])
        found.append((i, gain - back - (1 - scale) * beyond))
    return found


def _by_weights(run: Run, step: Step) -> dict[int, float]:
    """Decades by which weight layers behind each site of the trunk make the gradient grow."""
    found: dict[int, float] = {}
    total = 0.0
    gains = step.all_at("leaf_gain", len(run.sites))
    for i in reversed(trunk(run.sites, step)):
        found[i] = total
        gain = gains[i]
        if run.sites[i].role == "weight" and gain is not None and math.isfinite(gain):
            total += max(0.0, gain)
    return found


def _size(rms: float | None) -> float | None:
    """log10 of the RMS of a site's outputs; None where that says nothing."""
    return math.log10(rms) if rms is not None and 0 < rms < math.inf else None


def _places(run: Run, step: Step, scale: float) -> list[Where]:
    book = ledger(run.sites, step)
    site, _ = _loudest(run, step, scale)
    large = [i for i, part in book.by_site if part >= 0.25 * book.total] if book is not None and book.total > 1 else []
    named = large[:2] if len(large) <= 2 else []
    return [where(run.sites[i]) for i in (site, *(i for i in named if i != site))]


def _summary(run: Run, step: Step, scale: float) -> str:
    sites = run.sites
    site, counted = _loudest(run, step, scale)
    gain = log10_gain(step, site)
    assert step.output is not None
    assert gain is not None
    count = over_layers(layers(sites, step, site))
    way = f"from {sites[step.output].site or 'the output'} to {place(sites[site])}"
    part = f"; {decades(counted, signed=False)} of them count" if gain - counted > 0.05 else ""
    return f"{way} the gradient grows by {decades(gain, signed=False)} decades ({times(gain)}){count}{part}"
