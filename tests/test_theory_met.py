"""What theory says about small nets at initialisation, met by what `check` measures on them (THEORY 0, 1.2, 2.1, 5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwell.journeys.check import check, measure
from gradwell.measure.flow import Ledger, ledger
from gradwell.records.run import Run


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def chain(depth: int, width: int, activation: Callable[[], nn.Module], *, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Linear(width, width, bias=bias))


def batch_of(width: int, *, n: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, width, dtype=dtype), torch.randn(n, width, dtype=dtype)


def mse(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def book_of(run: Run) -> Ledger:
    book = ledger(run.sites, run.steps[0])
    assert book is not None
    return book


def mean_book(make: Callable[[], nn.Module], width: int, seeds: int = 4) -> dict[str, float]:
    """Mean over seeds of the ledger's parts."""
    parts = ("total", "weight_gain", "activation_slope", "unexplained", "between_modules", "length")
    sums = dict.fromkeys(parts, 0.0)
    for seed in range(seeds):
        torch.manual_seed(seed)
        book = book_of(measure(make(), batch_of(width), mse))
        for part in parts:
            sums[part] += getattr(book, part) / seeds
    return sums


# ------------------------------------------------------------------ depth profiles


def test_twenty_sigmoid_layers_lose_what_mean_field_says():
    """chi = .019960 at width 64: log10 sqrt(chi) = -.850 a layer, weights log10 sqrt(1/3), activation the rest."""
    found = mean_book(lambda: chain(21, 64, nn.Sigmoid), 64)
    assert found["total"] / 20 == pytest.approx(-0.850, abs=0.03)
    assert found["weight_gain"] / 20 == pytest.approx(-0.2386, abs=0.03)
    assert found["activation_slope"] / 20 == pytest.approx(-0.6113, abs=0.03)


def test_the_weights_of_a_tanh_chain_take_their_isotropic_share():
    torch.manual_seed(0)
    book = book_of(measure(chain(33, 256, nn.Tanh), batch_of(256), mse))
    assert book.length == 32
    assert book.weight_gain == pytest.approx(32 * math.log10(3**-0.5), abs=0.1)
    assert abs(book.between_modules) < 1e-6


def test_default_relu_vanishes_although_weight_gradients_are_flat():
    torch.manual_seed(1)
    model = chain(12, 256, nn.ReLU, bias=False).double()
    batch = batch_of(256, dtype=torch.float64)
    diagnosis = check(model, batch, mse)
    assert "vanishing_gradient" in {finding.symptom for finding in diagnosis.findings}
    run = measure(model, batch, mse)
    assert run.steps[0].total == pytest.approx(11 * math.log10(1 / 6) / 2, abs=0.5)
    mse(model, batch).backward()
    grads = [p.grad.norm().item() for p in model.parameters()]
    assert 0.5 < grads[0] / grads[-1] < 2
    euler = [(p * p.grad).sum().item() for p in model.parameters()]
    assert euler == pytest.approx([euler[0]] * 12, rel=1e-4)
    rms = [run.steps[0].of("grad_rms", i) for i in range(12)]
    assert [r * 256 for r in rms] == pytest.approx(grads, rel=1e-9)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU, nn.GELU, nn.Identity])
def test_a_chain_leaves_nothing_between_its_modules(activation):
    torch.manual_seed(2)
    for double in (False, True):
        model, (x, y) = chain(9, 32, activation), batch_of(32)
        if double:
            model, x, y = model.double(), x.double(), y.double()
        book = book_of(measure(model, (x, y), mse))
        assert abs(book.between_modules) < 1e-6
        parts = (book.weight_gain, book.activation_slope, book.other_layers, book.unexplained)
        assert sum(parts) == pytest.approx(book.total, abs=1e-6)


