"""The depth profile of a sampled step: the trunk, log10 gains along it, what is judged over several steps.

Pure functions of records. Sites are told by their index in the columns. The trunk are the sites that carry more than
half of the gradient's flow from the deepest site (the source) to the model's output: on a chain all of them, in a
residual net what the shortcuts do not pass by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import median_low

import msgspec

from gradwell.measure.once import once_a_header, once_a_step
from gradwell.records.numbers import log10
from gradwell.records.run import Column, Header, Run, Site, Step

CARRIES = 0.5
"""Share of the flow above which a site belongs to the trunk."""
WHOLE = 0.95
"""Share of the flow from which on nothing leads round a site."""
MEAN = -0.08
"""Decades that a mean takes at least: one over two positions takes 0.15, rounding nothing."""
SLACK = 0.01
"""What the flow of calls side by side may be above 1 by rounding."""
RECURRENT = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
"""Recurrent layers: role "other", but what they take is lost, unlike what pooling takes."""
FEWEST_CALLS = 8
"""Calls of one layer from which on they count as time."""
FEWEST = 6
"""Sampled steps from which on the start and the end of a run are judged apart."""


def log10_gain(step: Step, index: int) -> float | None:
    """log10 |delta here| / |delta at the model's output|: -inf for exact zero, nan where a size is not finite."""
    if step.output is None:
        return None
    return _above(log10(step.at("delta_norm", index)), log10(step.at("delta_norm", step.output)))


@once_a_step
def log10_gains(sites: Sequence[Site], step: Step) -> Column:
    """`log10_gain` of every site."""
    if step.output is None:
        return [None] * len(sites)
    sizes = step.all_at("delta_norm", len(sites))
    output = log10(sizes[step.output])
    if output is None or not math.isfinite(output):
        return [_above(log10(size), output) for size in sizes]
    return [
        math.log10(size) - output if size is not None and 0 < size < math.inf else _above(log10(size), output)
        for size in sizes
    ]


def _above(here: float | None, output: float | None) -> float | None:
    if here is None or output is None:
        return None
    if not math.isfinite(output) or here == math.inf:
        return math.nan
    return here - output


@once_a_step
def in_order(sites: Sequence[Site], _step: Step) -> list[int]:
    """Indices of the sites in the order of the forward pass."""
    order = [site.order for site in sites]
    return sorted(range(len(sites)), key=order.__getitem__)


@once_a_step
def by_role(sites: Sequence[Site], step: Step) -> dict[str, list[int]]:
    """Indices of the sites of each role, in the order of the forward pass."""
    found: dict[str, list[int]] = {"weight": [], "activation": [], "norm": [], "source": [], "loss": [], "other": []}
    for i in in_order(sites, step):
        found.setdefault(sites[i].role, []).append(i)
    return found


@once_a_step
def between(sites: Sequence[Site], step: Step) -> list[int]:
    """Sites from the deepest one to the output, both included, in forward order; empty without such a path."""
    source, output = step.source, step.output
    if source is None or output is None or source == output:
        return []
    order, flow = in_order(sites, step), step.all_at("flow", len(sites))
    way = order[order.index(source) : order.index(output) + 1]
    return [i for i in way if flow[i] or i in (source, output)]


@once_a_step
def trunk(sites: Sequence[Site], step: Step) -> list[int]:
    """The sites between source and output that carry more than half of the flow, in forward order."""
    ends, flow = (step.source, step.output), step.all_at("flow", len(sites))
    return [i for i in between(sites, step) if (flow[i] or 0.0) > CARRIES or i in ends]


@once_a_step
def profile(sites: Sequence[Site], step: Step) -> list[tuple[int, float]]:
    """(index, log10 gain) of the trunk, in forward order; only what was measured."""
    gains = log10_gains(sites, step)
    return [(i, gain) for i in trunk(sites, step) if (gain := gains[i]) is not None]


@once_a_step
def normalised(sites: Sequence[Site], step: Step) -> set[int]:
    """Sites of the trunk whose scale a later normalisation takes away: from a weight layer on to the next of them.

    So does one that stands right behind another: rows of zeros are zeros behind the first as well. And one that is
    called on several taps, whose calls together carry the trunk's flow.
    """
    if not by_role(sites, step)["norm"]:
        return set()
    way = _with_taps(sites, step)
    last = max((n for n, i in enumerate(way) if sites[i].role == "norm"), default=0)
    found: set[int] = set()
    free = True
    for i in way[:last]:
        if sites[i].role in ("norm", "weight", "source"):
            free = sites[i].role != "norm"
        if free:
            found.add(i)
    read = False
    for i in reversed(way):
        if read:
            found.add(i)
        if sites[i].role in ("norm", "weight", "activation"):
            read = sites[i].role == "norm"
    return found


