"""The backward half of the tape against slow twins: one autograd loop for each number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradwell.journeys.check import measure
from gradwell.probe.backward import Backward
from gradwell.probe.graph import Graph
from gradwell.probe.names import Names
from gradwell.probe.tape import Tape
from gradwell.records.run import Run


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def mse(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


class Mixed(nn.Module):
    """Convolution, norm, pooling, a shared layer, a skip, functional activations, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.shared = nn.Linear(16, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.act(self.norm(self.conv(x)))).flatten(1)
        a = F.silu(self.shared(h))
        b = torch.tanh(self.shared(self.layer_norm(a + h)))
        return self.out(torch.cat([self.drop(b), h], 1))


def mixed() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return Mixed().double(), (torch.randn(5, 2, 6, 6).double(), torch.randn(5, 3).double())


class Twin:
    """The slow twin: outputs of leaves kept by forward hooks with `retain_grad`."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[tuple[str, int], tuple[nn.Module, tuple[Any, ...], Tensor]] = {}
        names = {module: name for name, module in model.named_modules()}
        counts: dict[str, int] = {}

        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            name = names[module]
            out.retain_grad()
            self.calls[name, counts.get(name, 0)] = (module, args, out)
            counts[name] = counts.get(name, 0) + 1

        self.handles = [m.register_forward_hook(hook) for m in model.modules() if not list(m.children())]


def test_delta_is_the_gradient_that_autograd_retains():
    model, batch = mixed()
    torch.manual_seed(1)
    run = measure(model, batch, mse)
    twin = Twin(model)
    torch.manual_seed(1)
    mse(model, batch).backward()
    checked = 0
    for i, site in enumerate(run.sites):
        known = twin.calls.get((site.site, site.call))
        if known is not None:
            expected = known[2].grad.norm().item() / math.sqrt(5)
            assert run.steps[0].at("delta_norm", i) == pytest.approx(expected, rel=1e-10), site.site
            checked += 1
    assert checked == len(twin.calls) == 9


def test_delta_of_functional_activations():
    model, batch = mixed()
    model.drop.p = 0.0
    run = measure(model, batch, mse)
    at = {site.site: i for i, site in enumerate(run.sites)}
    with torch.no_grad():
        model.norm.reset_running_stats()
    h = model.pool(model.act(model.norm(model.conv(batch[0])))).flatten(1)
    a = F.silu(model.shared(h))
    b = torch.tanh(model.shared(model.layer_norm(a + h)))
    loss = F.mse_loss(model.out(torch.cat([b, h], 1)), batch[1])
    for name, tensor in (("silu()", a), ("tanh()", b)):
        (grad,) = torch.autograd.grad(loss, tensor, retain_graph=True)
        assert run.steps[0].at("delta_norm", at[name]) == pytest.approx(grad.norm().item() / math.sqrt(5), rel=1e-10)


def test_leaf_gain_is_the_pullback_of_that_call_alone():
    """log10 |J^T d| / |d| with J the Jacobian of this call, everything else left out."""
    model, batch = mixed()
    torch.manual_seed(1)
    run = measure(model, batch, mse)
    twin = Twin(model)
    torch.manual_seed(1)
    mse(model, batch).backward()
    for handle in twin.handles:
        handle.remove()
    checked = 0
    for i, site in enumerate(run.sites):
        known = twin.calls.get((site.site, site.call))
        gain = run.steps[0].at("leaf_gain", i)
        if known is None or gain is None or not run.steps[0].at("flow", i):
            continue
        module, args, out = known
        d = out.grad
        if site.site == "drop":
            module = _FixedDropout(out.detach(), args[0].detach())
        x = args[0].detach().requires_grad_()
        (back,) = torch.autograd.grad(module(x), x, d)
        assert gain == pytest.approx(math.log10(back.norm() / d.norm()), abs=1e-9), site.site
        checked += 1
    assert checked >= 7


class _FixedDropout(nn.Module):
    def __init__(self, out: Tensor, x: Tensor) -> None:
        super().__init__()
        self.mask = out / x

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_unit_statistics_are_those_of_a_loop_over_elements():
    """Small tensors are read whole: sizes below the sample limit."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[3].bias[:2] = -100.0  # two dead units
        model[0].bias[1] = -100.0
    batch = (torch.randn(7, 2, 8), torch.randn(7, 2))
    run = measure(model, batch, mse)
    x = batch[0]
    for i, module in enumerate(model):
        x = module(x).detach()
        values = x.double()
        step = run.steps[0]
        assert step.at("act_rms", i) == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
        assert step.at("act_mean", i) == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-7)
        assert step.at("zero_frac", i) == pytest.approx((values == 0).double().mean().item())
        assert step.at("nonfinite", i) == 0
        between = (values - values.mean(0)).square().sum() / values.square().sum()
        assert step.at("spread", i) == pytest.approx(between.item(), rel=1e-4)
        if isinstance(module, nn.ReLU) and values.dim() == 2:
            assert step.at("dead_frac", i) == pytest.approx((values == 0).all(0).double().mean().item())
    assert run.steps[0].at("dead_frac", 4) >= 2 / 6


