"""All samples look alike in the last hidden layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import course, last_hidden, trunk
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding
from gradwell.symptoms._words import bound_of, grade, judged_at, layers_word, needs_depth, place, span, where

ORDER = 6

SICK = (
    NetConfig(depth=24),
    NetConfig(depth=20, activation="sigmoid"),
    NetConfig(depth=12, input_shift=1000.0, input_scale=0.1),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(depth=12, init="he"),
    NetConfig(depth=20, activation="tanh", init="lecun"),
    NetConfig(depth=12, norm="batch"),
    NetConfig(kind="residual", depth=12, norm="layer"),
    NetConfig(kind="transformer", depth=4, width=32),
)


def rank_collapse(
    run: Run, *, mild: float = 4.0, serious: float = 6.0, fatal: float = 12.0, least_input: float = 1e-10
) -> Iterator[Finding]:
    """All samples look alike in the last hidden layer, so that the output hardly depends on the input.

    What it does to training:
        The net first learns the average answer and then stands still, until the differences between samples have grown
        from almost nothing; below the resolution of the number format they never do.

    How it is measured:
        C = -log10 of the spread at the last hidden site of the trunk: variance between the samples of the batch over
        the mean square. `mild`, `serious`, `fatal` in decades; float32 ends at about 14. Over several sampled steps the
        median of the last third counts; when only the start was bad, the finding is mild.

    When it is no problem:
        A task whose samples really are alike (`least_input`: with a spread below it right after the first layer nothing
        is measured). Language models, where all sequences of a batch share most of their statistics, have a spread of a
        few per cent.

    What helps first:
        Inputs with their mean taken off; biases of zero; a critical initialisation; batch norm, which restores the
        spread in each layer; shortcuts; for attention a shortcut and a scale of 1 / sqrt(depth) on its branch.

    Source:
        Schoenholz et al. 2017; Daneshmand et al. 2020; Dong, Cordonnier and Loukas 2021. Bounds: docs/calibration.md.
    """
    steps = needs_depth(run)
    if all((step.batch or 1) < 2 for step in steps):
        raise NotMeasurable("a batch of one sample has no spread; use a batch of at least 2.")
    if all(not _first(step) > least_input for step in steps):
        raise NotMeasurable("the samples of the batch do not differ after the first layer; use a batch of real data.")
    judged = course(run, lambda step: collapsed(run, step))
    if judged is None:
        raise NotMeasurable("the spread between the samples was not measured in the last hidden layer.")
    bounds = (mild, serious, fatal)
    start, end = grade(judged.start, bounds), grade(judged.end, bounds)
    severity = end
    step = judged.last_step
    if end is None and start is not None and RANK[start] >= RANK["serious"]:
        severity, step = "mild", judged.first_step
    index = last_hidden(run.sites, step)
    if severity is None or index is None:
        return
    value = judged.end if end is not None else judged.start
    count = layers_word(sum(run.sites[i].role == "weight" for i in trunk(run.sites, step)) - 1)
    text = f"at {place(run.sites[index])} {_differ(value)}, after {count}"
    text += "" if end is not None else f" at the start; recovered, now {decades(-judged.end)} decades"
    first, last = span(judged, mild)
    bound = bound_of(severity, bounds)
    evidence = [Evidence("log10 spread", -value, "decades", -bound), judged_at(step)]
    yield Finding("rank_collapse", severity, [where(run.sites[index])], first, last, evidence, text)


def collapsed(run: Run, step: Step) -> float | None:
    """C: decades by which the spread of the last hidden site is below 1; inf for none at all."""
    index = last_hidden(run.sites, step)
    spread = None if index is None else step.at("spread", index)
    if spread is None or math.isnan(spread):
        return None
    return max(0.0, -math.log10(spread)) if spread > 0 else math.inf


def _differ(value: float) -> str:
    if value == math.inf:
        return "the samples of a batch do not differ at all"
    return f"the variance between the samples of a batch is 10^-{value:.1f} of their mean square"


def _first(step: Step) -> float:
    """The spread at the deepest site."""
    spread = None if step.source is None else step.at("spread", step.source)
    return 1.0 if spread is None else 0.0 if math.isnan(spread) else spread