def _with_taps(sites: Sequence[Site], step: Step) -> list[int]:
    """The trunk, and the calls side by side of one normalisation that carry more than half of the flow together."""
    carried: dict[str, float] = {}
    for i in between(sites, step):
        if sites[i].role == "norm":
            carried[sites[i].site] = carried.get(sites[i].site, 0.0) + (step.at("flow", i) or 0.0)
    taps = {name for name, flow in carried.items() if CARRIES < flow < 1 + SLACK}  # calls in a row carry it each
    on_trunk = set(trunk(sites, step))
    return [i for i in between(sites, step) if i in on_trunk or (sites[i].role == "norm" and sites[i].site in taps)]


@once_a_step
def loops(sites: Sequence[Site], step: Step) -> dict[str, list[int]]:
    """Layers that a loop over time steps calls again and again: the indices of their calls, first call first.

    Recurrent layers and cells; and a Linear on the trunk that follows itself with nothing but activations between, its
    input wider or narrower than its output, since then each call must have got a fresh input beside its own state.
    """
    if len({site.site for site in sites}) > len(sites) - (FEWEST_CALLS - 1):  # no layer can have as many calls
        return {}
    order = [i for i in in_order(sites, step) if step.at("delta_norm", i) is not None]
    calls: dict[str, list[int]] = {}
    for i in order:
        if sites[i].kind in RECURRENT:
            calls.setdefault(sites[i].site, []).append(i)
    way = set(trunk(sites, step))
    layers = [i for i in order if i in way and sites[i].role != "activation"]
    for below, above in pairwise(layers):
        a, b = sites[below], sites[above]
        if a.kind == "Linear" and a.site == b.site and a.fan_in != a.fan_out:
            calls.setdefault(a.site, [below]).append(above)
    return {name: found for name, found in calls.items() if len(found) >= FEWEST_CALLS}


@once_a_step
def through_depth(sites: Sequence[Site], step: Step) -> list[tuple[int, float]]:
    """The profile without time: of a loop over time steps only what belongs to the last step."""
    if not loops(sites, step):
        return profile(sites, step)
    orders = [(sites[calls[0]].order, sites[calls[-1]].order) for calls in loops(sites, step).values()]
    return [
        (i, gain) for i, gain in profile(sites, step) if not any(low <= sites[i].order < high for low, high in orders)
    ]


@once_a_step
def pooled(sites: Sequence[Site], step: Step) -> dict[int, float]:
    """Decades (0 or negative) that pooling and its kin take between each site and the output.

    An average over P positions divides the gradient's norm by sqrt(P) and does no harm: weight gradients add up over
    the positions. Pooling modules count, and one mean written as a function. Recurrent layers do not.
    """
    taken: dict[int, float] = {}
    total = 0.0
    mean_above, by_mean = _mean(sites, step)
    harmful = ("weight", "activation", "norm")
    harmless = {i for role, found in by_role(sites, step).items() if role not in harmful for i in found}
    if mean_above is None and not harmless:
        return dict.fromkeys(between(sites, step), 0.0)
    flows, gains = step.all_at("flow", len(sites)), step.all_at("leaf_gain", len(sites))
    for i in reversed(between(sites, step)):
        if i == mean_above:
            total += by_mean
        taken[i] = min(total, 0.0)
        flow, gain = flows[i], gains[i]
        pools = i in harmless and sites[i].kind not in RECURRENT
        if pools and flow and gain is not None and math.isfinite(gain):
            total += flow * gain
    return taken


def _mean(sites: Sequence[Site], step: Step) -> tuple[int | None, float]:
    """The trunk site behind which a function averages over positions, and the decades that it takes.

    `x.mean(1)` is no site; it shows as a gap of exactly -1/2 log10(P), P a whole number, between what one site sends
    on and what arrives at the one before. A product with a number can look the same, so that only one gap counts.
    """
    found: list[tuple[float, int]] = []
    sizes, gains = log10_gains(sites, step), step.all_at("leaf_gain", len(sites))
    for below, above in pairwise(trunk(sites, step)):
        arrived, there, gain = sizes[below], sizes[above], gains[above]
        if arrived is None or there is None or gain is None:
            continue
        gap = arrived - there - gain
        if not -math.inf < gap < MEAN:
            continue
        positions = 10 ** min(-2 * gap, 9.0)
        if positions > 1.5 and abs(positions / round(positions) - 1) < 1e-4:
            found.append((gap, below))
    gap, site = min(found, default=(0.0, -1))
    return (site, gap) if found else (None, 0.0)


