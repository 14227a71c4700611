"""Small trainings, and what is hooked or patched in the process."""

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

import gradwell as gw

X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(6, 8)


def net(depth: int = 1, unit: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), unit())]
    return nn.Sequential(*hidden, nn.Linear(8, 8))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    return F.mse_loss(model(x), Y[: len(x)])


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits(model: nn.Module) -> list[bytes]:
    """Parameters and buffers, bit by bit."""
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in model.state_dict().values()]


def process_state() -> dict[str, Any]:
    """What is hooked or patched in the process."""
    m = torch.nn.modules.module
    o = importlib.import_module("torch.optim.optimizer")
    return {
        "forward": (len(m._global_forward_hooks), len(m._global_forward_pre_hooks), len(m._global_backward_hooks)),
        "always": len(m._global_forward_hooks_always_called),
        "optimizer": (len(o._global_optimizer_pre_hooks), len(o._global_optimizer_post_hooks)),
        "modes": _len_torch_function_stack(),
        "make_grads": torch.autograd._make_grads,
        "Optimizer": torch.optim.Optimizer.__init__,
        "scale": torch.amp.GradScaler.scale,
        "grad": torch.is_grad_enabled(),
    }


def events(watch: gw.Watch) -> list[str]:
    """What happened, without the losses."""
    return [event.event for event in watch.run.events if event.event != "losses"]


def numbers(watch: gw.Watch) -> list[int]:
    return [step.step for step in watch.run.steps]


@pytest.fixture(autouse=True)
def _clean_process():
    torch.set_num_threads(1)
    random.seed(0)
    before = process_state()
    yield
    assert process_state() == before