def test_sizes_stay_right_down_to_the_smallest_floats():
    """P30: float32 norms are exactly 0 below elements of 1e-23; the gradient itself lives down to 1e-45."""
    torch.manual_seed(3)
    model = chain(60, 16, nn.Sigmoid)
    x, y = batch_of(16)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(0.7)
    single = measure(model, (x, y), mse)
    double = measure(copy.deepcopy(model).double(), (x.double(), y.double()), mse)
    # what float32 itself computes, read in float64
    deltas: dict[int, Tensor] = {}

    def keep(k: int) -> Callable[..., None]:
        def hook(_m: nn.Module, _a: Any, out: Tensor) -> None:
            out.register_hook(lambda g: deltas.__setitem__(k, g.detach().clone()))

        return hook

    handles = [layer.register_forward_hook(keep(k)) for k, layer in enumerate(model)]
    mse(model, (x, y)).backward()
    for handle in handles:
        handle.remove()
    sides = [(single.steps[0].at("delta_norm", i), double.steps[0].at("delta_norm", i)) for i in range(119)]
    assert len(single.sites) == 119
    for i, (found, _) in enumerate(sides):
        assert found == pytest.approx((deltas[i].double().square().sum() / 32).sqrt().item(), rel=1e-5, abs=0)
    smallest = [right for found, right in sides if right > 1e-36]
    assert min(smallest) < 1e-33
    assert all(found == pytest.approx(right, rel=1e-2, abs=0) for found, right in sides if right > 1e-36)
    assert sides[0][0] == 0.0  # exact zero is said where float32 underflows
    assert sides[0][1] > 0


def test_the_isotropic_gain_of_layer_norm_is_the_formula():
    """1/2 log10( mean g^2 (n-2)/n mean 1/s^2 ), s^2 the variance that the layer saw."""
    torch.manual_seed(4)
    for affine in (True, False):
        model = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24, elementwise_affine=affine), nn.Linear(24, 24))
        if affine:
            nn.init.normal_(model[1].weight, 1.0, 0.3)
        batch = batch_of(24)
        run = measure(model, batch, mse)
        h = model[0](batch[0]).detach().double()
        inverse = 1 / (h.var(1, unbiased=False) + 1e-5)
        gain = model[1].weight.detach().double().square().mean() if affine else torch.tensor(1.0)
        expected = 0.5 * torch.log10(inverse.mean() * gain * 22 / 24).item()
        assert run.steps[0].at("isotropic", 1) == pytest.approx(expected, abs=1e-5)


def test_the_isotropic_gain_of_layer_norm_is_what_random_cotangents_see():
    torch.manual_seed(5)
    norm = nn.LayerNorm(64)
    model = nn.Sequential(nn.Linear(64, 64), norm, nn.Linear(64, 64))
    batch = batch_of(64, n=256)
    run = measure(model, batch, mse)
    h = model[0](batch[0]).detach().requires_grad_()
    v = torch.randn(256, 64)
    (back,) = torch.autograd.grad(norm(h), h, v)
    assert run.steps[0].at("isotropic", 1) == pytest.approx(torch.log10(back.norm() / v.norm()).item(), abs=0.01)


def test_a_frozen_gain_is_still_the_gain():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 24))
    batch = batch_of(24)
    before = measure(model, batch, mse).steps[0].at("isotropic", 1)
    model[1].weight.requires_grad_(False)
    assert measure(model, batch, mse).steps[0].at("isotropic", 1) == pytest.approx(before)


# ------------------------------------------------------------------ residual blocks