def layers(sites: Sequence[Site], step: Step, index: int) -> int:
    """Weight layers on the trunk from a site to the output, the output's own not counted."""
    way = trunk(sites, step)
    return sum(sites[i].role == "weight" for i in way[way.index(index) :]) - 1 if index in way else 0


@once_a_step
def chain(sites: Sequence[Site], step: Step) -> list[int]:
    """The longest row of weight layers on the trunk that nothing leads round: each carries (nearly) all the flow."""
    flow = step.all_at("flow", len(sites))
    rows: list[list[int]] = [[]]
    for i in between(sites, step):
        if sites[i].role not in ("weight", "activation"):
            continue
        if (flow[i] or 0.0) >= WHOLE:
            rows[-1].append(i)
        elif rows[-1]:
            rows.append([])
    return [i for i in max(rows, key=len) if sites[i].role == "weight"]


@once_a_step
def last_hidden(sites: Sequence[Site], step: Step) -> int | None:
    """The last activation before the output on the trunk; where there is none, the last weight before it."""
    way = trunk(sites, step)
    for role in ("activation", "weight"):
        found = next((i for i in reversed(way) if sites[i].role == role and i != step.output), None)
        if found is not None:
            return found
    return None


@once_a_step
def beyond_output(sites: Sequence[Site], step: Step) -> list[int]:
    """Sites after the model's last weight layer, in forward order, without the loss."""
    if step.output is None:
        return []
    order = in_order(sites, step)
    after = order[order.index(step.output) + 1 :]
    return [i for i in after if sites[i].role != "loss" and step.at("delta_norm", i) is not None]


def by_way(run: Run) -> list[Run]:
    """The run apart by the way that the gradient takes: a GAN's two losses have two trunks.

    Steps without a way are left out, and ways that fewer than a tenth of the steps take (unless no other has more), or
    a single one of many: a mixture whose first expert gets a sample once in a while.
    """
    ways: dict[tuple[int, int], list[Step]] = {}
    for step in run.steps:
        if step.source is not None and step.output is not None and step.source != step.output:
            ways.setdefault((step.source, step.output), []).append(step)
    if len(ways) == 1 and len(next(iter(ways.values()))) == len(run.steps):
        return [run]
    most = max(map(len, ways.values()), default=0)
    enough = min(most, max(len(run.steps) / 10, 2 if len(run.steps) >= FEWEST else 1))
    return [msgspec.structs.replace(run, steps=steps) for steps in ways.values() if len(steps) >= enough]


class Course(msgspec.Struct, frozen=True):
    """A quantity over the sampled steps: its median at the start and at the end, and the step that stands for each."""

    start: float
    end: float
    first_step: Step
    last_step: Step
    parted: bool
    """True where start and end are different steps."""
    values: list[tuple[Step, float]]


def course(
    run: Run,
    quantity: Callable[[Step], float | None],
    *,
    of_few: Callable[[Iterable[float]], float] = median_low,
) -> Course | None:
    """The quantity over a run, None where no step has it. Start: median of the first (at most 5) steps, end: median of
    the last third; with fewer than 6 steps both are the median of all, `of_few`. Infinite values count, nan does not.
    """
    known = [(step, value) for step in run.steps if (value := quantity(step)) is not None and not math.isnan(value)]
    if not known:
        return None
    if len(known) == 1:
        (step, value), *_ = known
        return Course(value, value, step, step, parted=False, values=known)
    parted = len(known) >= FEWEST
    first = known[:5] if parted else known
    last = known[-(len(known) // 3) :] if parted else known
    median = median_low if parted else of_few
    (begin, start), (finish, end) = _middle(first, median), _middle(last, median)
    return Course(start, end, begin, finish, parted, known)


def _middle(values: Sequence[tuple[Step, float]], median: Callable[[Iterable[float]], float]) -> tuple[Step, float]:
    """The low (or high) median and the latest step that has it: a measured value, also among infinite ones."""
    middle = median(value for _, value in values)
    return next(step for step, value in reversed(values) if value == middle), middle


def weight_of(run: Run, index: int) -> int | None:
    """Index of the weight of a site: the first parameter with two axes, else the first."""
    return weights(run.header)[index]


@once_a_header
def weights(header: Header) -> list[int | None]:
    """The weight of each site; a parameter may be a site by its own name."""
    vectors: dict[str, int] = {}
    matrices: dict[str, int] = {}
    for i, param in reversed(list(enumerate(header.params))):  # the first one of each name stays
        known = matrices if len(param.shape) >= 2 else vectors
        known[param.site] = known[param.name] = i
    found = vectors | matrices
    return [found.get(site.site) for site in header.sites]
