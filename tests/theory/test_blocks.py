"""Norms, width, recurrence, shortcuts and isometry against slow twins."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwell.errors import UsageError
from gradwell.theory import isometry, meanfield, norms, recurrent, residual, width
from gradwell.theory.nonlinearity import nonlinearity


def relu_batchnorm_rate(B):
    """The closed form for ReLU, derived apart from the quadrature on the sphere."""
    r = -1 / (B - 1)
    K = (math.sqrt(1 - r * r) + r * (math.pi - math.acos(r))) / (2 * math.pi)
    S, P = 0.5 - K, 0.25 + math.asin(r) / (2 * math.pi)
    Ek2 = B / 2 + B * (B - 1) * P
    T = (B - 1) / 2 - 0.5 - (B / 2 - Ek2 / B - 0.5 - (B - 1) * K) / B
    return B * T / ((B - 1) * (B - 3) * S)


@pytest.mark.parametrize("B", [4, 5, 6, 7, 11, 64, 1000, 20_000])
def test_batchnorm_closed_forms(B):
    assert norms.batchnorm_rate("relu", B) == pytest.approx(relu_batchnorm_rate(B), rel=1e-8)
    assert norms.batchnorm_rate("identity", B) == pytest.approx((B - 2) / (B - 3), rel=1e-10)


@pytest.mark.parametrize("name", ["tanh", "gelu", "hardtanh", "sigmoid"])
def test_batchnorm_rate_against_random_batches(name):
    rng, B, unit = np.random.default_rng(0), 8, nonlinearity(name)
    x = rng.standard_normal((60_000, B))
    x -= x.mean(axis=1, keepdims=True)
    x /= x.std(axis=1, keepdims=True)
    phi, slope = unit.phi(x), unit.slope(x)
    S = np.mean(np.var(phi, axis=1)) * B / (B - 1)
    # |F M P v|^2 averaged over unit v in the span of P, by brute force
    P = np.eye(B) - 1 / B
    M = P - x[:, :, None] * x[:, None, :] / B
    J = M @ (slope[:, :, None] * P)
    T = np.mean(np.sum(J**2, axis=(1, 2)))
    assert norms.batchnorm_rate(name, B) == pytest.approx(B * T / ((B - 1) * (B - 3) * S), rel=0.01)


@given(st.sampled_from(["relu", "tanh", "gelu", "sigmoid", "sin", "identity"]), st.integers(4, 60))
def test_batchnorm_always_explodes(name, B):
    assert norms.batchnorm_rate(name, B) >= norms.batchnorm_rate(name) - 1e-9
    assert norms.batchnorm_rate(name) >= 1 - 1e-12


def jacobian(f, x, h=1e-6):
    return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(x.size)], axis=1)


@pytest.mark.parametrize(
    ("gain2", "normalise", "scale"),
    [
        (norms.layernorm_gain2, lambda x: (x - x.mean()) / x.std(), np.std),
        (norms.batchnorm_gain2, lambda x: (x - x.mean()) / x.std(), np.std),
        (norms.rmsnorm_gain2, lambda x: x / np.sqrt(np.mean(x**2)), lambda x: np.sqrt(np.mean(x**2))),
    ],
)
def test_isotropic_gain_of_a_norm(gain2, normalise, scale):
    x = np.random.default_rng(2).normal(0.7, 3.0, size=7)
    J = jacobian(lambda v: 1.5 * normalise(v), x)
    assert gain2(7, scale(x), 1.5**2) == pytest.approx(np.sum(J**2) / 7, rel=1e-6)


def test_layernorm_cures_relu_and_not_sigmoid():
    assert norms.layernorm_rate("relu") == pytest.approx(1.0)
    assert norms.layernorm_rate("relu", sigma_w2=0.3) == pytest.approx(1.0)
    assert norms.layernorm_rate("sigmoid") < 0.16
    assert norms.batchnorm_rate("sigmoid") == pytest.approx(1.033592, abs=1e-6)
    assert norms.layernorm_rate("sigmoid", after=True) > 0.9
    assert norms.rmsnorm_rate("sigmoid", after=True) < norms.layernorm_rate("sigmoid", after=True)
    assert norms.rmsnorm_rate("tanh") == norms.layernorm_rate("tanh")


@pytest.mark.parametrize("n", [3, 8, 40])
def test_relu_width_law_against_draws(n):
    rng = np.random.default_rng(3)
    active = rng.binomial(n, 0.5, size=400_000)
    active = active[active > 0]
    ln = np.log(2 / n * rng.chisquare(active))
    mean, variance = width.relu_log_gain(n)
    assert ln.mean() == pytest.approx(mean, abs=0.02)
    assert ln.var() == pytest.approx(variance, rel=0.02)


def test_spread_over_layers():
    # simulated: n = 64, L = 20 gave mean -.807 and variance 1.667 of ln |J u|^2
    shift, sd = width.log10_gain_spread("relu", [64] * 20)
    assert shift * 2 * math.log(10) == pytest.approx(-0.802, abs=1e-3)
    assert (sd * 2 * math.log(10)) ** 2 == pytest.approx(1.660, abs=1e-3)
    _, mixed = width.log10_gain_spread("tanh", [32, 64], np.array([0.5, 2.0]))
    expected = width.log_gain("tanh", 32, 0.5)[1] + width.log_gain("tanh", 64, 2.0)[1]
    assert mixed == pytest.approx(math.sqrt(expected) / (2 * math.log(10)))


@given(st.floats(-2, 2), st.integers(0, 400))
def test_scalar_power(w, steps):
    if w == 0 or abs(w) < 1e-100:
        assert recurrent.power_gain(0.0, 1) == -math.inf
        return
    assert recurrent.power_gain(w, steps) == pytest.approx(steps * math.log10(abs(w)), rel=1e-9, abs=1e-9)


def test_matrix_power():
    W = np.random.default_rng(4).standard_normal((6, 6)) / 3
    power = np.linalg.matrix_power(W, 30)
    assert recurrent.power_gain(W, 30) == pytest.approx(math.log10(np.linalg.norm(power) / math.sqrt(6)), rel=1e-9)
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert recurrent.power_gain(rotation, 1000) == pytest.approx(0.0, abs=1e-9)


def test_pascanu():
    assert recurrent.pascanu_bound("sigmoid", 3.0) == 0.75
    assert recurrent.pascanu_bound("tanh", 1.1) == 1.1


def test_chrono_gate_keeps_one_over_e():
    bias = recurrent.chrono_bias(784)
    assert 10 ** recurrent.lstm_forget_path(bias, 784) == pytest.approx(math.exp(-1), rel=1e-3)


def test_rnn_through_time_settles_where_a_deep_net_does():
    found = recurrent.rnn_through_time("tanh", 200, 1.5, sigma_b2=0.05)
    net = meanfield.depth_scales("tanh", 1.5, 0.05)
    assert (found.q_star, found.chi, found.xi) == pytest.approx((net.q_star, net.chi_perp, net.xi_grad), rel=1e-9)
    assert found.log10_gain[-1] == pytest.approx(0.5 * math.log10(net.chi_perp), rel=1e-6)
    driven = recurrent.rnn_through_time("tanh", 10, 1.5, sigma_u2=2.0, input_second_moment=0.5)
    assert driven.q_star > found.q_star
    assert recurrent.rnn_through_time("tanh", 0, 1.5).log10_gain.size == 0


def test_undriven_rnn_settles_at_the_upper_fixed_point():
    # with no input and no bias h = 0 is a fixed point, but above sigma_w2 = 1 it is unstable
    assert recurrent.rnn_through_time("tanh", 3, 2.0).q_star == pytest.approx(meanfield.fixed_point("tanh", 2.0))


def test_residual_growth():
    assert residual.plain_gain2(1000, scale=1000**-0.5) == pytest.approx(math.e, rel=1e-3)
    assert residual.plain_gain2(5000) == math.inf
    assert residual.prenorm_gain2(32, branch_variance=1 / 32)[0] == pytest.approx(2.0)
    assert residual.reduced_log_gain2("relu", 10, 2.0).sum() == pytest.approx(10 * math.log(2))
    asymptote = 8 / (3 * math.sqrt(2 * math.pi)) * math.sqrt(20_000)
    growth = residual.reduced_log_gain2("tanh", 2000, start=9000.0)
    assert growth.sum() / (asymptote * (math.sqrt(0.55) - math.sqrt(0.45))) == pytest.approx(1.0, abs=0.02)


def test_isometry_improves_as_q_falls():
    values = [isometry.eigenvalue_variance("tanh", 10, q=q, orthogonal=True) for q in (1.0, 0.1, 0.001)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01
    assert isometry.eigenvalue_variance("tanh", 10, q=0.1) == pytest.approx(values[1] + 10)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: norms.batchnorm_rate("relu", 3), "needs at least 4 values in a channel and was asked for 3"),
        (lambda: norms.batchnorm_rate("maxout", 8), "'maxout' is known for an infinite batch only"),
        (lambda: norms.layernorm_rate("relu", sigma_w2=0.0), "sigma_w2 = 0.0 must be above zero"),
        (lambda: norms.layernorm_gain2(1), "A norm over 1 value has no gradient"),
        (lambda: width.relu_log_gain(0), "width is a number of units and was given as 0; give 1 or more"),
        (lambda: recurrent.power_gain(np.zeros((2, 3)), 1), "needs a square matrix and was given shape (2, 3)"),
        (lambda: recurrent.lstm_forget_path(1.0, -1), "steps is a number of time steps and was given as -1"),
        (lambda: recurrent.chrono_bias(2), "chrono needs dependencies longer than 2 steps and was given 2"),
        (lambda: residual.plain_gain2(-1), "depth is a number of blocks and was given as -1"),
        (lambda: isometry.eigenvalue_variance("relu", -1), "depth is a number of layers and was given as -1"),
    ],
)
def test_messages(call, text):
    with pytest.raises(UsageError) as raised:
        call()
    assert text in str(raised.value)


def test_doctests():
    import doctest

    from gradwell.theory import nonlinearity as module

    for tested in (meanfield, norms, width, recurrent, residual, isometry, module):
        failed, tried = doctest.testmod(tested)
        assert tried > 0, tested.__name__
        assert not failed, tested.__name__


def test_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, gradwell.theory.meanfield, gradwell.theory.norms, gradwell.theory.width;"
        "from gradwell.shelf import shelf;"
        "[list(shelf('gradwell.theory.' + kind)) for kind in ('inits', 'activations')];"
        "print([m for m in ('torch', 'pandas', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
