"""Leave no trace: `.grad`, modes, buffers, flags and random numbers, also when the user's code raises."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwell.errors import NotMeasurable
from gradwell.journeys.check import check
from gradwell.probe.preserve import preserved


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
    model[0].weight.grad = torch.full((8, 8), 3.0)
    model[3].bias.requires_grad_(False)
    model[2].eval()
    model.register_buffer("nothing", None)
    model.register_buffer("kept", torch.tensor([1.0, float("nan")]), persistent=False)
    return model


def state(model: nn.Module) -> Any:
    grads = [(id(p.grad), None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
    buffers = [(name, id(b), str(b.tolist())) for name, b in model.named_buffers()]
    return {
        "grads": grads,
        "buffers": buffers,
        "weights": [(id(p), p.tolist()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [np.asarray(v).tolist() for v in np.random.get_state()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grad mode": torch.is_grad_enabled(),
    }


def wild(model: Any, batch: Any) -> Tensor:
    """A loss that touches all that may be touched."""
    model.train()
    torch.rand(3)
    random.random()
    np.random.rand()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.kept.add_(1)
    model[1].running_mean = torch.zeros(8)  # a new tensor in place of the buffer
    return F.mse_loss(model(batch), torch.zeros_like(batch))


def test_a_checkup_changes_nothing():
    model = net()
    before = state(model)
    check(model, torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), wild)
    assert state(model) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_nor_does_one_whose_loss_raises(when):
    def raises(model: Any, batch: Any) -> Tensor:
        if when == "after":
            wild(model, batch).backward()
        else:
            model.train()
            torch.rand(1)
        raise KeyError("theirs")

    model = net()
    before = state(model)
    with pytest.raises(KeyError, match="theirs"):
        check(model, torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), raises)
    assert state(model) == before
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("answer", [3.0, torch.zeros(2, requires_grad=True), torch.tensor(1.0)])
def test_nor_does_one_that_cannot_be_measured(answer):
    model = net()
    before = state(model)
    with pytest.raises(NotMeasurable):
        check(model, torch.zeros(6, 8), lambda m, b: answer)
    assert state(model) == before


def test_nor_does_one_whose_forward_or_backward_raises():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise ZeroDivisionError("theirs")

    class BadForward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("theirs")

    model = net()
    model.append(BadForward())
    before = state(model)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ZeroDivisionError, match="theirs"):
        check(model, x, lambda m, b: m(b).sum())
    assert state(model) == before
    with pytest.raises(ZeroDivisionError, match="theirs"):
        check(model, x, lambda m, b: Bad.apply(m[0](b)).sum())
    assert state(model) == before


def test_it_works_where_gradients_are_off():
    model = net()
    before = state(model)
    with torch.no_grad():
        check(model, torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), lambda m, b: m(b).square().mean())
        assert not torch.is_grad_enabled()
    assert state(model) == before


DRAWS: dict[str, Any] = {
    "nothing": lambda: None,
    "uniform": np.random.rand,
    "normal": np.random.randn,
    "two normals": lambda: np.random.randn(2),
    "seed": lambda: np.random.seed(0),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(sorted(DRAWS)), st.sampled_from(sorted(DRAWS))), min_size=1, max_size=6))
def test_numpys_generator_is_as_before_each_of_many_checkups(draws):
    """A normal number that was drawn in advance does not show in the generator's memory."""
    kept = np.random.get_state()
    try:
        for outside, inside in draws:
            DRAWS[outside]()
            before = [np.asarray(v).tolist() for v in np.random.get_state()]
            with preserved(nn.Linear(1, 1)):
                DRAWS[inside]()
            assert [np.asarray(v).tolist() for v in np.random.get_state()] == before
    finally:
        np.random.set_state(kept)


def test_a_generator_of_another_kind():
    kept = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        for _ in range(2):
            np.random.rand()
            before = np.random.get_state(legacy=False)["state"]
            with preserved(nn.Linear(1, 1)):
                np.random.rand()
            assert np.random.get_state(legacy=False)["state"] == before
    finally:
        np.random.set_bit_generator(kept)


def test_inside_gradients_are_set_aside_by_reference():
    model = net()
    grad = model[0].weight.grad
    with preserved(model):
        assert all(p.grad is None for p in model.parameters())
        model[0].weight.grad = torch.zeros(8, 8)
    assert model[0].weight.grad is grad
    assert grad.tolist() == [[3.0] * 8] * 8


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(1).expand(4),
        torch.arange(4).expand(1, -1),
        torch.zeros(0),
        torch.tensor(2, dtype=torch.int64),
        torch.eye(3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_buffers_of_every_kind(buffer):
    model = nn.Linear(2, 2)
    model.register_buffer("odd", buffer)
    with preserved(model):
        pass
    assert model.odd is buffer


def test_an_optimizer_and_its_state_are_as_before():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.randn(6, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    held = {id(p): {k: v.clone() for k, v in optimizer.state[p].items()} for p in optimizer.state}
    before = state(model)
    check(model, torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), lambda m, b: m(b).sum(), optimizer)
    assert state(model) == before
    assert {id(p) for p in optimizer.state} == set(held)
    for p, values in optimizer.state.items():
        assert all(torch.equal(values[k], held[id(p)][k]) for k in values)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
