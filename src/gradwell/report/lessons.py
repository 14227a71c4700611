"""Figures and the one-file page of an experiment: lines, bars, points and small graphs in the house's colours.

Each figure takes plain numbers and gives a Vega-Lite specification that `figures.to_svg` and `figures.to_png` draw.
Sizes are in decades (log10) where the axis says so; such an axis is at least 6 decades long. Exact zero (minus infinity
in decades) stands as a hollow triangle on a strip at the bottom, what is not finite as a cross at the top.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gradwell.records.numbers import size
from gradwell.report.figures import (
    BLUE,
    CONFIG,
    CROSS,
    DARK,
    GREY,
    INK,
    LINES,
    PAPER,
    STRIP,
    VERMILLION,
    ZERO,
    Spec,
    to_svg,
)

GREEN, PURPLE, ORANGE, SKY, BLACK = "#009E73", "#A8527F", "#E69F00", "#56B4E9", INK
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, "#8C6D31")
DASHES: dict[str, list[int]] = {"solid": [1, 0], "dashed": [7, 4], "dotted": [2, 3]}
DECADES_SPAN = 6.0


class Line(msgspec.Struct, frozen=True):
    """One curve: before is dashed, after is solid, predicted is dotted and grey."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    stroke: str = "solid"
    color: str = ""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """lower and upper edge"""
    points: bool = False

    @property
    def label(self) -> str:
        """The name in the legend; curves of one name share it."""
        return self.name.strip() or "predicted"


