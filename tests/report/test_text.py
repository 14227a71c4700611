"""The text: golden files, and what must hold for every diagnosis at every width.

`GRADWELL_GOLDEN=write pytest tests/report` writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gradwell.records.run import Header
from gradwell.records.text import largest_cause, render, render_line, shorten, spark, terminal
from gradwell.records.verdict import Attribution, Diagnosis, Finding, NotChecked, ProfileRow, Where

GOLDEN = Path(__file__).parent / "golden"
NAMED = ("vanishing", "healthy", "exploding", "nonfinite", "underflow", "unseen", "unmeasured", "all_zero", "one_layer")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("width", "ascii_"), [(80, False), (40, True)])
def test_the_text_is_as_agreed(build: Callable[..., Diagnosis], name: str, width: int, ascii_: bool) -> None:
    file = GOLDEN / f"{name}-{width}.txt"
    text = render(build(name), width=width, ascii=ascii_) + "\n"
    if os.environ.get("GRADWELL_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_str_is_the_text_at_80_cells(case: Diagnosis) -> None:
    assert str(case) == render(case, width=80)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("ascii_", [False, True])
def test_each_state_fits(case: Diagnosis, width: int, ascii_: bool) -> None:
    _check(case, width, ascii_)


def _check(diagnosis: Diagnosis, width: int, ascii_: bool) -> None:
    text = render(diagnosis, width=width, ascii=ascii_)
    code = {f"      {line}".rstrip() for p in diagnosis.prescriptions for line in p.in_your_code.splitlines()}
    for line in text.split("\n"):
        if not (line.startswith(" " * 6) and diagnosis.prescriptions) and line not in code:
            assert cell_len(line) <= width, line
        assert line == line.rstrip()
        assert line.isprintable()
    assert not re.search(r"(?<![\d.])-0\.0(?!\d)", text)
    assert text.isascii() or not ascii_
    assert "nan %" not in text


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("ab.层 \x1b\n", max_size=90)
GAINS = st.none() | st.floats(-330, 330) | st.sampled_from([-math.inf, math.inf, math.nan, -0.0, -0.04])
FRACTIONS = st.none() | st.floats(-2, 2)


@st.composite
def diagnoses(draw: st.DrawFn) -> Diagnosis:
    """Any diagnosis that the records allow, with names that nobody expects."""
    rows = [
        ProfileRow(draw(NAMES), draw(NAMES), "Linear", draw(st.integers(0, 3)), i, 1, draw(GAINS), None, draw(GAINS),
                   draw(FRACTIONS), draw(FRACTIONS), update_ratio=draw(GAINS), source=draw(st.none() | NAMES))
        for i in range(draw(st.integers(0, 20)))
    ]  # fmt: skip
    findings = [
        Finding(draw(st.sampled_from(["vanishing_gradient", "dead_units"])), "mild", [Where(draw(NAMES))], 0, 1, [],
                draw(NAMES))
        for _ in range(draw(st.integers(0, 2)))
    ]  # fmt: skip
    causes = [
        Attribution(i, draw(st.sampled_from(["weight_gain", "unexplained"])), "share", draw(GAINS), draw(FRACTIONS),
                    draw(NAMES))
        for i in range(len(findings))
    ]  # fmt: skip
    verdict = "mild" if findings else draw(st.sampled_from(["healthy", "undecided"]))
    checks = [NotChecked("slow_loss", draw(NAMES)) for _ in range(draw(st.integers(0, 2)))]
    header = Header(tool="gradwell", argv=[draw(NAMES)], dtype="float32")
    return Diagnosis(header, verdict, findings, causes, not_checked=checks, notes=[draw(NAMES)], profile=rows)


@settings(max_examples=60, deadline=None)
@given(diagnoses(), st.integers(40, 200), st.booleans())
def test_any_diagnosis_fits_any_width(diagnosis: Diagnosis, width: int, ascii_: bool) -> None:
    _check(diagnosis, width, ascii_)


def test_the_first_line_says_everything(build: Callable[..., Diagnosis]) -> None:
    assert render_line(build("vanishing")) == (
        "FATAL vanishing_gradient: from the output to hidden.0 (digits_sigmoid.py:21) the gradient shrinks by 13.6 "
        "decades (40 million million times); largest cause: activation slope"
    )
    assert render_line(build("healthy")) == (
        "HEALTHY: the gradient arrives at all 21 layers within 0.8 decades of the output's."
    )
    assert render_line(build("unseen")).startswith("UNDECIDED: no backward pass was seen; 2 symptoms")
    assert render_line(build("all_zero")) == "UNDECIDED: every gradient is exactly 0."
    assert "\n" not in render_line(build("hostile"))


def test_the_largest_cause_has_the_sign_of_the_total(build: Callable[..., Diagnosis]) -> None:
    parts = [("weight_gain", 9.0), ("activation_slope", -6.0), ("between_modules", -4.0)]
    causes = [Attribution(0, cause, "share", part, None, "") for cause, part in parts]
    finding = Finding("vanishing_gradient", "mild", [], 0, 0, [], "")
    found = largest_cause(Diagnosis(Header("t"), "mild", [finding], causes), 0)
    assert found is not None
    assert found.cause == "activation_slope"
    text = render(Diagnosis(Header("t"), "mild", [finding], causes))
    assert "+9.0" in text
    assert "weight gain (helped)" in text


def test_colour_only_where_asked_for(case: Diagnosis) -> None:
    plain, coloured = render(case), render(case, color=True)
    assert "\x1b" not in plain
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_a_healthy_net_looks_flat() -> None:
    text, low, high = spark([-0.4, 0.3, 0.0, -0.2, 0.4], cells=60)
    assert len(set(text)) == 1
    assert high - low == pytest.approx(6)


def test_zero_nan_and_missing_have_their_own_marks() -> None:
    assert spark([-math.inf, math.nan, None, 0.0], cells=60)[0] == "▽×·▅"
    assert spark([-math.inf, -1.0, math.nan, 0.0, None, -9.0], cells=3, ascii=True)[0] == "0X "


def test_more_sites_than_cells_share_a_sign(build: Callable[..., Diagnosis]) -> None:
    text = render(build("many_layers"), width=60)
    assert "11 layers a sign" in text
    assert "389 more layers not shown" in text


@given(st.text("abc.层", max_size=80), st.integers(4, 60))
def test_shortened_names_fit(text: str, width: int) -> None:
    assert cell_len(shorten(text, width)) <= width


def test_a_pipe_gets_80_cells_and_no_colour() -> None:
    assert terminal(io.StringIO()) == {"width": 80, "color": False, "ascii": False}
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert terminal(latin) == {"width": 80, "color": False, "ascii": True}


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal(Screen())["color"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal(Screen())["color"]
