"""The pictures: valid specifications, honest axes, marks of their own for what is no number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree as Xml

import altair as alt
import pytest

from gradwell.records.verdict import Diagnosis
from gradwell.report import figures

SVG = "{http://www.w3.org/2000/svg}"


def values(spec: Any) -> Iterator[dict[str, Any]]:
    """All data that a specification holds."""
    for layer in front(spec)["layer"]:
        yield from layer.get("data", {}).get("values", [])


def front(spec: Any) -> Any:
    """The layers that share the scales."""
    return spec["layer"][-1]


def test_altair_takes_the_specifications(case: Diagnosis) -> None:
    alt.Chart.from_dict(figures.depth_profile(case))
    if case.findings:
        alt.Chart.from_dict(figures.cause_waterfall(case))


def test_svg_is_well_formed_and_described(case: Diagnosis) -> None:
    svg = figures.to_svg(figures.depth_profile(case), name="one")
    root = Xml.fromstring(svg)
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert desc is not None
    assert desc.text
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert all(name.startswith("one-") for name in ids)
    assert len(ids) == len(set(ids))
    assert "NaN" not in svg


@pytest.mark.parametrize(("name", "least"), [("healthy", 6.0), ("one_layer", 6.0), ("vanishing", 13.6)])
def test_the_profile_spans_six_decades(build: Callable[..., Diagnosis], name: str, least: float) -> None:
    low, high = front(figures.depth_profile(build(name)))["encoding"]["y"]["scale"]["domain"]
    assert high - low >= least - 1e-9
    assert low <= -1
    assert high >= 1


def test_the_waterfall_spans_three_decades_to_each_side(build: Callable[..., Diagnosis]) -> None:
    for name in ("vanishing", "exploding", "hostile"):
        low, high = front(figures.cause_waterfall(build(name)))["encoding"]["x"]["scale"]["domain"]
        assert low <= -3
        assert high >= 3


def test_nothing_is_drawn_below_the_dtype(build: Callable[..., Diagnosis]) -> None:
    spec = figures.depth_profile(build("underflow"))
    drawn = [value["y"] for value in values(spec) if "series" in value]
    assert min(drawn) > -46
    triangles = [layer for layer in front(spec)["layer"] if layer["mark"].get("shape") == "triangle-down"]
    assert len(triangles[0]["data"]["values"]) == 40
    assert "reaches 0 in float32 at hidden.39" in figures.profile_words(build("underflow"))


def test_a_ratio_below_float32_is_an_underflow(build: Callable[..., Diagnosis]) -> None:
    spec = figures.depth_profile(build("vanishing", layers=64, lost=300.0))
    assert min(value["y"] for value in values(spec) if "series" in value) > -45


def test_nan_is_a_cross_and_breaks_the_line(build: Callable[..., Diagnosis]) -> None:
    spec = figures.depth_profile(build("nonfinite"))
    crosses = [layer for layer in front(spec)["layer"] if layer["mark"].get("shape", "").startswith("M")]
    assert len(crosses[0]["data"]["values"]) == 6
    lines = [v for v in values(spec) if v.get("series") == figures.GRADIENT]
    assert all(math.isfinite(v["y"]) for v in lines)


def test_bars_add_up(build: Callable[..., Diagnosis]) -> None:
    bars = figures._bars(figures.shares(build("vanishing"), 0))
    *parts, whole = bars
    assert sum(bar["end"] - bar["start"] for bar in parts) == pytest.approx(whole["end"])
    assert [bar["name"] for bar in parts][-2:] == ["between modules (helped)", "unexplained"]


def test_many_layers_are_grouped_and_keep_the_worst(build: Callable[..., Diagnosis]) -> None:
    places = figures.places(build("many_layers"))
    assert len(places) == 256
    assert sum(place.group for place in places) == 401
    assert places[0].row.site == "hidden.0"


def test_hover_text_names_the_layer_and_its_line(build: Callable[..., Diagnosis]) -> None:
    svg = figures.to_svg(figures.depth_profile(build("vanishing")))
    assert "<title>hidden.0: -13.6 decades, 40 million million times smaller than at the output, Linear, " in svg
    assert "digits_sigmoid.py:21</title>" in svg


def test_png_in_light_and_dark(build: Callable[..., Diagnosis]) -> None:
    spec = figures.cause_waterfall(build("exploding"))
    assert figures.to_png(spec, scale=1).startswith(b"\x89PNG")
    assert figures.to_png(spec, scale=1) != figures.to_png(spec, scale=1, dark=True)
