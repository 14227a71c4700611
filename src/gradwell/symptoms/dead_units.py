"""Units that are zero for every sample of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwell.errors import NotMeasurable
from gradwell.measure.once import once_a_step
from gradwell.measure.profile import Course, by_way, course, in_order
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Site, Step
from gradwell.records.verdict import Evidence, Finding
from gradwell.symptoms._units import fractions, hidden, on_trunk
from gradwell.symptoms._words import bound_of, grade, judged_at, needs_steps, place, span, where
from gradwell.symptoms._words import worst as worst_of

ORDER = 5
WHOLE = 0.999
"""A layer is wholly dead from here on (a float that should be 1)."""

SICK = (
    NetConfig(depth=4, init="he", bias_value=-4.0),
    NetConfig(depth=3, init="he", input_shift=-30.0, bias_value=-20.0),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(depth=12, init="he"),
    NetConfig(depth=30, init="he"),
    NetConfig(depth=4, activation="tanh"),
    NetConfig(kind="residual", depth=12, norm="layer"),
)


def dead_units(
    run: Run, *, mild: float = 0.7, serious: float = 0.97, fatal: float = WHOLE, fewest_samples: float = 8.0
) -> Iterator[Finding]:
    """Units that are zero for every sample of the batch, so that they give nothing and learn nothing.

    What it does to training:
        A ReLU unit whose pre-activation is negative on all data has no gradient and stays so for good: the layer
        is narrower than it looks. A layer whose units are all dead cuts the net in two: nothing before it learns.

    How it is measured:
        For each hidden activation that can die (ReLU and its kin; a fact of the shelf of activations) the share of
        units that are exactly 0 for the whole batch (channels, for images). The worst layer counts: `mild`, `serious`
        and `fatal` (all of them) where nothing leads round it; in a branch at most serious. Below `fewest_samples`
        samples only a wholly dead layer is told. Over several sampled steps the median of the last third counts.

    When it is no problem:
        In deep ReLU nets samples become alike with depth, and up to two thirds of a layer's units are off for one
        batch by this alone; they come back as the weights move. That is below `mild`. A layer whose input is zero (a
        query that starts at zero) gives zeros and is not judged.

    What helps first:
        A lower learning rate or warmup when they die during training; LeakyReLU or GELU; standardised inputs;
        biases of zero.

    Source:
        Maas, Hannun and Ng 2013; Lu et al. 2020 (dying ReLU). Bounds: docs/calibration.md.
    """
    needs_steps(run)
    if not any(hidden(run.sites, step, "CAN_DIE") for step in run.steps):
        raise NotMeasurable("no hidden activation can die: there is no ReLU or kin of it.")
    bounds = (mild, serious, fatal)
    ways = by_way(run) or [run]  # a GAN's two nets take turns
    judged = [whole for way in ways if (whole := course(way, lambda step: worst(run, step)[1])) is not None]
    if not judged:
        raise NotMeasurable("the outputs of the activations were not measured.")
    yield from worst_of(found for whole in judged for found in _judge(run, whole, bounds, fewest_samples))


def _judge(run: Run, judged: Course, bounds: Sequence[float], fewest_samples: float) -> Iterator[Finding]:
    """At most one finding about the steps of one way of the gradient."""
    value = judged.end
    if (judged.last_step.batch or 0) < fewest_samples and value < WHOLE:
        raise NotMeasurable(f"a batch of {judged.last_step.batch} is too small to tell a dead unit from one at rest.")
    severity = grade(value, bounds)
    index, _ = worst(run, judged.last_step)
    if severity is None or index is None:
        return
    if severity == "fatal" and index not in on_trunk(run.sites, judged.last_step):
        severity = "serious"
    found = [pair for pair in shares(run.sites, judged.last_step) if pair[1] >= bounds[0]]
    found.sort(key=lambda pair: -pair[1])
    first, last = span(judged, bounds[0])
    text = f"{100 * value:.0f} % of the units of {place(run.sites[index])} are 0 for every sample of the batch"
    others = f"; {len(found)} layers have {100 * bounds[0]:.0f} % or more" if len(found) > 1 else ""
    bound = bound_of(severity, bounds)
    evidence = [Evidence("dead_frac", value, "of the units", bound), judged_at(judged.last_step)]
    places = [where(run.sites[i]) for i, _ in found[:3]] or [where(run.sites[index])]
    yield Finding("dead_units", severity, places, first, last, evidence, text + others)


def worst(run: Run, step: Step) -> tuple[int | None, float | None]:
    """The layer with most dead units, those on the trunk first."""
    return _worst(run.sites, step)


@once_a_step
def _worst(sites: Sequence[Site], step: Step) -> tuple[int | None, float | None]:
    found = shares(sites, step)
    if not found:
        return None, None
    most = max(share for _, share in found)
    places = [i for i, share in found if share == most]
    whole = on_trunk(sites, step) if len(places) > 1 else ()
    return next((i for i in places if i in whole), places[0]), most


@once_a_step
def shares(sites: Sequence[Site], step: Step) -> list[tuple[int, float]]:
    """(index, dead share) of each activation that can die and is fed; none is judged behind a layer of zeros."""
    found = fractions(sites, step, "dead_frac", "CAN_DIE")
    sizes = step.all_at("act_rms", len(sites))
    if 0 not in sizes:
        return found
    known, fed, judged = dict(found), True, []
    for i in in_order(sites, step):
        if i in known and fed:
            judged.append((i, known[i]))
        if sites[i].role in ("weight", "norm"):
            fed = sizes[i] != 0
    return judged
