"""Every symptom fires on its sick nets, is silent on its healthy ones, and is a page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gradwell.errors import NotMeasurable
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.records.verdict import Finding
from gradwell.shelf import shelf

SYMPTOMS = shelf("gradwell.symptoms")
HEADINGS = [
    "What it does to training", "How it is measured", "When it is no problem", "What helps first", "Source",
]  # fmt: skip


def nets(fact: str) -> list:
    return [pytest.param(s, c, id=f"{s}-{c}") for s, entry in SYMPTOMS.items() for c in entry.fact(fact)]


@pytest.fixture
def record(check_run, watch_run) -> Callable[[str, NetConfig], Run]:
    """What a symptom reads: the first step, or a training of as many `STEPS` as it asks for."""

    def of(symptom: str, config: NetConfig) -> Run:
        steps = SYMPTOMS[symptom].fact("STEPS", 1)
        return check_run(config) if steps == 1 else watch_run(config, steps)

    return of


def found(record, symptom: str, config: NetConfig) -> list[Finding]:
    try:
        return list(SYMPTOMS[symptom](record(symptom, config)))
    except NotMeasurable:
        return []


@pytest.mark.parametrize(("symptom", "config"), nets("SICK"))
def test_fires_on_its_sick_nets(record, symptom, config):
    findings = found(record, symptom, config)
    assert len(findings) == 1
    finding = findings[0]
    assert finding.symptom == symptom
    assert finding.evidence
    assert finding.summary
    assert finding.summary.isprintable()
    assert not finding.summary.endswith(".")
    run = record(symptom, config)
    sites = {site.site for site in run.sites} | {param.site for param in run.header.params}
    assert {place.site for place in finding.where} <= sites


@pytest.mark.parametrize(("symptom", "config"), nets("HEALTHY"))
def test_is_silent_on_its_healthy_nets(record, symptom, config):
    assert found(record, symptom, config) == []


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_has_sick_and_healthy_nets(symptom):
    assert SYMPTOMS[symptom].fact("SICK")
    assert SYMPTOMS[symptom].fact("HEALTHY")


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_is_a_page(symptom):
    page = SYMPTOMS[symptom].page
    assert list(page.blocks) == HEADINGS
    assert all(page.blocks.values())
    assert page.title.endswith(".")
    for name in SYMPTOMS[symptom].thresholds:
        assert f"`{name}`" in page.text or name.startswith("adaptive_"), f"threshold {name} is not on the page"


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_thresholds_are_numbers_in_order(symptom):
    known = SYMPTOMS[symptom].thresholds
    assert all(isinstance(value, float) for value in known.values())
    grades = [known[name] for name in ("mild", "serious", "fatal") if name in known]
    assert grades == sorted(grades)
