"""Every activation on the shelf: its page, its facts, its slope; a new file is tested on the day it appears."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwell.errors import UsageError
from gradwell.shelf import shelf
from gradwell.theory.meanfield import moments
from gradwell.theory.nonlinearity import nonlinearity

SHELF = shelf("gradwell.theory.activations")
HEADINGS = ["Formula", "What it does to gradients", "When to use it", "When not", "Source"]
CONTRACT = [
    "identity",
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softplus",
    "sigmoid",
    "hard_sigmoid",
    "tanh",
    "hardtanh",
    "softsign",
    "erf",
    "sin",
    "exp",
    "maxout",
]
ELEMENTWISE = [name for name in SHELF if name != "maxout"]


def test_every_id_of_the_contract_is_there():
    assert set(CONTRACT) <= set(SHELF)


@pytest.mark.parametrize("name", SHELF)
def test_page_and_facts(name):
    entry = SHELF[name]
    assert list(entry.page.blocks) == HEADINGS
    assert all(entry.page.blocks.values())
    assert entry.page.title.endswith(".")
    for fact, kind in [("KINKS", tuple), ("TORCH", tuple), ("AUTOGRAD", tuple), ("MAX_SLOPE", float), ("CODE", str)]:
        assert isinstance(entry.fact(fact), kind), fact
    assert isinstance(entry.fact("SATURATES"), bool)
    assert isinstance(entry.fact("CAN_DIE"), bool)
    assert callable(entry.fact("slope"))


def test_no_torch_name_is_claimed_twice():
    claimed = [torch_name for name in SHELF for torch_name in SHELF[name].fact("TORCH")]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(x=st.floats(-30, 30))
def test_slope_is_the_derivative(name, x):
    entry, h = SHELF[name], 1e-4
    if any(abs(x - kink) < 3 * h for kink in entry.fact("KINKS")):
        return
    # fourth-order central difference
    points = entry(np.array([x - 2 * h, x - h, x + h, x + 2 * h]))
    numeric = (points @ np.array([1.0, -8.0, 8.0, -1.0])) / (12 * h)
    slope = float(entry.fact("slope")(np.array(x)))
    assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-9 * max(1.0, abs(points[0]) / h * 1e-3))
    assert abs(slope) <= entry.fact("MAX_SLOPE") * (1 + 1e-9)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_max_slope_is_reached(name):
    entry = SHELF[name]
    kinks = np.array(entry.fact("KINKS"))
    x = np.concatenate([np.linspace(-20, 20, 400_001), kinks, kinks - 1e-9, kinks + 1e-9])
    if math.isfinite(entry.fact("MAX_SLOPE")):
        assert np.abs(entry.fact("slope")(x)).max() == pytest.approx(entry.fact("MAX_SLOPE"), rel=1e-7)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_saturates_and_can_die(name):
    entry = SHELF[name]
    far = entry.fact("slope")(np.array([-1e4, 1e4]))
    assert entry.fact("SATURATES") == bool((np.abs(far) < 1e-6).all())
    # neither a value nor a slope from -1e4 up to -10
    left = np.linspace(-1e4, -10, 1001)
    assert entry.fact("CAN_DIE") == (not entry(left).any() and not entry.fact("slope")(left).any())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_no_warning_and_no_nan_far_out(name):
    x = np.array([-1e30, -1e6, -800.0, -0.0, 0.0, 800.0, 1e6, 1e30])
    assert np.isfinite(SHELF[name](x)).all()
    assert np.isfinite(SHELF[name].fact("slope")(x)).all()


@pytest.mark.parametrize("name", SHELF)
@given(q=st.floats(0, 1e8))
def test_moments_are_moments(name, q):
    found = moments(name, q)
    assert found.second[0] >= 0
    assert found.squared_slope[0] >= 0
    assert found.variance[0] >= -1e-9 * max(1.0, found.second[0])
    # E X^4 >= (E X^2)^2, and no slope beyond the largest
    assert found.fourth_slope[0] >= found.squared_slope[0] ** 2 * (1 - 1e-9)
    assert found.squared_slope[0] <= SHELF[name].fact("MAX_SLOPE") ** 2 * (1 + 1e-9)
    # Gaussian Poincare: Var phi <= q E phi'^2
    assert found.variance[0] <= q * found.squared_slope[0] * (1 + 1e-6) + 1e-9


def test_many_q_at_once_are_the_same_as_one_by_one():
    qs = np.array([0.0, 1e-4, 0.5, 3.0, 1e5])
    for name in SHELF:
        together = moments(name, qs)
        alone = [moments(name, q) for q in qs]
        np.testing.assert_allclose(together.second, [m.second[0] for m in alone], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(together.squared_slope, [m.squared_slope[0] for m in alone], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("entry", [e for e in SHELF.values() if e.thresholds], ids=lambda e: e.id)
def test_parameters_reach_the_function(entry):
    (parameter, default), *_ = entry.thresholds.items()
    if entry.id != "maxout":
        other = nonlinearity(entry.id, **{parameter: default + 0.3})
        x = np.array([-0.7, 0.4])
        np.testing.assert_array_equal(other.phi(x), entry(x, **{parameter: default + 0.3}))
        assert not np.array_equal(other.phi(x), entry(x))


def test_maxout_takes_the_largest_piece():
    entry = SHELF["maxout"]
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    np.testing.assert_array_equal(entry(x), [1.0, 3.0])
    np.testing.assert_array_equal(entry.fact("slope")(x), [[1, 0], [0, 1]])
    with pytest.raises(UsageError, match=r"takes the 2 pieces of a unit on the last axis, and found 3 there"):
        entry(np.zeros((4, 3)))
