"""What a treatment adds to the report: the arms with their evidence, loss and depth profile before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from gradwell.records.numbers import decades
from gradwell.records.text import last_rows
from gradwell.records.treatment import Course, Outcome, Treatment
from gradwell.records.treatment_text import method_words, number, span, verdict_words
from gradwell.records.verdict import Diagnosis
from gradwell.report.figures import BLUE, VERMILLION, Spec, to_svg
from gradwell.report.lessons import Line, lines

COLUMNS = ("verdict", "remedies", "effect, decades", "95 % interval", "learning rate", "step time", "failed runs",
           "gone", "new")  # fmt: skip


def content(treatment: Treatment) -> dict[str, Any]:
    """Everything that the template shows of a treatment."""
    best = treatment.best
    return {
        "tone": "ok" if treatment.cured or not treatment.sick else "bad",
        "said": verdict_words(treatment),
        "code": best.in_your_code if best else "",
        "columns": COLUMNS,
        "rows": [_row(outcome) for outcome in treatment.outcomes],
        "figures": [_figure(spec, f"treatment{k}") for k, spec in enumerate(figures_of(treatment))],
        "method": method_words(treatment),
        "notes": [*treatment.notes, *(f"{o.name}: {o.note}" for o in treatment.outcomes if o.note)],
    }


def _row(outcome: Outcome) -> tuple[str, ...]:
    failed, ratio = outcome.infeasible_frac, outcome.step_time_ratio
    return (
        outcome.verdict, outcome.name, number(outcome.effect_log10_loss), span(outcome.interval),
        f"x{outcome.lr_scale:g}", "-" if ratio is None else f"x{ratio:.2g}",
        "-" if failed is None else f"{round(100 * failed)} %", ", ".join(outcome.cured) or "-",
        ", ".join(outcome.caused) or "-",
    )  # fmt: skip


def _figure(spec: Spec, name: str) -> tuple[Markup, str]:
    return Markup(to_svg(spec, name=name)), spec["description"]


def figures_of(treatment: Treatment) -> list[Spec]:
    """The loss over the steps and the depth profile, before and after; none where nothing works."""
    if treatment.best is None or treatment.baseline is None:
        return []
    found = [loss_figure(treatment.baseline.course, treatment.best.course)]
    if treatment.after is not None and _profile(treatment.after)[1] and _profile(treatment.diagnosis)[1]:
        found.append(profile_figure(treatment.diagnosis, treatment.after))
    return found


def loss_figure(before: Course, after: Course) -> Spec:
    """log10 of the training loss over the steps, median of the seeds."""
    curves = [_curve("before", before, VERMILLION, "dashed"), _curve("after", after, BLUE, "solid")]
    ends = [f"{name} {loss:.3g}" for name, course in (("before", before), ("after", after)) for _, loss in course[-1:]]
    return lines(
        curves, title="Training loss before and after", x="step", y="log10 of the loss", span=None,
        said=f"Training loss at the end, median of the seeds: {', '.join(ends)}.", domain=_room(curves),
    )  # fmt: skip


def profile_figure(before: Diagnosis, after: Diagnosis) -> Spec:
    """log10 gain from the input (0) to the loss (1); the two nets may have different numbers of layers."""
    named = [("before", before, VERMILLION, "dashed"), ("after", after, BLUE, "solid")]
    curves = [Line(name, *_profile(diagnosis), stroke, color) for name, diagnosis, color, stroke in named]
    lowest = [f"{curve.name} {decades(min(filter(math.isfinite, curve.y), default=math.nan))}" for curve in curves]
    return lines(
        curves, title="Gradient by depth before and after", x="depth, from the input (0) to the loss (1)",
        y="log10 gain, decades", said=f"Lowest log10 gain: {', '.join(lowest)} decades.",
    )  # fmt: skip


def _profile(diagnosis: Diagnosis) -> tuple[list[float], list[float]]:
    rows = last_rows(diagnosis)
    known = [(place, row.log10_gain) for place, row in enumerate(rows) if row.log10_gain is not None]
    return [place / max(len(rows) - 1, 1) for place, _ in known], [gain for _, gain in known]


def _curve(name: str, course: Course, color: str, stroke: str) -> Line:
    known = [(step, math.log10(loss) if loss > 0 else math.nan) for step, loss in course]
    return Line(name, [float(step) for step, _ in known], [y for _, y in known], stroke, color)


def _room(curves: Sequence[Line]) -> tuple[float, float]:
    """Half a decade at least, so that a flat loss looks flat."""
    values = [y for curve in curves for y in curve.y if math.isfinite(y)] or [0.0]
    low, high = min(values), max(values)
    more = max(0.5 - (high - low), 0.1 * (high - low)) / 2
    return low - more, high + more
