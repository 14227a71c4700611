"""Every initialisation on the shelf: its page, its numbers, its messages."""

import pytest

from gradwell.errors import UnknownId, UsageError
from gradwell.shelf import shelf
from gradwell.theory import meanfield
from gradwell.theory.inits import Variances
from gradwell.theory.nonlinearity import centred

SHELF = shelf("gradwell.theory.inits")
CONTRACT = [
    "torch_default",
    "xavier",
    "he",
    "lecun",
    "orthogonal",
    "lsuv",
    "critical",
    "centred_sigmoid",
    "delta_orthogonal",
    "identity",
    "fixup",
    "zeros",
    "uniform",
    "normal",
]


def test_every_id_of_the_contract_is_there():
    assert set(CONTRACT) <= set(SHELF)


@pytest.mark.parametrize("name", SHELF)
def test_page_code_and_call(name):
    entry = SHELF[name]
    assert list(entry.page.blocks) == ["Formula", "When to use it", "When it fails", "Source"]
    assert all(entry.page.blocks.values())
    assert "layer" in entry.fact("CODE")
    compile(entry.fact("CODE"), name, "exec")
    found = entry(64, 64)
    assert isinstance(found, Variances)
    assert found.sigma_w2 >= 0
    assert found.sigma_b2 >= 0
    assert isinstance(entry(64, 64, activation="tanh"), Variances)


@pytest.mark.parametrize("name", SHELF)
def test_refuses_no_units_and_unknown_activations(name):
    with pytest.raises(UsageError, match=r"fan_in and fan_out count units and were given as 0 and 4; give 1 or more"):
        SHELF[name](0, 4)
    with pytest.raises(UnknownId, match=r"no 'tahn' among the activations; did you mean 'tanh'"):
        SHELF[name](4, 4, activation="tahn")


@pytest.mark.parametrize(
    ("name", "fans", "options", "sigma_w2", "sigma_b2"),
    [
        ("torch_default", (64, 10), {}, 1 / 3, 1 / 192),
        ("xavier", (64, 64), {}, 1.0, 0.0),
        ("xavier", (100, 300), {}, 0.5, 0.0),
        ("xavier", (64, 64), {"gain": 5 / 3}, 25 / 9, 0.0),
        ("he", (64, 10), {}, 2.0, 0.0),
        ("he", (64, 10), {"negative_slope": 0.2}, 2 / 1.04, 0.0),
        ("lecun", (64, 10), {}, 1.0, 0.0),
        ("orthogonal", (64, 32), {}, 1.0, 0.0),
        ("orthogonal", (32, 64), {}, 0.5, 0.0),
        ("lsuv", (8, 8), {"activation": "relu"}, 2.0, 0.0),
        ("critical", (8, 8), {"activation": "relu"}, 2.0, 0.0),
        ("critical", (8, 8), {"activation": "tanh"}, 1.0, 0.0),
        ("critical", (8, 8), {"activation": "tanh", "sigma_b2": 0.05}, 1.7609546, 0.05),
        ("critical", (8, 8), {"activation": "gelu"}, 1.98305826, 0.17292239),
        ("critical", (8, 8), {"activation": "maxout"}, 1.0, 0.0),
        ("centred_sigmoid", (8, 8), {}, 16.0, 0.0),
        ("centred_sigmoid", (8, 8), {"activation": "hard_sigmoid"}, 36.0, 0.0),
        ("delta_orthogonal", (8, 16), {}, 0.5, 0.0),
        ("identity", (8, 8), {}, 1.0, 0.0),
        ("fixup", (8, 8), {"blocks": 4}, 0.5, 0.0),
        ("zeros", (8, 8), {}, 0.0, 0.0),
        ("uniform", (12, 8), {"low": 0.0, "high": 1.0}, 1.0, 0.0),
        ("normal", (100, 8), {"std": 0.1}, 1.0, 0.0),
    ],
)
def test_numbers(name, fans, options, sigma_w2, sigma_b2):
    found = SHELF[name](*fans, **options)
    assert (found.sigma_w2, found.sigma_b2) == pytest.approx((sigma_w2, sigma_b2), abs=1e-6)


def test_an_unsymmetric_range_says_its_mean():
    assert SHELF["uniform"](8, 8, low=0.0, high=1.0).mean_w == 0.5


def test_critical_keeps_the_gradient_of_deep_nets():
    for activation in ("relu", "gelu", "silu", "mish", "hardswish", "tanh", "hardtanh", "erf", "selu", "elu"):
        point = SHELF["critical"](256, 256, activation=activation)
        lost = meanfield.log10_gain_by_layer(activation, 50, point.sigma_w2, point.sigma_b2).sum()
        assert abs(lost) < 1.5, activation


def test_the_centred_sigmoid_trains_where_xavier_is_lost():
    unit, point = centred("sigmoid"), SHELF["centred_sigmoid"](256, 256)
    assert point.centred
    assert meanfield.log10_gain_by_layer(unit, 50, point.sigma_w2).sum() > -2
    assert meanfield.log10_gain_by_layer("sigmoid", 50, 1.0).sum() < -30


@pytest.mark.parametrize(
    ("name", "fans", "options", "text"),
    [
        ("critical", (8, 8), {"activation": "softplus"}, "'softplus' has no stable critical initialisation"),
        ("critical", (8, 8), {"activation": "exp"}, "'exp' has no stable critical initialisation"),
        ("delta_orthogonal", (16, 8), {}, "at least as many output as input channels and was given 16 -> 8"),
        ("fixup", (8, 8), {"blocks": 0}, "at least 1 block of at least 2 layers and was given 0 blocks of 2"),
        ("uniform", (8, 8), {"low": 1.0, "high": 0.0}, "A range runs from low to high and was given as 1.0 to 0.0"),
    ],
)
def test_messages(name, fans, options, text):
    with pytest.raises(UsageError) as raised:
        SHELF[name](*fans, **options)
    assert text in str(raised.value)
