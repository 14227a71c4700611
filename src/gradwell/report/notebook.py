"""Results in a notebook: text, and HTML that also shows where scripts are not trusted."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import accumulate

from gradwell.records.numbers import size
from gradwell.records.run import Run
from gradwell.records.text import clean, gain_words, label, last_rows, render, render_line, worst_first
from gradwell.records.verdict import Diagnosis
from gradwell.report import figures, lessons
from gradwell.report.html import sign

ROWS = 8


def mimebundle(diagnosis: Diagnosis) -> dict[str, str]:
    """What Jupyter shows: `text/plain`, and `text/html` with the profile as an image and the worst layers."""
    return {"text/plain": render(diagnosis), "text/html": _html(diagnosis)}


def run_mimebundle(run: Run) -> dict[str, str]:
    """A run: how far it is in one line, then its diagnosis."""
    line, diagnosis = run_words(run), mimebundle(run.diagnose())
    return {
        "text/plain": f"{line}\n\n{diagnosis['text/plain']}",
        "text/html": f"<p>{_safe(line)}</p>{diagnosis['text/html']}",
    }


def run_words(run: Run) -> str:
    """How far a run is: steps, loss, how it ended."""
    if not run.steps:
        return "No step has been sampled yet."
    ended = next((event for event in reversed(run.events) if event.event == "ended"), None)
    steps = run.steps[-1].step + 1 if ended is None else ended.detail.get("steps", run.steps[-1].step + 1)
    losses = [step.loss for step in run.steps if step.loss is not None]
    change = f", loss {size(losses[0])} at the first and {size(losses[-1])} at the last sampled step" if losses else ""
    state = "so far" if ended is None else f"({ended.detail.get('reason', 'ended')})"
    return f"{steps} step{'s' if steps != 1 else ''} {state}{change}."


def prediction_mimebundle(text: str, gains: Sequence[float]) -> dict[str, str]:
    """A prediction: its text, and the gradient that arrives at each layer (or goes back so many time steps)."""
    sums = [*accumulate(reversed(gains))][::-1]
    said = f"Predicted gradient at each of {len(sums)} places, from {gain_words(sums[0])} decades."
    curve = lessons.predicted("predicted", range(1, len(sums) + 1), sums)
    spec = lessons.lines([curve], title="Predicted gradient", x="layer or time step", y="log10 gain", said=said)
    return {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>{_picture(spec, 'prediction', said)}"}


def _html(diagnosis: Diagnosis) -> str:
    """No script and no address: the picture is a data URI on paper of its own, readable on a dark notebook too."""
    parts = [f"<p><strong>{sign(diagnosis)} {_safe(render_line(diagnosis))}</strong></p>", _image(diagnosis)]
    text = escape(render(diagnosis))
    return "".join(
        [*parts, _table(diagnosis), f"<details><summary>All of it as text</summary><pre>{text}</pre></details>"]
    )


def _image(diagnosis: Diagnosis) -> str:
    if not any(row.log10_gain is not None for row in diagnosis.profile):
        return ""
    return _picture(figures.depth_profile(diagnosis), "profile", f"Depth profile. {figures.profile_words(diagnosis)}")


def _picture(spec: figures.Spec, name: str, said: str) -> str:
    data = base64.b64encode(figures.to_svg(spec, name=name, paper=True).encode()).decode()
    return f'<img alt="{_safe(said)}" src="data:image/svg+xml;base64,{data}" style="max-width:100%">'


def _table(diagnosis: Diagnosis) -> str:
    """The worst layers: name, kind, log10 gain, activations' rms, source."""
    every = last_rows(diagnosis)
    if not every:
        return ""
    roots = len({row.root for row in every}) > 1
    rows = worst_first(diagnosis, every)[:ROWS]
    cells = [
        (label(row, roots=roots), row.kind, gain_words(row.log10_gain),
         "-" if row.act_rms is None else size(row.act_rms), row.source or "-")
        for row in rows
    ]  # fmt: skip
    head = _tr(("layer", "kind", "log10 gain", "act rms", "source"), "th")
    rest = f"<p>{len(every) - len(rows)} more layers not shown.</p>" if len(every) > len(rows) else ""
    return f"<table><thead>{head}</thead><tbody>{''.join(_tr(row, 'td') for row in cells)}</tbody></table>{rest}"


def _tr(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_safe(cell)}</{tag}>" for cell in cells) + "</tr>"


def _safe(text: str) -> str:
    return escape(clean(text))
