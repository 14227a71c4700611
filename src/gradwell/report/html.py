"""The report: one HTML file that holds everything, asks no host for anything and needs no script.

The pictures stand in the page as SVG; each has its numbers as a table beside it. What comes from the user (names,
paths, arguments) is escaped by the template, and its control characters are taken out.
"""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from gradwell.records.numbers import decades, size, times
from gradwell.records.run import Run
from gradwell.records.text import (
    by_severity,
    clean,
    deep_words,
    gain_words,
    helped,
    largest_cause,
    not_checked,
    origin,
    overhead_words,
    percent,
    remedies,
    render,
    render_line,
    shares,
    total,
    words,
)
from gradwell.records.treatment import Treatment
from gradwell.records.verdict import Attribution, Diagnosis
from gradwell.report import figures
from gradwell.report.before_after import content
from gradwell.report.figures import BLUE, DARK, GREY, INK, LINES, PAPER, STRIP, VERMILLION

SIGNS = {"healthy": "●", "undecided": "?", "mild": "■", "serious": "■", "fatal": "■"}
"""A shape for each verdict, so that colour never stands alone."""
TONES = {"healthy": "ok", "undecided": "grey", "mild": "mild", "serious": "bad", "fatal": "bad"}
COLUMNS = ("layer", "kind", "log10 gain", "act rms", "zeros", "dead", "saturated", "grad rms", "update ratio", "source")


def report_html(
    diagnosis: Diagnosis, *, run: Run | None = None, treatment: Treatment | None = None, static: bool = False
) -> str:
    """The diagnosis as one page: verdict, what to try, profile, causes, layers, what was not checked, method, text.

    `run` adds its events, `treatment` what was tried, with before and after. `static` leaves scripts out; there are
    none yet, so it changes nothing today.
    """
    del static
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradwell", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clean"] = clean
    return environment.get_template("template.html.j2").render(**_content(diagnosis, run, treatment))


def _content(diagnosis: Diagnosis, run: Run | None, treatment: Treatment | None) -> dict[str, Any]:
    """Everything that the template shows, as words and tables."""
    return {
        "title": _title(diagnosis),
        "origin": origin(diagnosis)[bool(diagnosis.header.argv) :],  # the title holds the arguments
        "verdict": _verdict(diagnosis),
        "prescriptions": [
            {"remedies": remedies(p), "expected": p.expected, "code": p.in_your_code} for p in diagnosis.prescriptions
        ],
        "treatment": None if treatment is None else content(treatment),
        "profile": _profile(diagnosis),
        "causes": [_causes(diagnosis, index) for index in by_severity(diagnosis) if diagnosis.causes(index)],
        "columns": COLUMNS,
        "layers": _layers(diagnosis),
        "deep": deep_words(diagnosis),
        "not_checked": not_checked(diagnosis),
        "notes": diagnosis.notes,
        "events": _events(run),
        "overhead": overhead_words(diagnosis),
        "text": render(diagnosis, width=80),
        "light": _colours(dark=False),
        "dark": _colours(dark=True),
    }


def _title(diagnosis: Diagnosis) -> str:
    argv = diagnosis.header.argv
    roots = sorted({row.root for row in diagnosis.profile if row.root})
    return " ".join(argv) if argv else ", ".join(roots) or "a model"


def sign(diagnosis: Diagnosis) -> str:
    """The shape of the verdict: down for vanishing, up for exploding, a cross for what is not finite."""
    order = by_severity(diagnosis)
    symptom = diagnosis.findings[order[0]].symptom if order and diagnosis.verdict != "undecided" else ""
    shapes = {"vanishing": "▼", "exploding": "▲", "nonfinite": "✕"}
    return shapes.get(symptom.partition("_")[0], SIGNS[diagnosis.verdict])


def _verdict(diagnosis: Diagnosis) -> dict[str, Any]:
    order = by_severity(diagnosis)
    also = order if diagnosis.verdict == "undecided" else order[1:]
    first, _, sentence = render_line(diagnosis).partition(": ")
    findings = [diagnosis.findings[index] for index in also]
    return {
        "sign": sign(diagnosis),
        "tone": TONES[diagnosis.verdict],
        "word": words(first),
        "sentence": sentence,
        "also": [(finding.severity, words(finding.symptom), finding.summary) for finding in findings],
    }


def _profile(diagnosis: Diagnosis) -> dict[str, Any] | None:
    places = figures.places(diagnosis)
    if not any(place.row.log10_gain is not None for place in places):
        return None
    return {
        "svg": Markup(figures.to_svg(figures.depth_profile(diagnosis), name="profile")),
        "said": figures.profile_words(diagnosis),
        "rows": [(place.name, gain_words(place.row.log10_gain), _number(place.row.act_rms)) for place in places],
    }


def _causes(diagnosis: Diagnosis, index: int) -> dict[str, Any]:
    """The causes of one finding: picture and table of those with decades, sentences of the conditions."""
    found = shares(diagnosis, index)
    whole = total(found)
    largest = largest_cause(diagnosis, index)
    svg = figures.to_svg(figures.cause_waterfall(diagnosis, index), name=f"causes{index}") if found else ""
    return {
        "index": index,
        "symptom": words(diagnosis.findings[index].symptom),
        "svg": Markup(svg),
        "said": figures.waterfall_words(diagnosis, index),
        "largest": words(largest.cause) if largest else "",
        "rows": [_cause(a, whole) for a in found],
        "total": decades(whole),
        "ratio": f"{times(whole)} {'smaller' if whole < 0 else 'larger'}" if decades(whole) != "0.0" else "",
        "conditions": [a.summary or words(a.cause) for a in diagnosis.causes(index) if a.kind == "condition"],
    }


def _cause(attribution: Attribution, whole: float) -> tuple[str, str, str, str]:
    name = words(attribution.cause) + (" (helped)" if helped(attribution, whole) else "")
    return name, decades(attribution.decades), percent(attribution.share), attribution.summary


def _layers(diagnosis: Diagnosis) -> dict[str, Any]:
    places = figures.places(diagnosis)
    groups = any(place.group > 1 for place in places)
    return {"rows": [_layer(place) for place in places], "grouped": groups, "count": sum(p.group for p in places)}


def _layer(place: figures.Place) -> tuple[str, ...]:
    row = place.row
    return (
        place.name, row.kind, gain_words(row.log10_gain), _number(row.act_rms), percent(row.zero_frac),
        percent(row.dead_frac), percent(row.saturated_frac), _number(row.grad_rms), _number(row.update_ratio),
        row.source or "-",
    )  # fmt: skip


def _events(run: Run | None) -> list[str]:
    """What happened between the samples, at most 20 lines."""
    events = run.events if run else []
    told = [f"step {event.step}: {words(event.event)}" for event in events if event.event != "losses"]
    return [*told[:20], f"and {len(told) - 20} more"] if len(told) > 20 else told


def _number(value: float | None) -> str:
    return "-" if value is None else size(value)


def _colours(*, dark: bool) -> dict[str, str]:
    """The page's colours by name."""
    light = {"paper": PAPER, "ink": INK, "grey": "#57606A", "lines": LINES, "strip": STRIP, "blue": BLUE}
    light = {**light, "soft": GREY, "bad": "#B34A00", "ok": "#0B6E4F", "mark": VERMILLION}
    if not dark:
        return light
    return {name: DARK.get(c, {"grey": "#9AA4AE", "bad": "#F0A868", "ok": "#2FC79A"}.get(name, c))
            for name, c in light.items()}  # fmt: skip
