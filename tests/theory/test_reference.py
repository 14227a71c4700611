"""Every closed-form or quadrature value of the reference table, within its own tolerance.

The table was computed independently of this package; what torch draws is in `test_pytorch_defaults.py`, `experiments`
and measured nets are in the lab's tests.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gradwell.shelf import shelf
from gradwell.theory import isometry, meanfield, norms, recurrent, residual, width
from gradwell.theory.nonlinearity import centred, nonlinearity

TABLE = json.loads((Path(__file__).parent / "reference_values.json").read_text())
TOL = TABLE["_meta"]["tolerance"]["quadrature_abs"]
OURS = {
    "leaky_relu_0.01": ("leaky_relu", {"negative_slope": 0.01}),
    "leaky_relu_0.2": ("leaky_relu", {"negative_slope": 0.2}),
    "prelu_0.25": ("prelu", {"weight": 0.25}),
    "hardsigmoid": ("hard_sigmoid", {}),
}
KINDS = {
    "scale_invariant": {"scale_invariant", "zero"},  # relu6: "scale invariant, then saturating"; its q* is 0
    "Kstar0": {"zero"},
    "half-stable": {"half_stable"},
    "finite": {"finite"},
    "none": {"none"},
}


def unit_of(name):
    activation, params = OURS.get(name, (name, {}))
    return nonlinearity(activation, **params)


def close(found, expected, tol=TOL):
    assert found == pytest.approx(expected, abs=tol, rel=tol)


NAMES = sorted(TABLE["activations"])
INITS = [(name, init) for name in NAMES for init in TABLE["activations"][name]["named_inits"]]
LINES = [(name, sb2) for name in NAMES for sb2 in TABLE["activations"][name]["critical_line_vs_sb2"]]


@pytest.mark.parametrize("name", NAMES)
def test_constants_at_q1(name):
    expected = TABLE["activations"][name]["at_q1"]
    unit = unit_of(name)
    found = meanfield.moments(unit, 1.0)
    close(found.mean[0], expected["mean"])
    close(found.second[0], expected["second_moment"])
    close(found.variance[0], expected["var"])
    close(found.squared_slope[0], expected["dphi2"])
    close(found.fourth_slope[0], expected["dphi4"])
    close(found.second_growth[0] / found.squared_slope[0], expected["chi_par_over_chi"])
    close(meanfield.slope_kurtosis(unit), expected["kappa"])
    close(1 / math.sqrt(found.variance[0]), expected["nf_gamma"])
    close(1 / found.second[0], expected["sw2_fwd_q1"])
    close(1 / found.squared_slope[0], expected["sw2_bwd_q1"])
    close(norms.batchnorm_rate(unit), expected["bn_rate"])
    close(norms.layernorm_rate(unit), expected["ln_rate"])
    close(3 * meanfield.slope_kurtosis(unit) - 1, expected["var_log_gain_per_layer_xn"])


@pytest.mark.parametrize("name", NAMES)
def test_critical_point(name):
    expected = TABLE["activations"][name]["critical"]
    found = meanfield.critical_point(unit_of(name))
    kind = next(k for k in KINDS if expected["kind"].startswith(k))
    assert found.kind in KINDS[kind]
    if expected["sw2"] is None:
        assert found.sigma_w2 is None
        return
    close(found.sigma_w2, expected["sw2"])
    close(found.sigma_b2, expected["sb2"])
    if isinstance(expected["qstar"], float):
        close(found.q_star, expected["qstar"])
    if "chi_par" in expected:
        close(found.chi_par, expected["chi_par"])
    if "centred" in expected:
        close(meanfield.critical_point(centred(unit_of(name))).sigma_w2, expected["centred"]["sw2"])


@pytest.mark.parametrize(("name", "sb2"), LINES)
def test_critical_line(name, sb2):
    (expected,) = TABLE["activations"][name]["critical_line_vs_sb2"][sb2]
    found = meanfield.critical_line(unit_of(name), float(sb2))
    close(found.sigma_w2, expected["sw2"])
    close(found.q_star, expected["qstar"])
    close(found.chi_par, expected["chi_par"])
    assert found.stable is expected["stable"]


def number(value):
    return math.inf if value == "inf" else value


@pytest.mark.parametrize(("name", "init"), INITS)
def test_named_init(name, init):
    case = TABLE["activations"][name]["named_inits"][init]
    unit = unit_of(name)
    q = meanfield.fixed_point(unit, case["sw2"], case["sb2"])
    if case["qstar"] != "marginal":
        close(q, number(case["qstar"]))
    elif name == "relu6":
        assert q == 0.0  # the table says marginal; the true drift is -1e-6 a layer, towards 0
    else:
        close(q, case["q0"])
    chi = meanfield.chi_perp(unit, case["sw2"], q)
    close(chi, case["chi1"])
    close(math.sqrt(chi), case["norm_gain_per_layer"])
    close(meanfield.chi_par(unit, case["sw2"], q), case["chi_par"])
    # near chi = 1 a tolerance of 1e-6 on chi is a large one on xi
    expected_xi = number(case["xi_grad"])
    close(1 / meanfield.depth_scale(chi), 1 / expected_xi)
    if case["trainable_depth_6xi"] is not None:
        close(6 * meanfield.depth_scale(chi), number(case["trainable_depth_6xi"]), 1e-5)
    gains = np.cumsum(meanfield.log10_gain_by_layer(unit, 100, case["sw2"], case["sb2"]))
    for depth, expected in case["log10_norm_gain"].items():
        close(gains[int(depth) - 1], expected)


@pytest.mark.parametrize("case", TABLE["tanh_sb2_0p05"], ids=lambda case: str(case["sw2"]))
def test_tanh_phase_diagram(case):
    found = meanfield.depth_scales("tanh", case["sw2"], 0.05)
    close(found.q_star, case["qstar"])
    close(found.chi_perp, case["chi1"])
    close(found.c_star, case["cstar"])
    close(found.xi_q, case["xi_q"])
    close(found.xi_c, case["xi_c"], 2e-6)
    close(found.trainable_depth, case["six_xi_c"], 2e-6)
    close(found.xi_grad, case["xi_grad"], 2e-6)


def test_tanh_critical_at_the_dip_bias():
    expected = TABLE["tanh_critical_sb2_0p05"]
    found = meanfield.critical_line("tanh", 0.05)
    close(found.sigma_w2, expected["sw2"])
    close(found.q_star, expected["qstar"])


KEEPS = [k for k in TABLE["dropout_tanh_sb2_0p05_max_xi_c"] if k[0].isdigit()]


@pytest.mark.parametrize("keep", KEEPS)
def test_dropout_limits_the_depth_scale(keep):
    table = TABLE["dropout_tanh_sb2_0p05_max_xi_c"]
    xi = [meanfield.depth_scales("tanh", sw2, 0.05, keep=float(keep)).xi_c for sw2 in np.linspace(1.2, 2.6, 36)]
    assert max(xi) == pytest.approx(table[keep], abs=table["_tol"])


@pytest.mark.parametrize("batch", TABLE["batchnorm"]["relu_finite_B"])
def test_batchnorm_rate_of_relu(batch):
    close(norms.batchnorm_rate("relu", int(batch)), TABLE["batchnorm"]["relu_finite_B"][batch])


@pytest.mark.parametrize("case", ["relu_B32", "relu_B8", "identity_B8"])
def test_batchnorm_rate_against_simulated_nets(case):
    name, batch = case.split("_B")
    measured = np.mean(TABLE["batchnorm"]["sim"][case])
    assert norms.batchnorm_rate(name, int(batch)) == pytest.approx(measured, abs=TABLE["batchnorm"]["tol_sim"])


@pytest.mark.parametrize("name", TABLE["layernorm"]["sim"])
def test_layernorm_rate_against_simulated_nets(name):
    assert norms.layernorm_rate(name) == pytest.approx(TABLE["layernorm"]["sim"][name], abs=0.03)


@pytest.mark.parametrize("units", TABLE["hanin"]["exact_per_layer"])
def test_width_law(units):
    expected = TABLE["hanin"]["exact_per_layer"][units]
    n = int(units)
    close(width.relu_log_gain(n), (expected["relu_mean"], expected["relu_var"]), 1e-9)
    close(width.linear_log_gain(n), (expected["lin_mean"], expected["lin_var"]), 1e-9)
    close(width.RELU_BETA / n, expected["asym"])
    assert width.dead_layer_probability(n) == pytest.approx(expected["dead"], rel=1e-9)


@pytest.mark.parametrize(
    ("case", "name", "orthogonal"),
    [
        ("linear_gauss_L8", "identity", False),
        ("linear_orth_L8", "identity", True),
        ("relu_gauss_L8", "relu", False),
        ("relu_orth_L8", "relu", True),
    ],
)
def test_isometry_against_measured_nets(case, name, orthogonal):
    measured = TABLE["isometry"]["measured_n600"][case]
    found = isometry.eigenvalue_variance(name, 8, orthogonal=orthogonal)
    assert found == pytest.approx(measured, rel=TABLE["isometry"]["tol_rel"], abs=1e-9)


@pytest.mark.parametrize("point", [k for k in TABLE["relu_cmap"] if k.startswith("f(")])
def test_relu_correlation_map(point):
    assert meanfield.next_c("relu", float(point[2:-1]), 1.0, 2.0) == pytest.approx(TABLE["relu_cmap"][point], abs=1e-8)


def test_relu_correlations_from_zero():
    expected = TABLE["relu_cmap"]["c_l_from_0"]
    c = 0.0
    for layer in range(1, 101):
        c = meanfield.next_c("relu", c, 1.0, 2.0)
        if str(layer) in expected:
            assert c == pytest.approx(expected[str(layer)], abs=1e-7)


@pytest.mark.parametrize("depth", TABLE["residual"]["tanh_reduced_ln_gain2"]["sw2=1"])
def test_reduced_tanh_resnet(depth):
    expected = TABLE["residual"]["tanh_reduced_ln_gain2"]["sw2=1"][depth]
    assert residual.reduced_log_gain2("tanh", int(depth)).sum() == pytest.approx(expected, abs=1e-4)


def test_residual_predictions():
    measured = TABLE["residual"]["measured"]
    close(residual.plain_gain2(10), measured["pred"])
    close(residual.prenorm_gain2(8)[0], measured["pred_preLN"])


def test_scalars():
    scalars = TABLE["scalars"]
    slope = shelf("gradwell.theory.activations")["sigmoid"].fact("slope")
    for x in (0, 5, 10):
        assert slope(np.array(x)) == pytest.approx(scalars[f"sigmoid'({x})"], rel=1e-10)
    tanh_slope = shelf("gradwell.theory.activations")["tanh"].fact("slope")
    assert tanh_slope(np.array(3.0)) == pytest.approx(scalars["tanh'(3)"], rel=1e-10)
    assert 10 ** recurrent.power_gain(0.9, 50) == pytest.approx(scalars["0.9^50"], rel=1e-10)
    assert 10 ** recurrent.power_gain(1.1, 50) == pytest.approx(scalars["1.1^50"], rel=1e-10)
    for bias, value in scalars["lstm_f^100"].items():
        assert 10 ** recurrent.lstm_forget_path(float(bias[2:]), 100) == pytest.approx(value, rel=1e-9)
    for longest, value in scalars["chrono_T"].items():
        assert recurrent.chrono_bias(float(longest)) == pytest.approx(value, rel=1e-9)


def test_four_sigmoids_in_a_chain():
    entry = shelf("gradwell.theory.activations")["sigmoid"]
    x, product = np.array(1.0), 1.0
    for _ in range(4):
        product *= float(entry.fact("slope")(x))
        x = entry(x)
    assert product == pytest.approx(TABLE["scalars"]["chain4_w1_b0_x1_prod_sigma_prime"], rel=1e-9)
