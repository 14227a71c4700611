"""Every kind of net builds, learns from its batch, and is exactly what its config says."""

import math

import pytest
import torch
from torch import nn

from gradwell.errors import UnknownId, UsageError
from gradwell.lab.modules import NORMS
from gradwell.lab.nets import KINDS, build
from gradwell.lab.tasks import setup
from gradwell.records.net import NetConfig
from gradwell.surgery.activations import ACTIVATIONS
from gradwell.surgery.reinit import GAUSSIAN, INITS, layers

SMALL = {"depth": 2, "width": 16, "batch_size": 16, "task": "gaussian"}


def config(**changes):
    kind = changes.get("kind", "mlp")
    return NetConfig(**{**SMALL, **({"activation": "tanh"} if kind == "rnn" else {}), **changes})


def loss_and_gradients(net):
    model, batch, loss_fn, _ = setup(net)
    loss = loss_fn(model, batch)
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


def assert_learns(net):
    loss, gradients = loss_and_gradients(net)
    assert loss.dim() == 0
    assert math.isfinite(loss.item())
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_finite_loss_and_a_gradient_for_every_parameter(kind):
    assert_learns(config(kind=kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_each_kind_takes_each_norm(kind, norm):
    if (kind, norm) != ("transformer", "batch"):
        assert_learns(config(kind=kind, norm=norm, dropout=0.1))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual", "transformer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_kind_takes_each_activation(kind, activation):
    assert_learns(config(kind=kind, activation=activation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", [*INITS, *GAUSSIAN])
def test_each_kind_takes_each_init(kind, init):
    assert_learns(config(kind=kind, init=init, gain=0.1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_each_kind_runs_in_each_dtype(kind, dtype):
    assert_learns(config(kind=kind, dtype=dtype))


def test_a_transformer_has_its_norm_before_or_after_the_branch():
    before, after = (build(config(kind="transformer", norm_place=place, init="zeros")) for place in ("pre", "post"))
    x = 3 * torch.randn(2, 8, 16)
    assert torch.equal(before.blocks(x), x)  # a silent branch leaves x as it is
    assert after.blocks(x).std().item() == pytest.approx(1, abs=0.01)  # here the norm stands on the trunk


def test_the_shortcut_scales_the_branch():
    block = build(config(kind="residual", shortcut=0.25)).blocks[0]
    x = torch.randn(4, 16)
    assert torch.allclose(block(x), x + 0.25 * block.branch(x))


def test_layers_have_readable_names():
    assert [name for name, _ in build(config(norm="batch")).named_children()] == ["hidden", "head", "output"]
    kinds = [type(m) for m in build(config(norm="batch", dropout=0.5)).hidden]
    assert kinds == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [name for name, _ in build(config(kind="residual")).blocks[0].branch.named_children()] == ["0", "1", "2"]


def test_bias_gain_and_bias_value_are_as_told():
    assert not [name for name, _ in build(config(bias=False)).named_parameters() if "bias" in name]
    assert all((bias == -5).all() for _, bias in layers(build(config(bias_value=-5.0))))
    plain, loud = build(config(init="he")), build(config(init="he", gain=3.0))
    for (weight, _), (louder, _) in zip(layers(plain), layers(loud), strict=True):
        assert torch.equal(3 * weight, louder)


def test_output_activation_and_yes_no_head():
    model, (x, _), loss_fn, _ = setup(config(task="xor", loss="bce", output_activation="sigmoid"))
    out = model(x)
    assert out.shape == (4, 1)
    assert 0 < out.min() < out.max() < 1
    assert loss_fn(model, (x, torch.tensor([0, 1, 1, 0]))).item() == pytest.approx(math.log(2), abs=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_config_gives_bit_equal_nets_and_another_seed_another(kind):
    first, second, other = (build(config(kind=kind, seed=seed)) for seed in (3, 3, 4))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(iter(first.parameters())), next(iter(other.parameters())))


def test_the_global_generator_is_untouched():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    setup(config(init="lsuv"))
    assert torch.equal(before, torch.get_rng_state())


# Var W * fan_in and Var b of each init at fan_in = fan_out = 512: the formulas of theory
WIDE = 512
VARIANCES = {
    "torch_default": (1 / 3, 1 / (3 * WIDE)),
    "xavier": (1, 0),
    "he": (2, 0),
    "lecun": (1, 0),
    "orthogonal": (1, 0),
    "delta_orthogonal": (1, 0),
    "centred_sigmoid": (16, 16 / 4),  # b = -1/2 sum_j W_ij
    "fixup": (2, 0),
    "zeros": (0, 0),
    "uniform": (WIDE / 12, 1 / 12),
    "normal": (WIDE * 0.01**2, 0),
}


@pytest.mark.parametrize("init", VARIANCES)
def test_variances_are_the_formula_within_5_percent(init):
    activation = "sigmoid" if init == "centred_sigmoid" else "relu"
    model = build(NetConfig(depth=4, width=WIDE, init=init, activation=activation, task="gaussian"))
    inner = [m for m in model.hidden if isinstance(m, nn.Linear)][1:]
    sigma_w2, sigma_b2 = VARIANCES[init]
    weights = torch.stack([m.weight for m in inner]).double()
    biases = torch.stack([m.bias for m in inner]).double()
    assert weights.var().item() * WIDE == pytest.approx(sigma_w2, rel=0.05)
    few = 3 / math.sqrt(biases.numel())  # a variance of n draws is known to sqrt(2 / n)
    assert biases.var().item() == pytest.approx(sigma_b2, rel=0.05 + few)


@pytest.mark.parametrize(
    ("activation", "sigma_w2", "sigma_b2"), [("tanh", 1, 0), ("relu", 2, 0), ("gelu", 1.983, 0.173)]
)
def test_critical_is_the_critical_point_of_the_activation(activation, sigma_w2, sigma_b2):
    model = build(NetConfig(depth=3, width=WIDE, init="critical", activation=activation, task="gaussian"))
    inner = model.hidden[2]
    assert inner.weight.var().item() * WIDE == pytest.approx(sigma_w2, rel=0.05)
    assert inner.bias.var().item() == pytest.approx(sigma_b2, rel=0.2)


def test_lsuv_gives_unit_variance_on_the_batch():
    model, (x, _), _, _ = setup(config(init="lsuv", activation="tanh", depth=5, batch_size=256))
    for part in model.hidden:
        x = part(x)
        if isinstance(part, nn.Linear):
            assert x.std().item() == pytest.approx(1, abs=0.02)


def test_delta_orthogonal_convolutions_act_at_their_centre_only():
    inner = build(config(kind="cnn", init="delta_orthogonal")).hidden[2]
    centre = inner.weight[:, :, 1, 1]
    assert torch.allclose(centre @ centre.T, torch.eye(16), atol=1e-5)
    assert inner.weight.abs().sum().item() == pytest.approx(centre.abs().sum().item())


def test_fixup_starts_as_the_identity():
    model = build(config(kind="residual", init="fixup"))
    x = torch.randn(3, 16)
    assert torch.equal(model.blocks(x), x)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "mpl"}, "There is no kind of net 'mpl' in the lab; did you mean 'mlp'?"),
        ({"activation": "reul"}, "There is no activation 'reul' in the lab; did you mean 'relu'?"),
        ({"init": "hee"}, "There is no init 'hee' in the lab; did you mean 'he'?"),
        ({"norm": "x"}, "There is no norm 'x' in the lab; there is batch, layer, rms."),
        ({"task": "digit"}, "There is no task 'digit' in the lab; did you mean 'digits'?"),
        ({"optimizer": "SDG"}, "There is no optimizer 'SDG' in the lab; did you mean 'SGD'?"),
        ({"loss": "mae"}, "There is no loss 'mae' in the lab; did you mean 'mse'?"),
        ({"output_activation": "softmx"}, "There is no output activation 'softmx' in the lab; did you mean 'softmax'?"),
    ],
)
def test_an_unknown_id_is_one_clear_sentence(changes, sentence):
    with pytest.raises(UnknownId) as problem:
        setup(config(**changes))
    assert str(problem.value) == sentence


@pytest.mark.parametrize(
    "changes",
    [{"kind": "rnn", "activation": "gelu"}, {"kind": "transformer", "norm": "batch"}, {"task": "regression"}],
)
def test_parts_that_do_not_go_together_are_refused(changes):
    with pytest.raises(UsageError):
        setup(config(**changes))


def test_centred_biases_take_out_the_mean_of_the_layer_before():
    inner = build(NetConfig(depth=2, width=WIDE, init="centred_sigmoid", activation="sigmoid", task="gaussian")).hidden[
        2
    ]
    assert torch.allclose(inner(torch.full((1, WIDE), 0.5)), torch.zeros(1, WIDE), atol=1e-4)
