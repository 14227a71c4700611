"""The pictures: each function takes plain records and gives a Vega-Lite specification (Altair: `alt.Chart.from_dict`).

Sizes are in decades: log10 of a ratio of gradient sizes. Every axis has a smallest span, so that a healthy net does
not look like a disaster. Exact zero and what is not finite have marks of their own and are never drawn as a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from xml.etree import ElementTree as Xml

import vl_convert

from gradwell.records.numbers import decades, size, times
from gradwell.records.text import (
    broken,
    clean,
    gain_words,
    helped,
    label,
    last_rows,
    shares,
    shorten,
    total,
    words,
)
from gradwell.records.verdict import Attribution, Diagnosis, ProfileRow

Spec = dict[str, Any]

PROFILE_SPAN = 6.0  # decades
WATERFALL_REACH = 3.0  # decades to each side
BUCKETS = 256  # rows at most in a picture or a table; more layers are grouped
SMALLEST = {"float16": -7.2, "bfloat16": -40.0, "float32": -44.8, "float64": -323.3}
"""log10 of the smallest number above zero, by dtype: nothing is drawn below it."""

BLUE, VERMILLION, GREY, INK, LINES = "#0072B2", "#D55E00", "#6E7781", "#1F2328", "#D0D7DE"
BAND, STRIP, PAPER, LATER = "#EEF1F4", "#E3E6EA", "#FFFFFF", "#8C959F"
DARK = {
    BLUE: "#56B4E9", VERMILLION: "#E69F00", GREY: "#9AA4AE", INK: "#E6EDF3", LINES: "#3A424B",
    BAND: "#20262D", STRIP: "#2C333B", PAPER: "#14181D", LATER: "#7D8791",
}  # fmt: skip
"""The same colours on a dark page (Okabe-Ito, lightened)."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
GRADIENT, ACTS = "gradient, against the output's", "activations, rms"
ZERO: Spec = {"shape": "triangle-down", "color": BLUE}
CROSS: Spec = {"shape": "M-1,-1L1,1M-1,1L1,-1", "color": VERMILLION, "strokeWidth": 2}
_AXIS = {
    "labelColor": INK, "titleColor": INK, "tickColor": LINES, "domainColor": LINES, "gridColor": LINES,
    "gridOpacity": 0.6, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220,
}  # fmt: skip
_WHOLE: Spec = {"format": "d", "tickCount": 100, "tickMinStep": 0.01}
"""Whole numbers at an axis. Vega drops every second of the values that it is given while they are more than tickCount
or than the span over tickMinStep (1 with this format), so both are out of the way."""
CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": _AXIS,
    "legend": {
        "labelColor": INK,
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "symbolStrokeWidth": 2,
        "columnPadding": 60,
    },  # browsers set these fonts wider than they were measured
    "text": {"color": INK, "fontSize": 11},
}


class Place(NamedTuple):
    """One row of the profile as it is drawn: `x` counts from 1 at the input, for `group` sites at once."""

    x: float
    row: ProfileRow
    name: str
    group: int


