"""The forward half: which calls are noted, with what, and that nothing stays."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwell.probe import kinds
from gradwell.probe import tape as module_under_test
from gradwell.probe.names import Names
from gradwell.probe.tape import Tape

X = torch.randn(5, 8)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    torch.set_num_threads(1)
    yield
    module = torch.nn.modules.module
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
    assert not module._global_forward_hooks_always_called
    assert torch._C._len_torch_function_stack() == 0


class Free(nn.Module):
    def __init__(self, function: Any, **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def visits(model: nn.Module, *args: Any, times: int = 1) -> list[Any]:
    tape = Tape(Names())
    tape.names.root(model, "")
    tape.start()
    try:
        for _ in range(times):
            model(*(args or (X,)))
        return tape.take(lambda _: True)
    finally:
        tape.stop()


def test_leaves_are_noted_and_containers_are_not():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))
    found = visits(model)
    assert [(v.name, v.kind, v.role, v.call) for v in found] == [
        ("0", "Linear", "weight", 0), ("1.0", "ReLU", "activation", 0), ("1.1", "Linear", "weight", 0)
    ]  # fmt: skip
    assert [(v.fan_in, v.fan_out, v.out_shape) for v in found] == [(8, 8, (5, 8)), (8, 8, (5, 8)), (8, 4, (5, 4))]


def test_functional_activations_are_sites_and_the_same_inside_torch_is_not():
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.gelu(torch.sigmoid(self.act(F.relu(self.fc(x))).tanh()))

    found = visits(Free(forward, fc=nn.Linear(8, 8), act=nn.SiLU()))
    assert [v.name for v in found] == ["fc", "relu()", "act", "tanh()", "sigmoid()", "gelu()"]


def test_in_place_functions_too():
    model = Free(lambda self, x: F.relu(self.fc(x), inplace=True).sigmoid_(), fc=nn.Linear(8, 8))
    assert [v.role for v in visits(model)] == ["weight", "activation", "activation"]
    assert [kinds.largest_slope(v.kind) for v in visits(model)][1:] == [1.0, 0.25]


def test_calls_of_the_outermost_module_are_told_apart():
    found = visits(nn.Sequential(nn.Linear(8, 8)), times=3)
    assert [(v.name, v.turn) for v in found] == [("0", 1), ("0", 2), ("0", 3)]


def test_no_gradient_no_visit():
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        assert visits(model) == []
    with torch.inference_mode():
        assert visits(model) == []
    assert visits(model.requires_grad_(False)) == []
    assert [v.name for v in visits(model, X.clone().requires_grad_())] == ["0"]


def test_an_exception_in_the_model_leaves_a_clean_tape():
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.broken:
            self.deep(x)
            raise KeyError("theirs")
        return self.deep(x)

    model = Free(forward, deep=nn.Sequential(nn.Linear(8, 8)))
    tape = Tape(Names())
    tape.start()
    try:
        for broken in (True, False, True, False):
            model.broken = broken
            if broken:
                with pytest.raises(KeyError):
                    model(X)
            else:
                model(X)
            assert not tape._stack
            assert torch._C._len_torch_function_stack() == 0
    finally:
        tape.stop()
    assert len(tape.visits) == 4


def test_an_interrupt_that_the_script_survives_leaves_a_clean_tape():
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.broken:
            raise KeyboardInterrupt
        return self.fc(x)

    model = Free(forward, fc=nn.Linear(8, 8))
    tape = Tape(Names())
    tape.start()
    try:
        model.broken = True
        with pytest.raises(KeyboardInterrupt):
            model(X)
        model.broken = False
        model(X)
        assert not tape._stack
        assert torch._C._len_torch_function_stack() == 0
    finally:
        tape.stop()


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(func, "__name__", "?"))
        return func(*args, **(kwargs or {}))


def test_the_users_own_mode_sees_the_same_with_and_without_us():
    model = Free(lambda self, x: torch.tanh(self.fc(x) * 2), fc=nn.Linear(8, 8))
    with Counting() as plain:
        model(X)
    tape = Tape(Names())
    tape.start()
    try:
        with Counting() as watched:
            model(X)
    finally:
        tape.stop()
    assert watched.seen == plain.seen


def test_modes_inside_the_forward_are_left_alone():
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            h = torch.relu(self.a(x) + torch.zeros(8))
        return torch.tanh(self.b(h))

    found = visits(Free(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    assert [v.name for v in found] == ["a", "relu()", "b", "tanh()"]


def test_the_tape_is_bounded(monkeypatch):
    monkeypatch.setattr(module_under_test, "MAX_CALLS", 10)
    model = nn.Sequential(nn.Linear(8, 8))
    assert len(visits(model, times=50)) == 10


def test_visits_hold_no_tensor_of_the_graph():
    tape = Tape(Names())
    tape.start()
    try:
        out = nn.Sequential(nn.Linear(8, 8), nn.Tanh())(X)
        gone = weakref.ref(out)
        del out
        gc.collect()
        assert gone() is None
    finally:
        tape.stop()


def test_the_input_of_each_outermost_call_is_looked_at():
    tape = Tape(Names())
    model = nn.Sequential(nn.Linear(8, 8))
    tape.start()
    try:
        model(X)
        model(X * 100)
    finally:
        tape.stop()
    first, second = tape.given.values()
    assert first.rms == pytest.approx(X.square().mean().sqrt().item(), rel=1e-5)
    assert first.mean == pytest.approx(X.mean().item(), rel=1e-4, abs=1e-6)
    assert second.rms == pytest.approx(100 * first.rms, rel=1e-5)


def test_start_and_stop_may_come_twice():
    tape = Tape(Names())
    tape.start()
    tape.start()
    assert len(torch.nn.modules.module._global_forward_hooks) == 1
    tape.stop()
    tape.stop()
    assert not tape.running


def test_hooks_of_the_model_see_what_they_always_saw():
    model = nn.Sequential(nn.Linear(8, 8))
    seen: list[int] = []
    model[0].register_forward_hook(lambda _m, args, out: seen.append(id(out)))
    tape = Tape(Names())
    tape.start()
    try:
        out = model(X)
    finally:
        tape.stop()
    assert seen == [id(out)]


def test_an_output_may_be_changed_by_a_hook_of_the_model():
    """Global hooks run before the module's own: what is measured is the output before that change."""
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_forward_hook(lambda _m, _a, out: out * 3)
    found = visits(model)
    plain = F.linear(X, model[0].weight, model[0].bias)
    assert found[0].size == pytest.approx(plain.norm().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_outputs_in_every_container(kind):
    wraps: dict[type, Any] = {dict: lambda t: {"x": [t]}, list: lambda t: [None, t], tuple: lambda t: ((t,), "text")}
    model = Free(lambda self, x: self.leaf(x), leaf=Free(lambda self, x: wraps[kind](x @ self.w)))
    model.leaf.w = nn.Parameter(torch.eye(8))
    found = visits(model)
    assert [(v.name, v.role, v.out_shape) for v in found] == [("leaf", "weight", (5, 8))]
