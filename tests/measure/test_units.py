"""Statistics of units against loops over elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwell.measure.units import fork_shares, slope_statistics, twin_fraction, unit_statistics

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))


def brute(x: np.ndarray) -> tuple[float, ...]:
    batch, positions, units = x.shape
    values = [float(x[b, p, u]) for b in range(batch) for p in range(positions) for u in range(units)]
    square = sum(v * v for v in values)
    between = 0.0
    for p in range(positions):
        for u in range(units):
            row = [float(x[b, p, u]) for b in range(batch)]
            centre = sum(row) / batch
            between += sum((v - centre) ** 2 for v in row)
    zero = sum(v == 0 for v in values) / len(values)
    return sum(values) / len(values), zero, between / square if batch > 1 and square else math.nan


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=5), seed=st.integers(0, 99), dtype=st.sampled_from(["f4", "f8"]))
def test_unit_statistics_are_those_of_a_loop(shapes, seed, dtype):
    draw = np.random.default_rng(seed)
    samples = [np.maximum(draw.normal(size=shape), 0).astype(dtype) for shape in shapes]
    for x, row in zip(samples, unit_statistics(samples), strict=True):
        assert row == pytest.approx(brute(x), rel=1e-5, abs=1e-9, nan_ok=True)


def test_spread_keeps_its_digits_where_samples_hardly_differ():
    """-14 decades are told from 0: differences are taken before squares."""
    x = np.ones((8, 1, 4))
    x[3] += 1e-7
    assert unit_statistics([x])[0][2] == pytest.approx(1e-14 * (1 / 8) * (7 / 8), rel=1e-6)
    assert unit_statistics([np.ones((8, 1, 4), np.float32)])[0][2] == 0.0


def test_what_is_not_finite_warns_nobody_and_nothing_gives_nothing():
    x = np.array([[[math.nan, math.inf]], [[1.0, 0.0]]])
    assert math.isnan(unit_statistics([x])[0][0])
    assert unit_statistics([np.zeros((0, 1, 3))]) == [(None, None, None)]
    assert unit_statistics([]) == []
    assert math.isnan(unit_statistics([np.zeros((4, 1, 3))])[0][2])


def test_the_order_of_units_and_samples_changes_nothing():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(7, 3, 5))
    base = unit_statistics([x])[0]
    moved = unit_statistics([np.ascontiguousarray(x[draw.permutation(7)][:, :, draw.permutation(5)])])[0]
    assert moved == pytest.approx(base, rel=1e-9)


def test_slopes_are_means_over_the_elements_that_got_a_gradient():
    ratios = [np.array([0.25, -0.01, math.nan, 0.1]), np.array([1.0, 0.04, 0.5, 0.0]), np.full(4, math.nan)]
    found = [slope_statistics(ratio, ceiling) for ratio, ceiling in zip(ratios, [0.25, 1.0, 1.0], strict=True)]
    assert found[0] == (pytest.approx((0.25**2 + 0.01**2 + 0.1**2) / 3), pytest.approx(1 / 3))
    assert found[1] == (pytest.approx((1 + 0.04**2 + 0.25) / 4), pytest.approx(0.5))
    assert all(math.isnan(v) for v in found[2])
    assert slope_statistics(np.array([1e30, 2e30], np.float32), 1.0) == (pytest.approx(2.5e60), 0.0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(branches=st.integers(2, 5), seed=st.integers(0, 99), scale=st.sampled_from([1e-40, 1e-20, 1.0, 1e30]))
def test_fork_shares_add_up_and_do_not_know_the_scale(branches, seed, scale):
    draw = np.random.default_rng(seed)
    parts = [draw.normal(size=50) for _ in range(branches)]
    total = sum(parts)
    expected = [float(p @ total / (total @ total)) for p in parts]
    found = fork_shares([p * scale for p in parts])
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert sum(found) == pytest.approx(1.0)


def test_fork_shares_of_nothing_are_unknown():
    assert fork_shares([np.zeros(3), np.zeros(3)]) is None
    assert fork_shares([np.array([math.inf]), np.array([1.0])]) is None
    assert fork_shares([np.ones(3), -np.ones(3)]) is None
    assert fork_shares([np.array([3.0, 0.0]), np.array([-1.0, 0.0])]) == pytest.approx([1.5, -0.5])


def twins_by_loop(weight: np.ndarray, grad: np.ndarray) -> float:
    rows = [(*weight[i], *grad[i]) for i in range(len(weight))]
    return sum(rows.count(row) > 1 for row in rows) / len(rows)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(units=st.integers(2, 40), distinct=st.integers(1, 40), seed=st.integers(0, 99))
def test_twins_are_those_of_a_loop(units, distinct, seed):
    draw = np.random.default_rng(seed)
    pick = draw.integers(0, distinct, units)
    weight, grad = draw.normal(size=(distinct, 6))[pick], draw.normal(size=(distinct, 6))[pick]
    wanted = twins_by_loop(weight, grad)
    assert twin_fraction(weight, 1e-9 * grad) == pytest.approx(wanted if wanted >= 0.25 else 0.0)
    assert twin_fraction(weight, draw.normal(size=(units, 6))) == 0.0
    assert twin_fraction(weight * 0, grad) == pytest.approx(wanted)