def grouped(rows: Sequence[ProfileRow], limit: int = BUCKETS) -> list[tuple[ProfileRow, int]]:
    """At most `limit` rows, each with the number of neighbours that it stands for: the worst of its group."""
    if len(rows) <= limit:
        return [(row, 1) for row in rows]
    edges = [len(rows) * i // limit for i in range(limit + 1)]
    return [(max(rows[a:b], key=_badness), b - a) for a, b in pairwise(edges)]


def places(diagnosis: Diagnosis) -> list[Place]:
    """The profile at its last step as it is drawn, input first."""
    rows = last_rows(diagnosis)
    roots = len({row.root for row in rows}) > 1
    found, x = [], 0
    for row, group in grouped(rows):
        found.append(Place(x + (group + 1) / 2, row, clean(label(row, roots=roots)), group))
        x += group
    return found


def _badness(row: ProfileRow) -> float:
    gain = row.log10_gain
    if broken(row):
        return math.inf
    return -1.0 if gain is None else abs(gain)


def is_underflow(diagnosis: Diagnosis, gain: float | None) -> bool:
    """True for an exact zero and for a ratio below the smallest number of the dtype."""
    return gain is not None and gain < SMALLEST.get(diagnosis.header.dtype, SMALLEST["float32"])


# The depth profile.


def depth_profile(diagnosis: Diagnosis) -> Spec:
    """log10 |delta_l| / |delta_out| over depth, input left, loss right, with log10 of the activations' rms in grey.

    At least 6 decades high; the band of one decade around the output is shaded; sites off the trunk (less than half
    of the gradient's flow) are hollow and not joined.
    """
    found = places(diagnosis)
    points = _points(diagnosis, found)
    drawn = [point for point in points if point["state"] == "number"]
    acts = [_act(place) for place in found if _drawable(place.row.act_rms)]
    frame = _frame(points, [p["y"] for p in drawn] + [a["y"] for a in acts], last=len(last_rows(diagnosis)))
    color = VERMILLION if max((p["y"] for p in drawn), key=abs, default=0.0) > 1 else BLUE
    scales = _profile_scales(frame)
    layers = [
        _curve(acts, ACTS, color, width=1.5),
        _curve(drawn, GRADIENT, color, width=2),
        _dots(drawn, color),
        _marks(points, "zero", frame.zero, ZERO),
        _marks(points, "nan", frame.nan, CROSS),
        _worst_name(diagnosis, drawn, frame),
        _zero_name(diagnosis, points, frame),
    ]
    behind = [_band(scales), *_strips(frame, scales)]
    size_ = {"width": 640, "height": 260}
    return _figure(behind, layers, scales, size_, title="Depth profile", said=profile_words(diagnosis))


def profile_words(diagnosis: Diagnosis) -> str:
    """The depth profile in a sentence, for who cannot see it."""
    found = places(diagnosis)
    gains = [place.row.log10_gain for place in found if place.row.log10_gain is not None]
    if not gains:
        return "No gradient was measured."
    finite = [gain for gain in gains if math.isfinite(gain) and not is_underflow(diagnosis, gain)]
    parts = [f"{len(last_rows(diagnosis))} layers"]
    if finite:
        parts.append(f"log10 gain from {decades(min(finite))} to {decades(max(finite))} decades")
    zeros = [place.name for place in found if is_underflow(diagnosis, place.row.log10_gain)]
    if zeros:
        dtype = diagnosis.header.dtype or "float32"
        parts.append(f"going back from the loss it reaches 0 in {dtype} at {zeros[-1]}")
    nans = [place.name for place in found if broken(place.row)]
    if nans:
        parts.append(f"not finite at {len(nans)}, first {nans[0]}")
    return "; ".join(parts) + "."


def _drawable(rms: float | None) -> bool:
    return rms is not None and math.isfinite(rms) and rms > 0 and math.log10(rms) > SMALLEST["float32"]


def _act(place: Place) -> Spec:
    assert place.row.act_rms is not None
    y = math.log10(place.row.act_rms)
    return {"x": place.x, "y": y, "segment": 0, "said": f"{place.name}: activations' rms {size(place.row.act_rms)}"}


def _points(diagnosis: Diagnosis, found: Sequence[Place]) -> list[Spec]:
    """The places as data; a new part of the line begins behind each one that is zero or not finite."""
    points, part = [], 0
    for place in found:
        point = _point(diagnosis, place)
        part += point["state"] in {"zero", "nan"}
        points.append({**point, "part": part})
    return points


def _point(diagnosis: Diagnosis, place: Place) -> Spec:
    row, gain = place.row, place.row.log10_gain
    state = "nan" if broken(row) else "none" if gain is None else "number"
    if state == "number" and is_underflow(diagnosis, gain):
        state = "zero"
    trunk = row.flow is None or row.flow >= 0.5
    return {"x": place.x, "y": gain, "state": state, "trunk": trunk, "name": place.name, "said": _said(place, state)}


def _said(place: Place, state: str) -> str:
    """What the pointer reads: layer, size in decades and in words, kind and file:line."""
    gain = place.row.log10_gain
    parts = [
        {"nan": "not finite", "none": "not measured", "zero": "exactly 0 (underflow)"}.get(state, gain_words(gain))
    ]
    if state == "number" and gain is not None and decades(gain) != "0.0":
        parts = [f"{parts[0]} decades", f"{times(gain)} {'smaller' if gain < 0 else 'larger'} than at the output"]
    parts += [clean(part) for part in (place.row.kind, place.row.source or "") if part]
    many = f" (worst of {place.group} neighbours)" if place.group > 1 else ""
    return f"{place.name}{many}: {', '.join(parts)}"


class Frame(NamedTuple):
    """The axes of the profile: decades from `low` to `high`, the strips' places (None: no strip), the last layer."""

    low: float
    high: float
    zero: float | None
    nan: float | None
    last: int

    @property
    def strip(self) -> float:
        """Height of a strip in decades."""
        return (self.high - self.low) / 12

    @property
    def domain(self) -> list[float]:
        """The y axis with its strips, in decades."""
        return [self.low - self.strip * (self.zero is not None), self.high + self.strip * (self.nan is not None)]


def _frame(points: Sequence[Spec], values: Sequence[float], *, last: int) -> Frame:
    low, high = _domain(values)
    states = {point["state"] for point in points}
    half = (high - low) / 24
    zero = low - half if "zero" in states else None
    return Frame(low, high, zero, high + half if "nan" in states else None, max(last, 1))


def _domain(values: Iterable[float]) -> tuple[float, float]:
    """An axis that holds the values and the band of one decade around 0, at least 6 decades long.

    What is missing is added mostly below, where a vanishing gradient would be; a far value has room for its name.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([-1.0, *finite]), max([1.0, *finite])
    room = (high - low) / 14
    low, high = low - room * (low < -1), high + room * (high > 1)
    missing = max(PROFILE_SPAN - (high - low), 0.0)
    return low - 0.75 * missing, high + 0.25 * missing


def _profile_scales(frame: Frame) -> Spec:
    x = {
        "field": "x", "type": "quantitative", "title": "layer, counted from the input (left) to the loss (right)",
        "scale": {"domain": [0.5, frame.last + 0.5], "nice": False},
        "axis": {"grid": False, "values": _ticks(1, frame.last, most=20), **_WHOLE},
    }  # fmt: skip
    strips = {at: text for at, text in ((frame.zero, "exactly 0"), (frame.nan, "not finite")) if at is not None}
    label_ = "".join(f"datum.value === {at!r} ? '{text}' : " for at, text in strips.items()) + "datum.label"
    ticks = [tick for tick in _ticks(frame.low, frame.high) if all(abs(tick - at) > 0.9 * frame.strip for at in strips)]
    in_strip = " || ".join(f"datum.value === {at!r}" for at in strips) or "false"
    y = {
        "field": "y", "type": "quantitative", "title": "decades (log10)",
        "scale": {"domain": frame.domain, "nice": False},
        "axis": {"values": [*ticks, *strips], **_WHOLE, "labelOverlap": False,
                 "labelExpr": label_,
                 "gridColor": {"condition": {"test": in_strip, "value": "transparent"}, "value": LINES}},
    }  # fmt: skip
    return {"x": x, "y": y}


def _ticks(low: float, high: float, *, most: int = 9) -> list[int]:
    """Whole numbers at even distances, at most about `most`."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if (high - low) / step <= most)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step)) or [math.ceil(low)]


def _band(scales: Spec) -> Spec:
    """One decade to each side of the output."""
    return _rect(-1, 1, BAND, scales)


def _strips(frame: Frame, scales: Spec) -> list[Spec]:
    """Below and above the axis: where what is no number is marked."""
    bottom, top = frame.domain
    strips = [_rect(bottom, frame.low, STRIP, scales)] if frame.zero is not None else []
    return [*strips, _rect(frame.high, top, STRIP, scales)] if frame.nan is not None else strips


def _rect(low: float, high: float, color: str, scales: Spec) -> Spec:
    return {
        "data": {"values": [{"low": low, "high": high}]},
        "mark": {"type": "rect", "color": color, "aria": False},
        "encoding": {"y": {**scales["y"], "field": "low"}, "y2": {"field": "high"}},
    }


def _curve(points: Sequence[Spec], series: str, color: str, *, width: float) -> Spec | None:
    """A line over neighbouring points; it stops where there is no number."""
    joined = [point for point in points if point.get("trunk", True)]
    if not joined:
        return None
    scale = {"domain": [GRADIENT, ACTS], "range": [color, GREY]}
    return {
        "data": {"values": [{"x": p["x"], "y": p["y"], "series": series, "part": p.get("part", 0)} for p in joined]},
        "mark": {"type": "line", "strokeWidth": width, "aria": False},
        "encoding": {
            "color": {"field": "series", "type": "nominal", "scale": scale},
            "detail": {"field": "part", "type": "nominal"},
        },
    }


def _dots(points: Sequence[Spec], color: str) -> Spec | None:
    if not points:
        return None
    fill = {"condition": {"test": "datum.trunk", "value": color}, "value": PAPER}
    return {
        "data": {"values": [{"x": p["x"], "y": p["y"], "said": p["said"], "trunk": p["trunk"]} for p in points]},
        "mark": {"type": "point", "opacity": 1, "stroke": color, "strokeWidth": 1.2,
                 "size": 30 if len(points) <= 70 else 10 if len(points) <= 150 else 4},
        "encoding": {"fill": fill, "description": {"field": "said"}},
    }  # fmt: skip


def _marks(points: Sequence[Spec], state: str, y: float | None, mark: Spec) -> Spec | None:
    """The points of a state in their strip."""
    if y is None:
        return None
    size_ = 40 if len(points) <= 70 else 24
    values = [{"x": point["x"], "y": y, "said": point["said"]} for point in points if point["state"] == state]
    return {
        "data": {"values": values},
        "mark": {"type": "point", "filled": False, "opacity": 1, "size": size_, **mark},
        "encoding": {"description": {"field": "said"}},
    }


def _worst_name(diagnosis: Diagnosis, drawn: Sequence[Spec], frame: Frame) -> Spec | None:
    """The name and the decades of the furthest site that can be drawn, where there is a finding."""
    worst = max(drawn, key=lambda point: abs(point["y"]), default=None)
    if worst is None or not diagnosis.findings or abs(worst["y"]) < 1:
        return None
    text = f"{shorten(worst['name'], 32)}  {decades(worst['y'])}"
    return _text(worst["x"], worst["y"], text, frame, dy=-7 if worst["y"] > 0 else 7)


def _zero_name(diagnosis: Diagnosis, points: Sequence[Spec], frame: Frame) -> Spec | None:
    """Where the gradient, going back from the loss, first is exactly 0; left out where the strip has no room."""
    zeros = [point for point in points if point["state"] == "zero"]
    if frame.zero is None or zeros[-1]["x"] > 0.6 * frame.last:
        return None
    text = f"reaches 0 in {diagnosis.header.dtype or 'float32'} at {shorten(zeros[-1]['name'], 32)}"
    return _text(zeros[-1]["x"], frame.zero, text, frame, dy=0)


def _text(x: float, y: float, text: str, frame: Frame, *, dy: float) -> Spec:
    """Words beside a point, on the side that has room."""
    left = x > frame.last * 0.6
    mark = {"type": "text", "align": "right" if left else "left", "dx": -9 if left else 9, "dy": dy,
            "fontWeight": "bold"}  # fmt: skip
    return {"data": {"values": [{"x": x, "y": y, "text": text}]}, "mark": mark, "encoding": {"text": {"field": "text"}}}


# The waterfall of causes.


def cause_waterfall(diagnosis: Diagnosis, finding: int = 0) -> Spec:
    """Where the decades of a finding go, from the loss to the input: one bar for each cause, below them the sum.

    The axis reaches at least 3 decades to each side.
    """
    bars = _bars(shares(diagnosis, finding))
    ends = [bar["end"] for bar in bars]
    low, high = min([-WATERFALL_REACH, *ends]), max([WATERFALL_REACH, *ends])
    pad = (high - low) * 0.08  # room for the numbers at the ends of the bars
    low, high = low - pad * (low < -WATERFALL_REACH), high + pad * (high > WATERFALL_REACH)
    names = [bar["name"] for bar in bars]
    x = {
        "field": "start", "type": "quantitative", "title": "decades (log10), from the loss towards the input",
        "scale": {"domain": [low, high], "nice": False}, "axis": {"values": _ticks(low, high), **_WHOLE},
    }  # fmt: skip
    y = {"field": "name", "type": "nominal", "sort": names, "title": None, "axis": {"ticks": False, "domain": False,
         "labelPadding": 8, "labelFontSize": 12, "minExtent": 150},
         "scale": {"paddingInner": 0.35, "paddingOuter": 0.2}}  # fmt: skip
    scales = {"x": x, "y": y}
    layers = [_links(bars), _boxes(bars), _bar_texts(bars)]
    size_ = {"width": 560, "height": 26 * len(bars)}
    said = waterfall_words(diagnosis, finding)
    return _figure([_zero_line(scales)], layers, scales, size_, title="Causes", said=said)


def waterfall_words(diagnosis: Diagnosis, finding: int = 0) -> str:
    """The waterfall in a sentence, for who cannot see it."""
    found = shares(diagnosis, finding)
    if not found:
        return "No cause with decades."
    parts = [f"{words(a.cause)} {decades(a.decades)}" for a in found]
    return f"{', '.join(parts)}; total {decades(total(found))} decades."


def _bars(found: Sequence[Attribution]) -> list[Spec]:
    """One bar a cause, each beginning where the last one ended, and the total from 0."""
    whole, at, bars = total(found), 0.0, []
    for attribution in found:
        part = attribution.decades or 0.0
        if not math.isfinite(part) or (attribution.cause != "unexplained" and decades(part) == "0.0"):
            continue
        name = clean(words(attribution.cause)) + (" (helped)" if helped(attribution, whole) else "")
        color = GREY if attribution.cause == "unexplained" else BLUE if part < 0 else VERMILLION
        bars.append(_bar(name, at, part, color))
        at += part
    bars.append(_bar("total", 0.0, whole, INK))
    return _unique(bars)


def _bar(name: str, start: float, part: float, color: str) -> Spec:
    return {"name": name, "start": start, "end": start + part, "part": decades(part), "color": color,
            "said": f"{name}: {decades(part)} decades"}  # fmt: skip


def _unique(bars: list[Spec]) -> list[Spec]:
    """Bars of one name would be drawn on one row: number them."""
    seen: dict[str, int] = {}
    for bar in bars:
        seen[bar["name"]] = seen.get(bar["name"], 0) + 1
        if seen[bar["name"]] > 1:
            bar["name"] = f"{bar['name']} {seen[bar['name']]}"
    return bars


def _zero_line(scales: Spec) -> Spec:
    return {
        "data": {"values": [{"start": 0}]},
        "mark": {"type": "rule", "color": INK, "strokeWidth": 1, "aria": False},
        "encoding": {"x": scales["x"]},
    }


def _links(bars: Sequence[Spec]) -> Spec | None:
    """Thin lines from the end of each bar down to the next."""
    values = [{"start": a["end"], "name": a["name"], "below": b["name"]} for a, b in pairwise(bars[:-1])]
    if not values:
        return None
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "color": LATER, "strokeWidth": 1, "aria": False},
        "encoding": {"y2": {"field": "below"}},
    }