@pytest.mark.parametrize(("activation", "largest"), [(nn.Sigmoid(), 0.25), (nn.Tanh(), 1.0), (nn.ReLU(), 1.0)])
def test_slopes_and_saturation_are_those_of_the_derivative(activation, largest):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 2)).double()
    with torch.no_grad():
        model[0].weight.mul_(6)
    batch = (torch.randn(9, 8).double(), torch.randn(9, 2).double())
    run = measure(model, batch, mse)
    h = model[0](batch[0]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(activation(h).sum(), h)
    saturated = (slope.abs() < largest / 20).double().mean().item()
    assert run.steps[0].at("saturated_frac", 1) == pytest.approx(saturated)
    expected = 0.5 * math.log10(slope.square().mean().item())
    assert run.steps[0].at("isotropic", 1) == pytest.approx(expected, abs=1e-9)


def test_isotropic_gain_of_linear_maps_is_their_frobenius_norm():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 20), nn.Linear(20, 3))
    run = measure(model, (torch.randn(5, 8), torch.randn(5, 3)), mse)
    for i, layer in list(enumerate(model))[1:]:
        if run.steps[0].at("isotropic", i) is not None:
            expected = 0.5 * math.log10(layer.weight.square().sum().item() / layer.out_features)
            assert run.steps[0].at("isotropic", i) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
