"""Answers that are kept: asked again only when the record has grown, dropped with the record."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from gradwell.measure.once import once_a_header, once_a_step
from gradwell.records.run import Header, Param, Site, Step


@pytest.fixture
def asked() -> list[Any]:
    return []


def site(name: str) -> Site:
    return Site(name, "Linear")


def test_a_step_is_asked_again_when_sites_have_come(asked):
    @once_a_step
    def count(sites, step):
        asked.append((len(sites), step.step))
        return len(sites)

    sites, one, two = [site("a")], Step(0), Step(1)
    assert [count(sites, one), count(sites, one), count(sites, two), count(list(sites), one)] == [1, 1, 1, 1]
    assert asked == [(1, 0), (1, 1)]  # other sites that are equal have the same answer
    sites.append(site("b"))
    assert [count(sites, one), count(sites, one), count([site("c"), site("b")], one)] == [2, 2, 2]
    assert asked[2:] == [(2, 0), (2, 0)]


def test_a_header_is_asked_again_when_parameters_or_sites_have_come(asked):
    @once_a_header
    def count(header):
        asked.append(1)
        return len(header.sites), len(header.params)

    header = Header("gradwell")
    assert count(header) == count(header) == (0, 0)
    header.sites.append(site("a"))
    assert count(header) == count(header) == (1, 0)
    header.params.append(Param("a.weight", "a", [2, 2]))
    assert count(header) == count(header) == (1, 1)
    assert count(Header("gradwell")) == (0, 0)
    assert len(asked) == 4


def test_a_record_that_is_gone_is_not_kept():
    class Answer:
        pass

    given = once_a_step(lambda sites, step: Answer())
    step = Step(0)
    answer, record = weakref.ref(given([], step)), weakref.ref(step)
    assert answer() is not None
    del step
    gc.collect()
    assert (answer(), record()) == (None, None)