def _boxes(bars: Sequence[Spec]) -> Spec:
    return {
        "data": {"values": list(bars)},
        "mark": {"type": "bar"},
        "encoding": {
            "x2": {"field": "end"},
            "color": {"field": "color", "type": "nominal", "scale": None},
            "description": {"field": "said"},
        },
    }


def _bar_texts(bars: Sequence[Spec]) -> Spec:
    """The decades of each bar, beyond its end."""
    values = []
    for bar in bars:
        left = bar["end"] < bar["start"]
        values.append({"at": bar["end"], "name": bar["name"], "part": bar["part"], "left": left})
    sides = ((True, "right", -5), (False, "left", 5))
    layers = [
        {
            "transform": [{"filter": f"datum.left === {str(left).lower()}"}],
            "mark": {"type": "text", "align": align, "dx": dx, "fontSize": 12},
        }
        for left, align, dx in sides
    ]
    x = {"field": "at", "type": "quantitative"}
    return {"data": {"values": values}, "encoding": {"x": x, "text": {"field": "part"}}, "layer": layers}


# From a specification to a picture.


def _figure(
    behind: Sequence[Spec], layers: Sequence[Spec | None], scales: Spec, size_: Spec, *, title: str, said: str
) -> Spec:
    """The layers on their scales, in front of what has no place on both of them."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{title}. {said}",
        **size_,
        "config": CONFIG,
        "layer": [*behind, {"encoding": scales, "layer": [layer for layer in layers if layer]}],
        "usermeta": {"title": title, "said": said},
    }


def to_png(spec: Spec, *, scale: float = 2.0, dark: bool = False) -> bytes:
    """The picture as PNG on its paper's colour."""
    themed = {**_dark(spec), "background": DARK[PAPER]} if dark else {**spec, "background": PAPER}
    return bytes(vl_convert.vegalite_to_png(themed, scale=scale))