class Block(nn.Module):
    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, width), activation(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_flow_of_a_branch_is_its_share_of_the_gradient(activation, scale):
    """(g^2 + rho g) / (1 + 2 rho g + g^2), g = |J^T d| / |d|, rho the cosine of d and J^T d."""
    torch.manual_seed(7)
    width = 16
    model = nn.Sequential(nn.Linear(width, width), Block(width, activation), nn.Linear(width, width)).double()
    with torch.no_grad():
        model[1].down.weight.mul_(scale * 3)
    x, y = batch_of(width, dtype=torch.float64)
    run = measure(model, (x, y), mse)
    step = run.steps[0]
    at = {site.site: i for i, site in enumerate(run.sites)}
    # the slow twin
    h = model[0](x).detach().requires_grad_()
    out = h + model[1].branch(h)
    out_leaf = out.detach().requires_grad_()
    F.mse_loss(model[2](out_leaf), y).backward()
    d = out_leaf.grad
    (back,) = torch.autograd.grad(model[1].branch(h), h, d)
    g = (back.norm() / d.norm()).item()
    rho = ((back * d).sum() / (back.norm() * d.norm())).item()
    share = (g * g + rho * g) / (1 + 2 * rho * g + g * g)
    for name in ("1.up", "1.act", "1.down"):
        assert step.at("flow", at[name]) == pytest.approx(share, rel=1e-6)
    # the whole block is exact
    block = 0.5 * math.log10(1 + 2 * rho * g + g * g)
    assert step.at("delta_norm", at["0"]) == pytest.approx((d + back).norm().item() / 32**0.5, rel=1e-9)
    last = math.log10(d.norm().item() / 32**0.5) - math.log10(step.at("delta_norm", at["2"]))
    assert step.total == pytest.approx(block + last, abs=1e-9)
    inside = sum(step.at("leaf_gain", at[name]) for name in ("1.up", "1.act", "1.down"))
    assert inside == pytest.approx(math.log10(g), abs=1e-9)
    book = book_of(run)
    assert book.between_modules == pytest.approx(block - share * math.log10(g), abs=1e-9)


def test_a_stack_of_residual_blocks_adds_up():
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(16, 16), *[Block(16, nn.Tanh) for _ in range(8)], nn.Linear(16, 16))
    book = book_of(measure(model, batch_of(16), mse))
    parts = (book.weight_gain, book.activation_slope, book.other_layers, book.unexplained, book.between_modules)
    assert sum(parts) == pytest.approx(book.total, abs=1e-9)
    assert abs(book.total) < 1.5  # the trunk does not vanish though each branch does


# ------------------------------------------------------------------ what must change nothing


def seen(run: Run) -> list[float]:
    step = run.steps[0]
    return [step.total, *step.sites["leaf_gain"][1:], *step.sites["flow"]]


QUICK = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
NETS = st.tuples(
    st.integers(0, 100), st.integers(2, 6), st.sampled_from([4, 9, 16]),
    st.sampled_from([nn.Tanh, nn.Sigmoid, nn.ReLU, nn.GELU, nn.SiLU]), st.booleans(),
)  # fmt: skip


def drawn(net: tuple[Any, ...]) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    seed, depth, width, activation, residual = net
    torch.manual_seed(seed)
    model = chain(depth, width, activation)
    if residual:
        model = nn.Sequential(nn.Linear(width, width), Block(width, activation), *model)
    return model, batch_of(width, n=24)


@QUICK
@given(net=NETS, scale=st.sampled_from([1e-6, 1e-3, 7.0, 1e6]))
def test_the_scale_of_the_loss_changes_no_gain(net, scale):
    model, batch = drawn(net)
    plain = seen(measure(model, batch, mse))
    assert seen(measure(model, batch, lambda m, b: mse(m, b) * scale)) == pytest.approx(plain, abs=1e-4)


@QUICK
@given(net=NETS)
def test_names_change_nothing(net):
    model, batch = drawn(net)
    plain = measure(model, batch, mse)
    renamed = nn.Sequential()
    for k, module in enumerate(model):
        renamed.add_module(f"other_{k * 7}", module)
    again = measure(renamed, batch, mse)
    assert again.steps[0].sites == plain.steps[0].sites
    assert again.steps[0].total == plain.steps[0].total


@QUICK
@given(net=NETS)
def test_the_order_of_hidden_units_changes_nothing(net):
    seed, depth, width, activation, _ = net
    model, batch = drawn((seed, depth, width, activation, False))
    plain = seen(measure(model, batch, mse))
    order = torch.randperm(width)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    assert seen(measure(twin, batch, mse)) == pytest.approx(plain, abs=1e-4)


@QUICK
@given(net=NETS)
def test_double_precision_changes_nothing(net):
    model, (x, y) = drawn(net)
    plain = seen(measure(model, (x, y), mse))
    assert seen(measure(model.double(), (x.double(), y.double()), mse)) == pytest.approx(plain, abs=1e-3)
