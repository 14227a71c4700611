"""A treatment as text and on the page: what cures comes first, every arm has its evidence, nothing is too wide."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from rich.cells import cell_len

from gradwell.errors import UnreadableInput
from gradwell.records.treatment import Baseline, Control, Outcome, Treatment, load_treatment, ranked
from gradwell.records.treatment_text import number, ratio_words, render_treatment, span, verdict_words
from gradwell.records.verdict import Diagnosis, Remedy
from gradwell.report.before_after import figures_of
from gradwell.report.figures import to_svg
from gradwell.report.html import report_html

CURE = Outcome(
    [Remedy("swap_activation", {"to": "relu"}), Remedy("reinit", {"init": "he"})], 0.3, -1.62, (-1.9, -1.34), 0.0,
    ["vanishing_gradient"], ["dead_units"], 1.04, "cures", "from torch import nn\n\nlines(to_paste)", [0.1] * 5,
    [(0, 2.3), (99, 0.2), (199, 0.05)],
)  # fmt: skip
HARM = Outcome([Remedy("clip_norm", {"max_norm": 1.0})], 3.0, 0.4, (0.1, 0.7), 0.6, [], [], 1.2, "harms")
LEFT = Outcome([Remedy("add_<b>norm", {"norm": "batch"})], 1.0, -0.2, note="its process was killed twice")


def treated(diagnosis: Diagnosis, outcomes: list[Outcome], **options: object) -> Treatment:
    base = Baseline(0.1, 2.31, [2.3] * 5, 0.0, 1e-3, [(0, 2.31), (199, 2.3)])
    return Treatment(diagnosis, base, Control(0.01, (-0.03, 0.05)), ranked(outcomes), 200, 5, 61.0, **options)


@pytest.fixture
def cured(sick: Diagnosis, well: Diagnosis) -> Treatment:
    return treated(sick, [LEFT, HARM, CURE], after=well, notes=["warmup: does not fit."])


@pytest.fixture
def sick(build) -> Diagnosis:
    return build("vanishing")


@pytest.fixture
def well(build) -> Diagnosis:
    return build("healthy")


def test_the_first_line_says_what_cures_by_how_much_and_what_is_gone(cured):
    assert verdict_words(cured) == (
        "CURED by swap_activation(to=relu) + reinit(init=he): the loss becomes 42 times smaller (-1.62 decades, 95 % "
        "interval -1.90 to -1.34); gone: vanishing_gradient; new: dead_units"
    )


def test_what_helps_cures_not(sick):
    helped = treated(sick, [Outcome([Remedy("warmup")], 1.0, -0.05, (-0.08, -0.02), 0.0, verdict="helps")])
    assert verdict_words(helped).startswith("HELPED, NOT CURED by warmup: the loss becomes 11 % smaller")
    assert helped.best is not None
    assert not helped.cured


def test_nothing_that_works_is_said_so(sick, well):
    assert verdict_words(treated(sick, [HARM, LEFT])) == (
        "NOTHING CURES: none of the 1 arms that were judged on fresh seeds lowers the loss for certain."
    )
    assert "too short to judge any of the 1 arms" in verdict_words(treated(sick, [LEFT]))
    assert "no remedy that is known fits" in verdict_words(Treatment(sick))
    assert verdict_words(Treatment(well)).startswith("NOTHING TO CURE: HEALTHY")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("ascii_", [False, True])
def test_no_line_is_wider_than_asked_for(cured, width, ascii_):
    lines = render_treatment(cured, width=width, ascii=ascii_).splitlines()
    code = {"      from torch import nn", "      lines(to_paste)"}
    assert code < set(lines)
    assert all(cell_len(line) <= width for line in lines if line not in code)
    assert not ascii_ or "\n".join(lines).isascii()


def test_every_arm_stands_in_the_table_with_its_interval_and_notes_are_told(cured):
    text = render_treatment(cured, width=120)
    for words in ("cures", "-1.90 to -1.34", "harms", "+0.10 to +0.70", "60 %", "x1.04", "undecided", "-0.20"):
        assert words in text
    assert "warmup: does not fit." in text
    assert "add_<b>norm(norm=batch): its process was killed twice" in text
    assert "the baseline against itself: +0.01 (-0.03 to +0.05)" in " ".join(text.split())


def test_colour_changes_nothing_but_colour(cured):
    import re

    plain = re.sub(r"\x1b\[[\d;]*m", "", render_treatment(cured, color=True))
    assert plain == render_treatment(cured)
    assert plain == str(cured)


def test_numbers_as_words():
    assert [number(x) for x in (None, -1.234, 0.0)] == ["-", "-1.23", "+0.00"]
    assert span((None, None)) == "-"
    assert ratio_words(-3.0) == "1000 times smaller"
    assert ratio_words(0.05) == "12 % larger"


def test_the_page_holds_the_arms_the_lines_and_both_pictures_and_escapes_names(cured):
    page = report_html(cured.diagnosis, treatment=cured)
    assert "What was tried" in page
    assert "lines(to_paste)" in page
    assert "add_&lt;b&gt;norm" in page
    assert page.count("Dashed: before; solid: after.") == 2
    assert "What was tried" not in report_html(cured.diagnosis)


def test_the_pictures_are_drawn_only_where_something_works(cured, sick):
    specs = figures_of(cured)
    assert len(specs) == 2
    assert "before 2.3, after 0.05" in specs[0]["description"]
    assert "before -13.6" in specs[1]["description"]
    assert all("<svg" in to_svg(spec) for spec in specs)
    assert figures_of(treated(sick, [HARM])) == []


def test_the_record_as_json(cured):
    record = json.loads(cured.to_json())
    assert record["schema"] == 1
    assert [o["verdict"] for o in record["outcomes"]] == ["cures", "undecided", "harms"]
    assert record["outcomes"][1]["interval"] == [None, None]
    assert record["after"]["verdict"] == "healthy"
    assert json.loads(Treatment(cured.diagnosis).to_json())["baseline"] is None


def test_the_record_is_read_back_as_it_was(cured, tmp_path):
    assert load_treatment(tmp_path) is None
    (tmp_path / "treatment.json").write_bytes(cured.to_json())
    again = load_treatment(tmp_path)
    assert again.to_json() == cured.to_json()
    assert str(again) == str(cured)


def test_non_finite_numbers_are_read_back(cured, tmp_path):
    odd = msgspec.structs.replace(cured, baseline=Baseline(1.0, math.inf, [None, math.nan]))
    (tmp_path / "treatment.json").write_bytes(odd.to_json())
    again = load_treatment(tmp_path).baseline
    assert again.start == math.inf
    assert again.losses[0] is None
    assert math.isnan(again.losses[1])


def test_a_damaged_record_is_told_in_one_sentence(tmp_path):
    (tmp_path / "treatment.json").write_text('{"schema": 1, "outcomes": 3')
    with pytest.raises(UnreadableInput, match=r"treatment\.json is no treatment .*; remove it to read the rest"):
        load_treatment(tmp_path)