def predicted(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    """What the theory says: grey and dotted."""
    return Line(name, x, y, "dotted", GREY)


def lines(
    curves: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    said: str,
    span: float | None = DECADES_SPAN,
    domain: tuple[float, float] | None = None,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
    beyond: str = "not finite",
    height: int = 280,
) -> Spec:
    """Curves over one axis. `span`: smallest length of y (None: as the data, from 0 where that is near).

    `beyond` names the strip of what is above every number.

    `marks` are horizontal lines with a name, such as the chance level of a loss.
    """
    named = [msgspec.structs.replace(c, color=c.color or PALETTE[k % len(PALETTE)]) for k, c in enumerate(curves)]
    low, high = domain or _domain([v for c in named for v in _edges(c)] + list((marks or {}).values()), span)
    strip = (high - low) / 14
    has_zero = any(v == -math.inf for c in named for v in c.y)
    has_nan = any(math.isnan(v) or v == math.inf for c in named for v in c.y)
    bottom, top = low - strip * has_zero, high + strip * has_nan
    scales = {"x": _x_axis(named, x, log=log_x), "y": _y_axis(y, bottom, top, low, high)}
    layers: list[Spec | None] = []
    layers += _strips(low, bottom, "exactly 0" if has_zero else "", scales)
    layers += _strips(top, high, beyond if has_nan else "", scales)
    layers += [_rule(name, at) for name, at in (marks or {}).items() if low <= at <= high]
    layers += [_band(c) for c in named if c.band is not None]
    layers.append(_strokes(named))
    layers += [_dots(c) for c in named if c.points]
    layers += [_at_edge(c, low - strip / 2, high + strip / 2) for c in named]
    return _figure([layer for layer in layers if layer], scales, title=title, said=said, height=height)


def _edges(line: Line) -> list[float]:
    found = list(line.y)
    for edge in line.band or ():
        found += list(edge)
    return [float(v) for v in found if math.isfinite(v)]


def _domain(values: Sequence[float], span: float | None) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if span is None:
        low = 0.0 if 0 < low < 0.6 * high else low
        room = (high - low or abs(high) or 1.0) / 16
        return (low - room if low else 0.0), high + room
    room = (high - low) / 20
    low, high = low - room, high + room
    missing = max(span - (high - low), 0.0)
    return low - 0.75 * missing, high + 0.25 * missing


def _x_axis(named: Sequence[Line], title: str, *, log: bool) -> Spec:
    xs = [float(v) for c in named for v in c.x if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(xs), max(xs)
    pad = 0.0 if log else (high - low or 1.0) * 0.015
    scale: Spec = {"domain": [low - pad, high + pad], "nice": False, **({"type": "log"} if log else {})}
    whole = all(v == int(v) for v in xs) and high - low >= 3 and high < 1e5 and not log
    axis: Spec = {"grid": False, "tickCount": 10}
    if whole:
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
                    if (high - low) / s <= 12)  # fmt: skip
        axis["values"] = list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))
    axis["format"] = ",d" if whole else ".4~g"
    return {"field": "x", "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _y_axis(title: str, bottom: float, top: float, low: float, high: float) -> Spec:
    ticks = _ticks(low, high)
    return {
        "field": "y", "type": "quantitative", "title": title,
        "scale": {"domain": [bottom, top], "nice": False, "zero": False},
        "axis": {"values": ticks, "tickCount": len(ticks), "format": ".4~g"},
    }  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends, about eight; none on a strip."""
    raw = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _strips(edge: float, other: float, name: str, scales: Spec) -> list[Spec]:
    """A strip for what is no number, its name beside the axis."""
    if not name:
        return []
    y = {k: v for k, v in scales["y"].items() if k != "field"}
    rect = {
        "data": {"values": [{"low": min(edge, other), "high": max(edge, other)}]},
        "mark": {"type": "rect", "color": STRIP, "aria": False},
        "encoding": {"x": None, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    text = {
        "data": {"values": [{"y": (edge + other) / 2, "text": name}]},
        "mark": {"type": "text", "align": "right", "x": -7, "fontSize": 11, "color": INK, "clip": False},
        "encoding": {"x": None, "y": {**y, "field": "y"}, "text": {"field": "text"}},
    }
    return [rect, text]


def _rule(name: str, at: float) -> Spec:
    data = {"values": [{"y": at, "text": name}]}
    return {
        "data": data,
        "encoding": {"x": None},
        "layer": [
            {"mark": {"type": "rule", "color": GREY, "strokeDash": [2, 3]}},
            {"mark": {"type": "text", "align": "right", "x": 636, "dy": -7, "color": GREY},
             "encoding": {"text": {"field": "text"}}},
        ],
    }  # fmt: skip


def _band(line: Line) -> Spec:
    assert line.band is not None
    rows = [
        {"x": float(x), "y": float(a), "high": float(b)}
        for x, a, b in zip(line.x, *line.band, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    return {
        "data": {"values": rows},
        "mark": {"type": "area", "color": line.color, "opacity": 0.18, "aria": False},
        "encoding": {"y2": {"field": "high"}},
    }


def _strokes(named: Sequence[Line]) -> Spec:
    rows: list[Spec] = []
    for k, c in enumerate(named):
        part = 0
        for x, y in zip(c.x, c.y, strict=True):
            if math.isfinite(y):
                rows.append({"x": float(x), "y": float(y), "line": c.label, "part": f"{k} {part}"})
            else:
                part += 1
    shown = {c.label: c for c in reversed(named)}
    names = list(dict.fromkeys(c.label for c in named))
    legend = {"columns": 3 if len(names) > 2 else 2, "labelLimit": 260, "symbolSize": 250, "symbolType": "stroke"}
    colors, dashes = [shown[n].color for n in names], [DASHES[shown[n].stroke] for n in names]
    by_name = {"field": "line", "type": "nominal", "legend": legend}
    return {
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {
            "color": {**by_name, "scale": {"domain": names, "range": colors}},
            "strokeDash": {**by_name, "scale": {"domain": names, "range": dashes}},
            "detail": {"field": "part"},
        },
    }


def _dots(line: Line) -> Spec:
    rows = [
        {"x": float(x), "y": float(y), "said": f"{line.name}: {float(x):g}, {float(y):.3g}"}
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(y)
    ]
    return {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "opacity": 1, "size": 34 if len(rows) < 70 else 8,
                 "color": line.color, "clip": True},
        "encoding": {"description": {"field": "said"}},
    }  # fmt: skip


def _at_edge(line: Line, bottom: float, top: float) -> Spec | None:
    zero = [float(x) for x, y in zip(line.x, line.y, strict=True) if y == -math.inf]
    bad = [float(x) for x, y in zip(line.x, line.y, strict=True) if math.isnan(y) or y == math.inf]
    layers = []
    for xs, at, mark in ((zero, bottom, ZERO), (bad, top, CROSS)):
        if xs:
            layers.append({
                "data": {"values": [{"x": x, "y": at} for x in xs]},
                "mark": {"type": "point", "filled": False, "opacity": 1, "size": 36, **mark, "color": line.color},
            })  # fmt: skip
    return {"layer": layers} if layers else None


def bars(
    rows: Sequence[tuple[str, float, str]],
    *,
    title: str,
    x: str,
    said: str,
    colors: Mapping[str, str] | None = None,
    domain: tuple[float, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Spec:
    """Horizontal bars: (name, value, group); the groups of one name stand side by side, each of its colour."""
    groups = list(dict.fromkeys(group for _, _, group in rows))
    names = list(dict.fromkeys(name for name, _, _ in rows))
    range_ = [(colors or {}).get(g, GREY if g == "predicted" else PALETTE[k % len(PALETTE)])
              for k, g in enumerate(groups)]  # fmt: skip
    values = [
        {"name": name, "v": float(v) if math.isfinite(v) else 0.0, "group": group, "text": _bar_text(v),
         "said": f"{name}, {group}: {_bar_text(v)}", "left": v < 0 and math.isfinite(v)}
        for name, v, group in rows
    ]  # fmt: skip
    finite = [0.0, *(float(v) for _, v, _ in rows if math.isfinite(v)), *(marks or {}).values()]
    low, high = domain or (min(finite), max(finite))
    pad = (high - low or 1.0) * 0.09
    scale = {"domain": [low - pad * (low < 0), high + pad], "nice": False}
    y: Spec = {"field": "name", "type": "nominal", "sort": names, "title": None,
               "axis": {"ticks": False, "domain": False, "labelPadding": 8, "labelFontSize": 12,
                        "labelLimit": 320}}  # fmt: skip
    axis = {"tickCount": 8, "format": ".4~g"}
    scales: Spec = {"x": {"field": "v", "type": "quantitative", "title": x, "scale": scale, "axis": axis}, "y": y}
    bar: Spec = {"mark": {"type": "bar"}, "encoding": {"description": {"field": "said"}, "color": {
        "field": "group", "type": "nominal", "scale": {"domain": groups, "range": range_},
        "legend": {"columns": 3 if len(groups) > 4 else 4} if len(groups) > 1 else None}}}  # fmt: skip
    if len(groups) > 1:
        scales["yOffset"] = {"field": "group", "sort": groups}
    layers: list[Spec] = [bar]
    for left, align, dx in ((False, "left", 4), (True, "right", -4)):
        layers.append({
            "transform": [{"filter": f"datum.left === {str(left).lower()}"}],
            "mark": {"type": "text", "align": align, "dx": dx, "fontSize": 10.5},
            "encoding": {"text": {"field": "text"}},
        })  # fmt: skip
    spec = _figure([{"data": {"values": values}, "layer": layers}], scales, title=title, said=said,
                   height=max(60, (13 * len(groups) + 8) * len(names)))  # fmt: skip
    for name, at in (marks or {}).items():
        spec["layer"].append({
            "data": {"values": [{"v": at, "text": name}]},
            "layer": [
                {"mark": {"type": "rule", "color": GREY, "strokeDash": [2, 3]},
                 "encoding": {"x": {"field": "v", "type": "quantitative"}}},
                {"mark": {"type": "text", "align": "left", "dx": 3, "y": -4, "color": GREY},
                 "encoding": {"x": {"field": "v", "type": "quantitative"}, "text": {"field": "text"}}},
            ],
        })  # fmt: skip
    return spec


def _bar_text(value: float) -> str:
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "exactly 0" if value < 0 else "not finite"
    return size(value) if abs(value) < 1e5 else f"{value:.3g}"


def points(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    said: str,
    span: float | None = None,
    diagonal: bool = False,
) -> Spec:
    """Points in groups; `diagonal` draws y = x, where predicted equals measured."""
    curves = [Line(name, xs, ys, color=PALETTE[k % len(PALETTE)], points=True)
              for k, (name, (xs, ys)) in enumerate(groups.items())]  # fmt: skip
    both = [float(v) for c in curves for v in c.x if math.isfinite(v)]
    extra = [predicted("predicted = measured", [min(both), max(both)], [min(both), max(both)])] if diagonal else []
    spec = lines([*curves, *extra], title=title, x=x, y=y, said=said, span=span)
    for layer in spec["layer"][0]["layer"]:
        if isinstance(layer.get("mark"), dict) and layer["mark"].get("type") == "line":
            names = [c.name for c in curves]
            layer["data"]["values"] = [row for row in layer["data"]["values"] if row["line"] not in names] + [
                {"x": None, "y": None, "line": name, "part": name} for name in names
            ]
    return spec


def graph(
    nodes: Sequence[tuple[str, float, float, str]],
    edges: Sequence[tuple[str, str, str]],
    *,
    title: str,
    said: str,
    height: int = 150,
) -> Spec:
    """A small graph: nodes (id, x, y, label), edges (from, to, kind), kind "forward", "backward" or "skip"."""
    at = {key: (px, py) for key, px, py, _ in nodes}
    kinds = {"forward": (BLACK, [1, 0]), "backward": (BLUE, [1, 0]), "skip": (VERMILLION, [6, 3])}
    layers: list[Spec] = []
    for kind, (color, dash) in kinds.items():
        arcs = [_arc(at[a], at[b], kind) for a, b, k in edges if k == kind]
        if not arcs:
            continue
        rows = [{"x": px, "y": py, "arc": n, "i": i} for n, arc in enumerate(arcs) for i, (px, py) in enumerate(arc)]
        heads = [{"x": arc[-1][0], "y": arc[-1][1], "angle": _heading(arc)} for arc in arcs]
        line = {"type": "line", "color": color, "strokeWidth": 1.6, "strokeDash": dash}
        layers.append({"data": {"values": rows}, "mark": line,
                       "encoding": {"detail": {"field": "arc"}, "order": {"field": "i"}}})  # fmt: skip
        layers.append({"data": {"values": heads}, "mark": {"type": "point", "shape": "triangle", "filled": True,
                       "opacity": 1, "color": color, "size": 50},
                       "encoding": {"angle": {"field": "angle", "type": "quantitative", "scale": None}}})  # fmt: skip
    values = [{"x": px, "y": py, "text": text} for _, px, py, text in nodes]
    layers.append({"data": {"values": values}, "mark": {"type": "text", "fontSize": 11, "fontWeight": "bold"},
                   "encoding": {"text": {"field": "text"}}})  # fmt: skip
    xs, ys = [p for p, _ in at.values()], [q for _, q in at.values()]
    axis = {"axis": None, "type": "quantitative"}
    scales = {
        "x": {"field": "x", **axis, "scale": {"domain": [min(xs) - 0.6, max(xs) + 0.6], "nice": False}},
        "y": {"field": "y", **axis, "scale": {"domain": [min(ys) - 0.7, max(ys) + 0.9], "nice": False, "zero": False}},
    }
    return _figure(layers, scales, title=title, said=said, height=height)


def _arc(a: tuple[float, float], b: tuple[float, float], kind: str) -> list[tuple[float, float]]:
    """A line between two nodes that leaves their text free; a skip goes over the top."""
    sign = 1 if b[0] >= a[0] else -1
    if kind == "skip":
        start, stop = (a[0] + 0.1 * sign, a[1] + 0.22), (b[0] - 0.1 * sign, b[1] + 0.22)
        steps = [i / 12 for i in range(13)]
        return [(start[0] + (stop[0] - start[0]) * t, start[1] + 1.9 * t * (1 - t)) for t in steps]
    if a[1] != b[1]:
        return [a, b]
    gap = abs(b[0] - a[0]) * 0.35
    return [(a[0] + gap * sign, a[1]), (b[0] - gap * sign, b[1])]


def _heading(arc: Sequence[tuple[float, float]]) -> float:
    (x0, y0), (x1, y1) = arc[-2], arc[-1]
    if y0 == y1:
        return 90.0 if x1 > x0 else 270.0
    return 150.0 if x1 > x0 else 210.0


def _figure(layers: Sequence[Spec], scales: Spec, *, title: str, said: str, height: int) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{title}. {said}",
        "title": {"text": title, "anchor": "start", "fontSize": 14, "color": INK, "offset": 8},
        "width": 640,
        "height": height,
        "config": CONFIG,
        "layer": [{"encoding": scales, "layer": list(layers)}],
        "usermeta": {"title": title, "said": said},
    }


# -- the page ------------------------------------------------------------------------------------------


class Content(msgspec.Struct, frozen=True):
    """What the page of an experiment holds: `blocks` under their headings, `tables` (name, columns, rows of text)."""

    name: str
    title: str
    blocks: Mapping[str, str]
    printed: Sequence[str]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    figures: Mapping[str, Spec]
    deviations: Sequence[str]


def page_html(content: Content) -> str:
    """The experiment as one file: the page, the figures as SVG, the tables, what disagrees with the theory."""
    text, blocks = html.escape, content.blocks
    light = {"paper": PAPER, "ink": INK, "grey": "#57606A", "lines": LINES, "strip": STRIP}
    dark = {**{k: DARK.get(c, c) for k, c in light.items()}, "grey": "#9AA4AE"}
    rules = [f":root{{{_variables(light)}}}", f"@media (prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}"]
    parts = [f"<h1>{text(content.title)}</h1>", f"<p class=grey>gradwell lab run {text(content.name)}</p>"]
    what, rest = blocks.get("What you see", ""), {k: v for k, v in blocks.items() if k != "What you see"}
    parts += [f"<h2>What you see</h2><p>{text(what)}</p>"] if what else []
    parts += [
        f"<figure>{to_svg(spec, name=f'f{k}')}<figcaption>{text(spec['usermeta']['said'])}</figcaption></figure>"
        for k, spec in enumerate(content.figures.values())
    ]
    parts += [_table_html(*table) for table in content.tables]
    printed = text("\n".join(content.printed))
    parts += [f"<h2>As printed</h2><pre>{printed}</pre>"] if printed else []
    items = "".join(f"<li>{text(d)}</li>" for d in content.deviations) or "<li>None.</li>"
    parts.append(f"<h2>Where measured disagrees with the theory</h2><ul>{items}</ul>")
    parts += [f"<h2>{text(k)}</h2><p class=pre>{text(v)}</p>" for k, v in rest.items()]
    return _PAGE.format(title=text(f"gradwell lab: {content.name}"), css="".join(rules) + _CSS, body="\n".join(parts))


def _table_html(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = html.escape
    cells = "".join("<tr>" + "".join(f"<td>{text(c)}</td>" for c in row) + "</tr>" for row in rows)
    heads = "".join(f"<th scope=col>{text(c)}</th>" for c in columns)
    return f"<h2>{text(name)}</h2><div class=wide><table><tr>{heads}</tr>{cells}</table></div>"


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


_CSS = """
*{box-sizing:border-box}body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:820px;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.35rem}h2{font-size:1.1rem;margin:1.8rem 0 .4rem}.grey,figcaption{color:var(--grey)}
figure{margin:.8rem 0}svg{display:block;max-width:100%;height:auto}.pre{white-space:pre-wrap}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{text-align:left;padding:.18rem .8rem .18rem 0;border-bottom:1px solid var(--lines)}.wide{overflow-x:auto}
pre{background:var(--strip);padding:.6rem .8rem;overflow-x:auto;font:13px/1.4 ui-monospace,Menlo,Consolas,monospace}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title><style>{css}</style></head><body><main>
{body}
</main></body></html>
"""


def cell(value: Any) -> str:
    """One cell of a table as text: numbers with three significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return _float(value) if isinstance(value, float) else "-" if value is None else str(value)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return "none" if math.isnan(value) else str(value)
    if value == int(value) and 100 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return "0" if text == "-0" else text
