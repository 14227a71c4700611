"""Slow and exact twins of the quadrature: closed forms, mpmath, Monte Carlo on real matrices."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwell.errors import UsageError
from gradwell.theory import meanfield
from gradwell.theory.nonlinearity import centred, nonlinearity

QS = st.floats(1e-6, 1e4)


def v_d(name, q):
    found = meanfield.moments(name, q)
    return float(found.second[0]), float(found.squared_slope[0])


@given(QS)
def test_erf(q):
    v, d = v_d("erf", q)
    assert v == pytest.approx(2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-10)
    assert d == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-10)


@given(QS)
@settings(max_examples=40, deadline=None)
def test_sin(q):
    v, d = v_d("sin", q)
    assert v == pytest.approx(-math.expm1(-2 * q) / 2, rel=1e-10)
    assert d == pytest.approx((1 + math.exp(-2 * q)) / 2, rel=1e-10)


@given(QS)
def test_gelu(q):
    v, d = v_d("gelu", q)
    root, arc = math.sqrt(1 + 2 * q), math.asin(q / (1 + q))
    assert v == pytest.approx(q / 4 + q * arc / (2 * math.pi) + q * q / (math.pi * (1 + q) * root), rel=1e-10)
    expected = 0.25 + arc / (2 * math.pi) + q / (math.pi * (1 + q) * root) + q / (2 * math.pi * root**3)
    assert d == pytest.approx(expected, rel=1e-10)


@given(QS)
def test_hardtanh(q):
    v, d = v_d("hardtanh", q)
    inside = math.erf(1 / math.sqrt(2 * q))
    expected = q * (inside - math.sqrt(2 / (math.pi * q)) * math.exp(-1 / (2 * q))) + math.erfc(1 / math.sqrt(2 * q))
    assert v == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert d == pytest.approx(inside, rel=1e-10)


@given(QS, st.floats(0, 0.99))
def test_leaky_relu_at_any_scale(q, a):
    v, d = v_d(nonlinearity("leaky_relu", negative_slope=a), q)
    assert v / q == pytest.approx((1 + a * a) / 2, rel=1e-12)
    assert d == pytest.approx((1 + a * a) / 2, rel=1e-12)


@given(st.floats(1e-6, 8))
def test_exp(q):
    assert v_d("exp", q) == pytest.approx((math.exp(2 * q), math.exp(2 * q)), rel=1e-10)


def test_exp_stays_finite_at_any_q():
    found = meanfield.moments("exp", [20.0, 1e3, 1e30])
    assert np.isfinite(found.fourth_slope).all()


def test_maxout():
    assert v_d("maxout", 3.0) == pytest.approx((3.0, 1.0), rel=1e-12)
    z = np.random.default_rng(0).standard_normal((400_000, 5)).max(axis=1)
    v, d = v_d(nonlinearity("maxout", pieces=5), 2.0)
    assert (v, d) == pytest.approx((2 * np.mean(z**2), 1.0), rel=5e-3)
    with pytest.raises(UsageError, match=r"The c map of 'maxout' is not known"):
        meanfield.next_c("maxout", 0.5, 1.0, 1.0)


MP = {
    "tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2, []),
    "sigmoid": (
        lambda x: 1 / (1 + mpmath.exp(-x)),
        lambda x: mpmath.exp(-x) / (1 + mpmath.exp(-x)) ** 2,
        [],
    ),
    "elu": (lambda x: x if x > 0 else mpmath.expm1(x), lambda x: 1 if x > 0 else mpmath.exp(x), []),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, []),
    "hardswish": (
        lambda x: x * min(max(x + 3, 0), 6) / 6,
        lambda x: 0 if x < -3 else (x / 3 + mpmath.mpf(1) / 2 if x < 3 else 1),
        [-3, 3],
    ),
}


@pytest.mark.parametrize("q", [0.04, 9.0])
@pytest.mark.parametrize("name", MP)
def test_mpmath_twin(name, q):
    phi, slope, kinks = MP[name]
    s = mpmath.sqrt(q)
    borders = sorted({-12, 0, 12, *(x / s for x in (-4, -2, -1, 1, 2, 4)), *(k / s for k in kinks)})
    borders = [b for b in borders if abs(b) <= 12]

    def mean(f):
        return float(mpmath.quad(lambda z: f(s * z) ** 2 * mpmath.npdf(z), borders))

    assert v_d(name, q) == pytest.approx((mean(phi), mean(slope)), rel=1e-11)


@given(st.floats(-1, 1), st.floats(0.01, 20))
@settings(max_examples=30, deadline=None)
def test_erf_correlation_map(c, q):
    # E erf(u1) erf(u2) = (2/pi) asin(2 q c / (1 + 2 q)); Price: d/dc of it is q E phi' phi'
    value, slope = meanfield._c_step(nonlinearity("erf"), c, q, 1.0, 0.0, keep=1.0)
    top = math.asin(2 * q / (1 + 2 * q))
    assert value == pytest.approx(math.asin(2 * q * c / (1 + 2 * q)) / top, abs=1e-8)
    r = 2 * q / (1 + 2 * q)
    assert slope == pytest.approx(r / math.sqrt(1 - (r * c) ** 2) / top, rel=1e-7)


@given(st.floats(-1, 1), st.floats(0, 0.9), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_leaky_correlation_map(c, a, q):
    f = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi
    expected = ((1 - a) ** 2 * f + 2 * a * c) / (1 + a * a)
    assert meanfield.next_c(nonlinearity("leaky_relu", negative_slope=a), c, q, 1.0) == pytest.approx(
        expected, abs=1e-8
    )


@pytest.mark.parametrize("name", ["hardtanh", "elu", "gelu", "softsign"])
@pytest.mark.parametrize("c", [0.3, 0.9, 0.999])
def test_slope_of_the_correlation_map_is_its_derivative(name, c):
    unit, h = nonlinearity(name), 1e-5
    left, right = (meanfield.next_c(unit, c + side * h, 2.0, 1.3, 0.1) for side in (-1, 1))
    assert meanfield._c_step(unit, c, 2.0, 1.3, 0.1, keep=1.0)[1] == pytest.approx((right - left) / (2 * h), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2"),
    [("tanh", 1.5, 0.05), ("relu", 2.0, 0.0), ("gelu", 1.98, 0.17), ("sigmoid", 1.0, 0.0), ("hardtanh", 1.5, 0.1)],
)
def test_gain_of_real_matrices(name, sigma_w2, sigma_b2):
    rng, n, depth, nets = np.random.default_rng(1), 300, 8, 4
    unit = nonlinearity(name)
    log_gain = []
    for _ in range(nets):
        x, u, total = rng.standard_normal(n), rng.standard_normal((n, 16)), 0.0
        slopes, weights = [], []
        for _ in range(depth):
            w = rng.standard_normal((n, n)) * math.sqrt(sigma_w2 / n)
            h = w @ x + rng.standard_normal(n) * math.sqrt(sigma_b2)
            x = unit.phi(h)
            slopes.append(unit.slope(h))
            weights.append(w)
        delta = u
        for w, d in zip(reversed(weights), reversed(slopes), strict=True):
            delta = w.T @ (d[:, None] * delta)
        total = np.log10(np.linalg.norm(delta) / np.linalg.norm(u))
        log_gain.append(total)
    expected = meanfield.log10_gain_by_layer(name, depth, sigma_w2, sigma_b2).sum()
    assert np.mean(log_gain) == pytest.approx(expected, abs=0.06)


@given(st.sampled_from(["tanh", "sigmoid", "gelu", "erf", "elu", "relu"]), st.floats(0.1, 3.5), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_fixed_point_is_where_iteration_ends(name, sigma_w2, sigma_b2):
    q = sigma_w2 + sigma_b2
    for _ in range(3000):
        q = min(meanfield.next_q(name, q, sigma_w2, sigma_b2), 1e30)
        if q < 1e-12 or q > 1e20:
            break
        after = meanfield.next_q(name, q, sigma_w2, sigma_b2)
        if abs(after - q) < 1e-12 * q:
            break
    found = meanfield.fixed_point(name, sigma_w2, sigma_b2)
    if math.isinf(found):
        assert q > 10
    elif found > 0 and abs(meanfield.chi_par(name, sigma_w2, found) - 1) > 0.02:
        assert q == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "hardswish"])
def test_half_stable_point_is_a_fixed_point(name):
    point = meanfield.critical_point(name)
    at = point.sigma_w2, point.sigma_b2
    assert meanfield.fixed_point(name, *at, start=point.q_star) == point.q_star
    assert meanfield.chi_perp(name, point.sigma_w2, point.q_star) == pytest.approx(1.0, abs=1e-9)
    assert meanfield.chi_par(name, point.sigma_w2, point.q_star) == pytest.approx(1.0, abs=1e-9)


def test_half_stable_points_let_go_of_some_inputs():
    # unit inputs start Mish above its q*, from where q runs away; GELU stops at a stable q below its q*
    at = {name: meanfield.critical_point(name) for name in ("mish", "gelu")}
    q = {name: meanfield.fixed_point(name, p.sigma_w2, p.sigma_b2) for name, p in at.items()}
    assert q["mish"] == math.inf
    assert q["gelu"] == pytest.approx(3.03498, abs=1e-5)
    assert meanfield.next_q("gelu", q["gelu"], at["gelu"].sigma_w2, at["gelu"].sigma_b2) == pytest.approx(q["gelu"])


@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-100])
def test_numbers_at_the_end_of_the_floats(tiny):
    assert meanfield.fixed_point("tanh", 1.0, tiny) < 1e-6
    assert meanfield.fixed_point("tanh", tiny, tiny) < 1e-99
    assert meanfield.fixed_point("sigmoid", tiny) < 1e-99
    assert meanfield.fixed_point("tanh", 2.0, start=tiny) == pytest.approx(0.617965, abs=1e-6)
    assert not np.isnan(meanfield.log10_gain_by_layer("sigmoid", 5, tiny)).any()


def test_dropout_shifts_the_critical_point_of_relu():
    # critical sigma_w2 = 2 p (Pretorius 2018)
    assert meanfield.chi_perp("relu", 1.6, 1.0, keep=0.8) == pytest.approx(1.0)
    assert meanfield.fixed_point("relu", 1.6, keep=0.8) == pytest.approx(1.6)


def test_a_correlation_below_one_under_dropout():
    assert meanfield.fixed_correlation("tanh", 1.2, 0.05, keep=0.9) < 0.99
    assert meanfield.fixed_correlation("tanh", 1.2, 0.05) == 1.0


def test_centred_sigmoid_is_critical_at_16():
    found = meanfield.critical_point(centred("sigmoid"))
    assert (found.kind, found.sigma_w2) == ("zero", pytest.approx(16.0))


def test_trainable_depth_of_a_vanishing_relu_net():
    assert meanfield.trainable_depth("relu", 1 / 3) == pytest.approx(3.34866375931)


@given(st.sampled_from(["relu", "identity", "leaky_relu", "prelu"]), QS, QS)
def test_chi_of_homogeneous_activations_does_not_depend_on_q(name, q1, q2):
    assert meanfield.chi_perp(name, 1.3, q1) == pytest.approx(meanfield.chi_perp(name, 1.3, q2), rel=1e-12)
    assert meanfield.chi_par(name, 1.3, q1) == pytest.approx(meanfield.chi_perp(name, 1.3, q1), rel=1e-12)


def test_zero_weights_pass_no_gradient():
    assert meanfield.fixed_point("tanh", 0.0) == 0.0
    assert np.isneginf(meanfield.log10_gain_by_layer("tanh", 3, 0.0)).all()


def test_an_exploding_net_stays_finite():
    assert np.isfinite(meanfield.log10_gain_by_layer("identity", 2000, 4.0)).all()
    assert meanfield.fixed_point("identity", 4.0) == math.inf


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: meanfield.chi_perp("relu", -1.0, 1.0), "sigma_w2 is a variance and was given as -1.0; give a finite"),
        (lambda: meanfield.fixed_point("relu", 1.0, math.nan), "sigma_b2 is a variance and was given as nan"),
        (lambda: meanfield.fixed_point("relu", 1.0, keep=0.0), "keep is the probability that a unit stays"),
        (lambda: meanfield.next_c("relu", 1.5, 1.0, 1.0), "c is a correlation and was given as 1.5"),
        (lambda: meanfield.log10_gain_by_layer("relu", 0, 1.0), "depth is a number of layers and was given as 0"),
        (lambda: meanfield.critical_line("relu", 0.1), "'relu' has no critical sigma_w2 at sigma_b2 = 0.1"),
        (lambda: nonlinearity("relu", alpha=1.0), "'relu' has no parameter 'alpha'; its parameters are: none"),
    ],
)
def test_messages(call, text):
    with pytest.raises(UsageError) as raised:
        call()
    assert text in str(raised.value)
