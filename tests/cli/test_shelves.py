"""`gradwell list` and `gradwell explain`: every id of the contract has a page, and no other id is told."""

import pytest

from gradwell.journeys.catalogue import SHELVES
from gradwell.shelf import shelf

from .contract import EXTRA, IDS

COMPLETE = ("activations", "inits", "remedies")
"""Shelves on which every id of the contract stands already."""
EVERY = sorted({entry for name, package in SHELVES.items() if name != "experiments" for entry in shelf(package)})
EXPERIMENTS = [entry.replace("_", "-") for entry in shelf(SHELVES["experiments"])]


@pytest.mark.parametrize("name", IDS)
def test_list_prints_the_contracts_ids(gradwell, name):
    done = gradwell("list", name)
    assert (done.status, done.err) == (0, "")
    ids = [line.split()[0] for line in done.out.splitlines()]
    assert ids == sorted(set(ids))
    assert set(ids) <= IDS[name] | EXTRA.get(name, set())
    assert all(len(line.split(maxsplit=1)) == 2 for line in done.out.splitlines())  # an id and its sentence
    if name in COMPLETE:
        assert set(ids) >= IDS[name]


@pytest.mark.parametrize("entry", [*EVERY, *EXPERIMENTS])
def test_explain_prints_a_page(gradwell, entry):
    done = gradwell("explain", entry)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{entry} (")
    assert len(done.out.split()) > 10


def test_experiments_are_listed_with_dashes(gradwell):
    listed = gradwell("lab", "list").out
    assert [line.split()[0] for line in listed.splitlines()] == EXPERIMENTS
    assert gradwell("list", "experiments").out == listed


def test_explain_tells_the_thresholds(gradwell):
    text = gradwell("explain", "vanishing_gradient").out
    assert "--set vanishing_gradient.name=value" in text
    for name, value in shelf("gradwell.symptoms")["vanishing_gradient"].thresholds.items():
        assert f"{name} = {value}" in text


def test_an_id_on_two_shelves_gives_both_pages(gradwell):
    out = gradwell("explain", "identity").out
    assert "identity (activations)" in out
    assert "identity (inits)" in out


def test_unknown_shelf(gradwell):
    line = gradwell("list", "tricks").line
    assert "'tricks'" in line
    assert "symptoms" in line


def test_unknown_id(gradwell):
    assert gradwell("explain", "vanishing").line == "Nothing is called 'vanishing'; did you mean 'vanishing_gradient'?"
    assert "gradwell list" in gradwell("explain", "xyzzy").line
