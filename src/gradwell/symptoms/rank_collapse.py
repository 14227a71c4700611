"""All samples look alike in the last hidden layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import Course, course, last_hidden, trunk
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity
from gradwell.symptoms._words import (
    adaptive,
    bound_of,
    grade,
    judged_at,
    layers_word,
    needs_depth,
    place,
    span,
    where,
    worst,
)

ORDER = 6

SICK = (
    NetConfig(depth=24),
    NetConfig(depth=20, activation="sigmoid"),
    NetConfig(depth=12, input_shift=1000.0, input_scale=0.1),
    NetConfig(depth=3, init="he", input_shift=10.0),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(depth=12, init="he"),
    NetConfig(depth=20, activation="tanh", init="lecun"),
    NetConfig(depth=12, norm="batch"),
    NetConfig(depth=3, norm="batch", input_shift=10.0),
    NetConfig(kind="residual", depth=12, norm="layer"),
    NetConfig(kind="transformer", depth=4, width=32),
)


def rank_collapse(
    run: Run,
    *,
    mild: float = 4.0,
    serious: float = 7.0,
    fatal: float = 12.0,
    input_mild: float = 1.4,
    input_serious: float = 1.9,
    input_fatal: float = 3.0,
    least_input: float = 1e-10,
) -> Iterator[Finding]:
    """All samples look alike in the last hidden layer, so that the output hardly depends on the input.

    What it does to training:
        The net first learns the average answer and then stands still, until the differences between samples have grown
        from almost nothing; below the resolution of the number format they never do. Where the inputs themselves share
        a large mean, the loss is so steep along it that only tiny steps are stable, too small for everything else.

    How it is measured:
        C = -log10 of the spread at the last hidden site of the trunk: variance between the samples of the batch over
        the mean square. `mild`, `serious`, `fatal` in decades; float32 ends at about 14. C that is there from the
        first layer on (the smaller of the two) comes with the inputs and costs much more: `input_mild`,
        `input_serious`, `input_fatal`. Over several sampled steps the median of the last third counts; when only the
        start was bad, the finding is mild. Without an optimizer at most serious.

    When it is no problem:
        A task whose samples really are alike (`least_input`: with a spread below it right after the first layer
        nothing is measured). Language models, where all sequences of a batch share most of their statistics, have a
        spread of a few per cent.

    What helps first:
        Inputs with their mean taken off; biases of zero; a critical initialisation; batch norm, which restores the
        spread in each layer; shortcuts; for attention a shortcut and a scale of 1 / sqrt(depth) on its branch.

    Source:
        Schoenholz et al. 2017; LeCun et al. 1998 for inputs; Daneshmand et al. 2020; Dong, Cordonnier and Loukas 2021.
        Bounds: docs/calibration.md.
    """
    ways = needs_depth(run)
    steps = [step for way in ways for step in way.steps]
    if all((step.batch or 1) < 2 for step in steps):
        raise NotMeasurable("a batch of one sample has no spread; use a batch of at least 2.")
    if all(_first(step) > -math.log10(least_input) for step in steps):
        raise NotMeasurable("the samples of the batch do not differ after the first layer; use a batch of real data.")
    known = [value for step in steps if (value := collapsed(run, step)) is not None]
    if not known:
        raise NotMeasurable("the spread between the samples was not measured in the last hidden layer.")
    whole_bounds, given_bounds = (mild, serious, fatal), (input_mild, input_serious, input_fatal)
    if max(known) < min(*whole_bounds, *given_bounds):
        return
    found = [f for way in ways for f in _judge(way, partial(collapsed, way), whole_bounds, from_input=False)]
    found += [f for way in ways for f in _judge(way, partial(given, way), given_bounds, from_input=True)]
    yield from worst(found)


def _judge(
    run: Run, quantity: Callable[[Step], float | None], bounds: Sequence[float], *, from_input: bool
) -> Iterator[Finding]:
    """At most one finding about C (or its part that the inputs bring along)."""
    whole = course(run, quantity)
    severity = _grade(whole, bounds)
    if whole is None or severity is None:
        return
    if adaptive(run) is None and RANK[severity] > RANK["serious"]:
        severity = "serious"
    yield from _finding(run, whole, severity, bounds, from_input=from_input)


def _grade(whole: Course | None, bounds: Sequence[float]) -> Severity | None:
    """The severity at the end; mild where only the start was serious."""
    if whole is None:
        return None
    start, end = grade(whole.start, bounds), grade(whole.end, bounds)
    return end or ("mild" if start is not None and RANK[start] >= RANK["serious"] else None)


def _finding(
    run: Run, whole: Course, severity: Severity, bounds: Sequence[float], *, from_input: bool
) -> Iterator[Finding]:
    over = grade(whole.end, bounds) is None
    value, step = (whole.start, whole.first_step) if over else (whole.end, whole.last_step)
    index = last_hidden(run.sites, step)
    if index is None:
        return
    count = layers_word(sum(run.sites[i].role == "weight" for i in trunk(run.sites, step)) - 1)
    since = "as from the first layer on" if from_input else f"after {count}"
    text = f"at {place(run.sites[index])} {_differ(value)}, {since}"
    text += f" at the start; recovered, now 10^-{whole.end:.1f}" if over else ""
    first, last = span(whole, bounds[0])
    evidence = [Evidence("log10 spread", -value, "decades", -bound_of(severity, bounds)), judged_at(step)]
    yield Finding("rank_collapse", severity, [where(run.sites[index])], first, last, evidence, text)


def _differ(value: float) -> str:
    if value == math.inf:
        return "the samples of a batch do not differ at all"
    return f"the variance between the samples of a batch is 10^-{value:.1f} of their mean square"


def collapsed(run: Run, step: Step) -> float | None:
    """C: decades by which the spread of the last hidden site is below 1; inf for none at all."""
    index = last_hidden(run.sites, step)
    return None if index is None else _decades(step.at("spread", index))


def given(run: Run, step: Step) -> float | None:
    """The part of C that is there from the first layer on: the smaller one of the two."""
    whole = collapsed(run, step)
    return None if whole is None else min(whole, _first(step))


def _first(step: Step) -> float:
    """Decades by which the spread at the deepest site is below 1; 0 where it was not measured."""
    value = None if step.source is None else _decades(step.at("spread", step.source))
    return 0.0 if value is None else value


def _decades(spread: float | None) -> float | None:
    if spread is None or math.isnan(spread):
        return None
    return max(0.0, -math.log10(spread)) if spread > 0 else math.inf