def to_svg(spec: Spec, *, name: str = "figure", paper: bool = False) -> str:
    """The picture as SVG that follows the reader's light or dark page, with a title, a description and, at each
    mark, the text that a pointer reads. `name` keeps ids apart on one page; `paper` fills the background.
    """
    root = Xml.fromstring(vl_convert.vegalite_to_svg({**spec, "background": PAPER if paper else "transparent"}))
    _name_ids(root, name)
    _hover_texts(root)
    _describe(root, spec, name)
    Xml.register_namespace("", _SVG[1:-1])
    return Xml.tostring(root, encoding="unicode")


_SVG = "{http://www.w3.org/2000/svg}"


def _name_ids(root: Xml.Element, name: str) -> None:
    """Put `name` before each id and each reference to one."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _hover_texts(root: Xml.Element) -> None:
    """Marks carry their text as aria-label; a title child makes it readable by a pointer, without a script.

    The whole is one image for a screen reader (its table is the twin), so the labels inside go.
    """
    for element in list(root.iter()):
        text = element.get("aria-label")
        if text and element.get("aria-roledescription") in {"point", "bar"}:
            Xml.SubElement(element, f"{_SVG}title").text = text
        for key in ("aria-label", "aria-roledescription", "aria-hidden", "role"):
            element.attrib.pop(key, None)


def _describe(root: Xml.Element, spec: Spec, name: str) -> None:
    """Title and description of the whole picture, its size to the column, its colours on a dark page."""
    title = Xml.Element(f"{_SVG}title", {"id": f"{name}-title"})
    title.text = spec["usermeta"]["title"]
    desc = Xml.Element(f"{_SVG}desc", {"id": f"{name}-desc"})
    desc.text = spec["usermeta"]["said"]
    style = Xml.Element(f"{_SVG}style")
    style.text = dark_style()
    for i, element in enumerate((title, desc, style)):
        root.insert(i, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.set("style", "max-width:100%;height:auto")


def dark_style() -> str:
    """The rules that give the pictures their dark colours; printed pages stay light."""
    rules = "".join(f'[fill="{c}"]{{fill:{d}}}[stroke="{c}"]{{stroke:{d}}}' for c, d in DARK.items())
    return f"@media screen and (prefers-color-scheme:dark){{{rules}}}"


def _dark(spec: Any) -> Any:
    """The specification with the dark colours."""
    if isinstance(spec, dict):
        return {key: _dark(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_dark(value) for value in spec]
    return DARK.get(spec, spec) if isinstance(spec, str) else spec
