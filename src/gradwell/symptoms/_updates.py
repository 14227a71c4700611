"""What detectors of update sizes share: the step's size relative to the weights. No entry of the shelf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import normalised
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Where
from gradwell.symptoms._words import needs_steps, where

NO_UPDATE = "no update of a weight matrix was seen: there is no optimizer, it took no step, or it holds none of them."


def ratios(run: Run) -> list[tuple[Step, float]]:
    """(step, median of update / weight over the weight matrices) of each sampled step that has one.

    Raises `NotMeasurable` where no update of a weight matrix was seen.
    """
    needs_steps(run)
    if not any(_known(step.params.get("update_rms", ())) for step in run.steps):
        raise NotMeasurable(NO_UPDATE)
    grown = _grown(run)
    found = [(step, median_low(values)) for step in run.steps if (values := [r for _, r in matrices(run, step, grown)])]
    if not found:
        raise NotMeasurable(NO_UPDATE)
    return found


def _known(column: Sequence[float | None]) -> bool:
    """Whether anything of a column was measured."""
    return column.count(None) < len(column)


def largest(run: Run) -> tuple[Step, float]:
    """The step of which the median of update / weight is largest, by what the steps do to the network.

    A weight below torch's default counts as that one: it is meant to be outgrown by the first step, as one that starts
    at zero is. One whose scale a normalisation takes away counts as 0: a step only turns it, and less the longer it is.
    """
    grown = _grown(run)
    found = [
        (step, median_low(_felt(run, step, known)))
        for step in run.steps if (known := matrices(run, step, grown))
    ]  # fmt: skip
    return max(found, key=lambda pair: pair[1])


def _felt(run: Run, step: Step, known: list[tuple[int, float]]) -> list[float]:
    """The ratios, smaller where the weight is tiny and 0 where it has no scale."""
    free = {run.sites[i].site for i in normalised(run.sites, step)}
    params = run.header.params
    default = {i: 1 / math.sqrt(3 * math.prod(params[i].shape[1:])) for i, _ in known}
    return [
        0.0 if params[i].site in free else ratio * min(1.0, (step.of("weight_rms", i) or 0.0) / default[i])
        for i, ratio in known
    ]  # fmt: skip


def _grown(run: Run) -> set[int]:
    """Indices of the parameters that are zero in some sampled step."""
    columns = [column for step in run.steps if 0 in (column := step.params.get("weight_rms", ()))]
    return {i for column in columns for i, size in enumerate(column) if size == 0}


def matrices(run: Run, step: Step, grown: set[int]) -> list[tuple[int, float]]:
    """(parameter, update / weight) of the weights with two or more axes.

    Left out: frozen ones, those without a gradient, those that started at zero (`grown`), those that no optimizer holds
    and that stand still, and those that stand still while others move, since it may not be their optimizer's turn.
    """
    found: list[tuple[int, float]] = []
    params, held = run.header.params, bool(run.header.optimizers)
    columns = (step.all_of(name, len(params)) for name in ("weight_rms", "grad_rms", "update_rms"))
    for i, (param, weight, grad, update) in enumerate(zip(params, *columns, strict=False)):
        if len(param.shape) < 2 or param.frozen or i in grown or update is None or not weight or not grad:
            continue
        if held and param.group is None and not update:
            continue
        if all(map(math.isfinite, (weight, grad, update))):
            found.append((i, update / weight))
    return [pair for pair in found if pair[1] > 0] or found


def owners(run: Run, step: Step, above: float) -> list[Where]:
    """The sites of the matrices whose ratio reaches a bound, largest first, at most three."""
    found = sorted(matrices(run, step, set()), key=lambda pair: -pair[1])
    names = dict.fromkeys(run.header.params[i].site for i, ratio in found if ratio >= above)
    seen = {site.site: where(site) for site in reversed(run.sites)}
    return [seen.get(name, Where(name, "", None)) for name in list(names)[:3]]
