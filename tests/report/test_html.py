"""The page and the notebook: they parse, hold everything, ask no host for anything and run no script."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from gradwell.records.run import Event, Run
from gradwell.records.verdict import Diagnosis
from gradwell.report.html import report_html
from gradwell.report.notebook import mimebundle
from gradwell.report.tables import profile_csv

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: what opens must close, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def check(page: str) -> Page:
    """The page parses, fetches nothing, has no script and no event handler."""
    read = Page(page)
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        if not name.startswith("xmlns"):
            assert "http:" not in (value or "")
            assert "https:" not in (value or "")
        if name in {"src", "href", "xlink:href"}:
            assert (value or "").startswith(("data:", "#"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    return read


def test_every_state_makes_a_page(case: Diagnosis) -> None:
    page = report_html(case)
    read = check(page)
    assert len(page) < 300_000
    for finding in case.findings:
        assert finding.severity in read.words.lower()
    for item in case.not_checked:
        assert item.symptom in read.words
    measured = any(row.log10_gain is not None for row in case.profile)
    assert ("svg" in read.tags) == measured
    assert measured or "No gradient was measured" in read.words
    assert read.tags.count("figure") == read.tags.count("desc")


def test_every_state_makes_a_notebook_cell(case: Diagnosis) -> None:
    bundle = mimebundle(case)
    check(bundle["text/html"])
    assert bundle["text/plain"] == str(case)
    assert "svg" not in Page(bundle["text/html"]).tags


def test_names_from_the_user_stay_text(build: Callable[..., Diagnosis]) -> None:
    for page in (report_html(build("hostile")), mimebundle(build("hostile"))["text/html"]):
        read = Page(page)
        assert "<img src=x onerror=alert(1)>" in read.words
        assert "\x1b" not in page
        page.encode()  # no lone surrogates


def test_the_page_at_64_layers_is_small(build: Callable[..., Diagnosis]) -> None:
    assert len(report_html(build("vanishing", layers=64, lost=30.0)).encode()) < 150_000


def test_the_page_says_what_the_text_says(build: Callable[..., Diagnosis]) -> None:
    read = Page(report_html(build("vanishing")))
    words = " ".join(read.words.split())
    assert "▼ FATAL vanishing gradient" in words
    assert "swap_activation(to=relu) + reinit(init=he, gain=1)" in words
    assert "nn.init.kaiming_normal_(layer.weight)" in words
    assert "between modules (helped) +0.9 -7 %" in words
    assert "Measuring cost 0.81 % of the training's time" in words


@pytest.mark.parametrize(
    ("name", "sign"), [("healthy", "●"), ("exploding", "▲"), ("nonfinite", "✕"), ("unseen", "?"), ("hostile", "■")]
)
def test_each_state_has_a_shape(build: Callable[..., Diagnosis], name: str, sign: str) -> None:
    assert f'<span aria-hidden="true">{sign}</span>' in report_html(build(name))


def test_events_of_the_run_are_told(build: Callable[..., Diagnosis]) -> None:
    diagnosis = build("vanishing")
    run = Run(diagnosis.header, events=[Event("skipped_step", i) for i in range(25)])
    words = Page(report_html(diagnosis, run=run, static=True)).words
    assert "step 3: skipped step" in words
    assert "and 5 more" in words


def test_csv_has_one_line_a_row(case: Diagnosis) -> None:
    import pandas as pd

    text = profile_csv(case)
    assert text.splitlines()[0].startswith("root,site,kind,call,order,step,act_rms,delta_norm,log10_gain")
    import io

    frame = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert len(frame) == len(case.profile)


def test_csv_keeps_zero_and_missing_apart(build: Callable[..., Diagnosis]) -> None:
    assert ",-inf," in profile_csv(build("all_zero"))
    assert ",,,0.0," in profile_csv(build("unmeasured"))