@pytest.mark.parametrize("warm", [0, 2])
def test_the_update_is_weight_after_minus_before_of_a_real_step(make, warm):
    model, batch = mixed()
    optimizer = make(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()

    for _ in range(warm):
        step()
    torch.manual_seed(6)
    run = measure(model, batch, mse, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(6)
    step()
    for i, param in enumerate(run.header.params):
        after = dict(model.named_parameters())[param.name].detach()
        change = (after - before[param.name]).square().mean().sqrt().item()
        assert run.steps[0].of("update_rms", i) == pytest.approx(change, rel=1e-9), param.name


def test_parameter_columns():
    model, batch = mixed()
    with torch.no_grad():
        model.norm.weight[0] = 0.0
    optimizer = torch.optim.SGD([{"params": model.conv.parameters()}, {"params": model.out.parameters()}], lr=0.1)
    torch.manual_seed(7)
    run = measure(model, batch, mse, optimizer)
    torch.manual_seed(7)
    mse(model, batch).backward()
    step = run.steps[0]
    grads = dict(model.named_parameters())
    assert [p.name for p in run.header.params] == list(grads)
    assert {p.name: p.group for p in run.header.params if p.group} == {
        "conv.weight": "0", "conv.bias": "0", "out.weight": "1", "out.bias": "1"
    }  # fmt: skip
    for i, param in enumerate(run.header.params):
        p = grads[param.name]
        assert param.shape == list(p.shape)
        assert step.of("weight_rms", i) == pytest.approx(p.square().mean().sqrt().item(), rel=1e-9)
        assert step.of("grad_rms", i) == pytest.approx(p.grad.square().mean().sqrt().item(), rel=1e-9)
        assert step.of("grad_nonfinite", i) == 0
        assert step.of("grad_underflow_frac", i) == pytest.approx(0.0)
    total = math.sqrt(sum(p.grad.square().sum().item() for p in grads.values()))
    assert step.grad_norm == pytest.approx(total, rel=1e-9)


def test_underflow_is_the_share_below_the_smallest_normal_number():
    model = nn.Linear(4, 4, bias=False)
    x = torch.tensor([[1e-39, 0.0, 1e-37, 1e-38]])
    run = measure(model, x, lambda m, b: m(b).sum())
    assert run.steps[0].of("grad_underflow_frac", 0) == pytest.approx(0.75)


def test_underflow_in_float16_shows_far_above_the_smallest_number():
    torch.manual_seed(2)
    model = nn.Linear(64, 64, bias=False).half()
    x = torch.full((1, 64), 2e-3, dtype=torch.float16) * torch.randn(64).half()
    run = measure(model, x, lambda m, b: m(b).sum())
    share = (x.abs() < torch.finfo(torch.float16).tiny).float().mean().item()
    assert run.steps[0].of("grad_rms", 0) > 1e-3
    assert run.steps[0].of("grad_underflow_frac", 0) == pytest.approx(share)
    assert share > 0


def test_nothing_of_a_backward_changes_the_gradients_or_stays():
    model, batch = mixed()
    torch.manual_seed(8)
    mse(model, batch).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    tape = Tape(Names())
    tape.start()
    torch.manual_seed(8)
    loss = mse(model, batch)
    tape.stop()
    backward = Backward(tape, [loss])
    loss.backward(retain_graph=True)
    backward.finish()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))
    assert not backward.graph.nodes
    first = [visit.delta for visit in backward.visits]
    loss.backward()
    assert [visit.delta for visit in backward.visits] == first


def test_the_order_of_a_graph_has_every_receiver_before_its_sender():
    model, batch = mixed()
    graph = Graph([mse(model, batch).grad_fn])
    place = {seq: n for n, seq in enumerate(graph.order)}
    for seq, keys in graph.edges.items():
        assert all(place[key[0]] < place[seq] for key in keys if key is not None)


def test_the_order_holds_also_where_a_stale_view_gets_its_node_late():
    layer = nn.Linear(4, 4)
    h = layer(torch.randn(3, 4))
    alias = h[:, :]
    h.mul_(2.0)
    graph = Graph([(alias * 1.0).sum().grad_fn])
    place = {seq: n for n, seq in enumerate(graph.order)}
    for seq, keys in graph.edges.items():
        assert all(place[key[0]] < place[seq] for key in keys if key is not None)


def flows(run: Run) -> dict[str, float]:
    return {site.site: run.steps[0].at("flow", i) for i, site in enumerate(run.sites)}


def test_flow_is_conserved_where_the_way_forks():
    """Branches of a sum and of a split carry one unit together."""
    torch.manual_seed(9)

    class Forks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b, self.last = (nn.Linear(8, 8) for _ in range(4))
            self.c, self.d = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            left, right = (self.a(h) + self.b(h)).split(4, dim=1)
            return self.last(self.c(left) + self.d(right))

    found = flows(measure(Forks(), (torch.randn(6, 8), torch.randn(6, 8)), mse))
    assert found["a"] + found["b"] == pytest.approx(1.0, abs=1e-6)
    assert found["c"] + found["d"] == pytest.approx(1.0, abs=1e-6)
    assert found["first"] == pytest.approx(1.0)
    assert found["last"] == pytest.approx(1.0, abs=1e-6)
