"""New draws: each variance against the theory's shelf, each measured size against a second measurement."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import gradwell as gw
from gradwell.errors import Refused
from gradwell.shelf import shelf
from gradwell.surgery.loop import train
from gradwell.surgery.reinit import WEIGHTED, draw, measured_chi
from gradwell.surgery.setup import forked

WIDTH = 48
APPLY = shelf("gradwell.remedies")["reinit"].fact("apply")


def ce(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def data(*shape):
    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(64, *shape, generator=generator), torch.randint(10, (64,), generator=generator)

    return batches


def chain(activation=nn.Tanh, depth=6, width=WIDTH):
    parts = []
    for _ in range(depth):
        parts += [nn.Linear(width, width), activation()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def setup(model, shape=(WIDTH,), **settings):
    return gw.TrainSetup(model, lambda params: torch.optim.Adam(params, lr=1e-3), ce, data(*shape), **settings)


def drawn(model, init, shape=(WIDTH,), **settings):
    arm = setup(model, shape, **settings).copy()
    with forked(0):
        APPLY(arm, init=init)
    return arm


def layers(model):
    return [m for m in model.modules() if isinstance(m, WEIGHTED)]


@pytest.mark.parametrize("init", ["xavier", "he", "lecun", "critical", "centred_sigmoid"])
@pytest.mark.parametrize("shape", [(200, 120), (60, 12, 5, 5)])
def test_a_draw_has_the_variances_of_its_page(init, shape):
    layer = nn.Linear(120, 200) if len(shape) == 2 else nn.Conv2d(12, 60, 5)
    activation = "sigmoid" if init == "centred_sigmoid" else "gelu"
    with forked(0):
        draw([layer], init, activation)
    taps = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * taps, shape[0] * taps
    spread = shelf("gradwell.theory.inits")[init](fan_in, fan_out, activation=activation)
    got = fan_in * layer.weight.double().square().mean().item()
    assert got == pytest.approx(spread.sigma_w2, rel=4 * math.sqrt(2 / layer.weight.numel()))
    if init == "centred_sigmoid":
        torch.testing.assert_close(layer.bias, -0.5 * layer.weight.flatten(1).sum(1), rtol=1e-4, atol=1e-5)
    else:
        bound = 4 * math.sqrt(2 / len(layer.bias))
        assert layer.bias.double().square().mean().item() == pytest.approx(spread.sigma_b2, rel=bound)


def test_orthogonal_delta_orthogonal_and_identity_keep_lengths():
    layer, convolution = nn.Linear(30, 50), nn.Conv2d(6, 9, 3, padding=1)
    for init in ("orthogonal", "delta_orthogonal"):
        draw([layer, convolution], init, "tanh")
        torch.testing.assert_close(layer.weight.T @ layer.weight, torch.eye(30), atol=1e-5, rtol=0)
    x = torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(convolution(x).norm(), x.norm())  # delta-orthogonal: an isometry
    square = nn.Linear(8, 8)
    draw([square], "identity", "relu")
    assert torch.equal(square(torch.eye(8)), torch.eye(8))
    with pytest.raises(Refused, match="from 9 to 6 channels cannot be delta-orthogonal"):
        draw([nn.Conv2d(9, 6, 3)], "delta_orthogonal", "tanh")


def test_half_precision_and_channels_last_can_be_drawn_too():
    half = nn.Linear(16, 16).to(torch.bfloat16)
    image = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    draw([half, image], "orthogonal", "tanh")
    assert half.weight.dtype == torch.bfloat16
    assert image.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.weight.float() @ half.weight.float().T, torch.eye(16), atol=0.05, rtol=0)


# inits that measure


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid])
def test_lsuv_gives_every_layer_unit_deviation(activation):
    arm = drawn(chain(activation), "lsuv")
    x = arm.batch()[0]
    for module in arm.model:
        x = module(x)
        if isinstance(module, nn.Linear):
            assert (x - module.bias).std().item() == pytest.approx(1, abs=1e-4)


def test_lsuv_is_the_published_loop():
    """Mishkin and Matas 2016: orthonormal, then W <- W / std(out) layer by layer until it is near 1."""
    arm, reference = drawn(chain(), "lsuv"), chain()
    x = arm.batch()[0]
    with forked(0), torch.no_grad():
        for layer in layers(reference):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        for number, layer in enumerate(layers(reference)):
            for _ in range(10):
                std = reference[: 2 * number + 1](x).std()
                if abs(std - 1) < 1e-6:
                    break
                layer.weight /= std
    for got, want in zip(layers(arm.model), layers(reference), strict=True):
        torch.testing.assert_close(got.weight, want.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus])
def test_jacobian_tuning_makes_the_measured_chi_one(activation):
    arm = drawn(chain(activation), "jacobian")
    x = arm.batch()[0]
    for number in range(1, 7):  # twin: the layer's whole Jacobian W diag(phi'(h)) in closed form, in float64
        h = arm.model[: 2 * number - 1](x).detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(arm.model[2 * number - 1](h).sum(), h)
        weight = arm.model[2 * number].weight.detach().double()
        chi = (slope**2 @ (weight**2).sum(0)).mean() / len(weight)
        assert chi.item() == pytest.approx(1, abs=0.1), number


def test_measured_chi_is_the_theorys_number():
    model = chain(nn.ReLU, depth=4, width=256)
    with forked(0):
        draw(layers(model), "he", "relu")
        chis = measured_chi(layers(model), lambda: model(torch.randn(256, 256)))
    assert [chi for _, chi in chis[:3]] == pytest.approx([1, 1, 1], abs=0.1)


class Branch(nn.Module):
    def __init__(self, m):
        super().__init__()
        parts = []
        for _ in range(m):
            parts += [nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
        self.branch = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.branch(x)


@pytest.mark.parametrize("m", [2, 3])
def test_fixup_shrinks_by_its_exponent_and_ends_branches_in_zero(m):
    blocks = 9
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *[Branch(m) for _ in range(blocks)], nn.Linear(WIDTH, 10))
    arm = drawn(model, "fixup")
    for block in arm.model[1:-1]:
        linears = layers(block)
        assert not linears[-1].weight.any()
        for layer in linears[:-1]:
            want = 2 * blocks ** (-2 / (2 * m - 2))
            assert WIDTH * layer.weight.square().mean().item() == pytest.approx(want, rel=0.15)
    assert not arm.model[-1].weight.any()
    x = torch.randn(3, WIDTH)
    assert torch.equal(arm.model[1:-1](x), x)  # every block starts as the identity
    with pytest.raises(Refused, match="residual branches of two or more layers"):
        drawn(chain(), "fixup")


# what may not be drawn


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
    model[2].weight = model[0].weight
    with pytest.raises(Refused, match=r"0\.weight and 2\.weight are one tied weight"):
        drawn(model, "he")


def test_computed_and_frozen_weights_are_refused():
    model = chain()
    parametrizations.weight_norm(model[2])
    with pytest.raises(Refused, match="computed from others"):
        drawn(model, "he")
    model = chain()
    model[0].weight.requires_grad_(False)
    with pytest.raises(Refused, match=r"'0' is frozen.*`pretrained=False`"):
        drawn(model, "he")
    drawn(model, "he", pretrained=False)


def test_trained_weights_are_refused_unless_asked_and_fresh_ones_never():
    learned = setup(chain(nn.ReLU), pretrained=None).copy()
    teacher = torch.randn(WIDTH, 10, generator=torch.Generator().manual_seed(3))
    learned.batches = lambda seed: ((x, (x @ teacher).argmax(1)) for x, _ in data(WIDTH)(seed))
    train(learned, steps=400)
    with pytest.raises(Refused, match="These weights have been trained"):
        APPLY(learned.copy(), init="he")
    asked = learned.copy()
    asked.pretrained = False
    APPLY(asked, init="he")
    with pytest.raises(Refused, match="have been trained"):
        drawn(chain(), "he", pretrained=True)
    for init in ("he", "xavier", "orthogonal", "identity", "lsuv", "uniform", "zeros", "torch_default"):
        model = chain()
        draw(layers(model), init, "tanh")
        drawn(model, "he")


def test_batch_norms_that_have_counted_tell_of_a_training():
    model = nn.Sequential(nn.Linear(WIDTH, 10), nn.BatchNorm1d(10))
    drawn(model, "he")
    model[1].num_batches_tracked.fill_(5000)
    with pytest.raises(Refused, match="have been trained"):
        drawn(model, "he")


def test_a_layer_used_twice_cannot_be_measured():
    shared = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(Refused, match="used several times in one pass"):
        drawn(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(WIDTH, 10)), "lsuv")


def test_without_data_only_what_looks_at_no_data():
    arm = gw.TrainSetup(chain(), lambda params: torch.optim.SGD(params, lr=0.1), ce, None)
    APPLY(arm, init="he")
    with pytest.raises(Refused, match="looks at a batch"):
        APPLY(arm, init="lsuv")
    with pytest.raises(Refused, match="no stable critical initialisation"):
        APPLY(setup(chain(nn.Softplus)), init="critical")
    with pytest.raises(Refused, match="for sigmoids, and the hidden activation is tanh"):
        APPLY(setup(chain(nn.Tanh)), init="centred_sigmoid")
