"""A diagnosis in a notebook: text, and HTML that also shows where scripts are not trusted."""

from __future__ import annotations

import base64
from html import escape

from gradwell.records.numbers import size
from gradwell.records.text import clean, gain_words, label, last_rows, render, render_line, worst_first
from gradwell.records.verdict import Diagnosis
from gradwell.report import figures
from gradwell.report.html import sign

ROWS = 8


def mimebundle(diagnosis: Diagnosis) -> dict[str, str]:
    """What Jupyter shows: `text/plain`, and `text/html` with the profile as an image and the worst layers."""
    return {"text/plain": render(diagnosis), "text/html": _html(diagnosis)}


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
    svg = figures.to_svg(figures.depth_profile(diagnosis), name="profile", paper=True)
    data = base64.b64encode(svg.encode()).decode()
    said = _safe(figures.profile_words(diagnosis))
    return f'<img alt="Depth profile. {said}" src="data:image/svg+xml;base64,{data}" style="max-width:100%">'


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
