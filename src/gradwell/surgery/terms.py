"""What may be added to a loss: a penalty on the gradient's way through time, a second loss in the middle.

A term is a frozen description that names modules by their place in the model, so that it fits every copy; inside
`watching(model, ...)` it sees what the model computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import Refused

Term = Callable[[Tensor], Tensor]
LossFn = Callable[[Any, Any], Tensor]


class LossTerm(ABC):
    """Something added to the loss of a step, as data."""

    @abstractmethod
    def watching(self, model: nn.Module, batch: Any, loss_fn: LossFn) -> AbstractContextManager[Term]:
        """Inside, the model runs and is watched; the function that comes out gives the term for a loss."""


@dataclass(frozen=True)
class TimeGain(LossTerm):
    """weight times Omega = sum over t of mean over the batch of (|g_t+1 dh_t+1/dh_t| / |g_t+1| - 1)^2, g = dLoss/dh.

    Only the recurrent weights of the step are trained by it: g and h are taken as they are (Pascanu et al. 2013,
    equation 9 and below it). For `nn.RNN` (its last layer) and for `nn.RNNCell` called step by step.
    """

    weight: float = 1.0

    @contextmanager
    def watching(self, model: nn.Module, batch: Any, loss_fn: LossFn) -> Iterator[Term]:  # noqa: ARG002
        kept: list[tuple[Any, Any]] = []
        watched = [m for m in model.modules() if isinstance(m, (nn.RNN, nn.RNNCell))]
        handles = [m.register_forward_hook(lambda m, _, out: kept.append((m, out))) for m in watched]
        try:
            yield lambda loss: self.weight * _omega(loss, kept)
        finally:
            for handle in handles:
                handle.remove()


def _omega(loss: Tensor, kept: list[tuple[Any, Any]]) -> Tensor:
    total = loss.new_zeros(())
    cells: dict[int, list[tuple[Any, Tensor]]] = {}
    for module, out in kept:
        if isinstance(module, nn.RNN):
            if not isinstance(out[0], Tensor):
                raise Refused("The penalty cannot follow a packed sequence through time; pad it.")
            total = total + time_gain(module, *_fused_gradients(loss, module, *out))
        else:
            cells.setdefault(id(module), []).append((module, out))
    for calls in cells.values():
        states = [state for _, state in calls]
        grads = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
        g = torch.stack([torch.zeros_like(s) if d is None else d for s, d in zip(states, grads, strict=True)])
        total = total + time_gain(calls[0][0], g, torch.stack(states).detach())
    return total


def _fused_gradients(loss: Tensor, rnn: nn.RNN, out: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """dLoss/dh_t and h_t of the last layer, (T, B, N): the kernel gives only what reaches each output directly."""
    direct, at_end = torch.autograd.grad(loss, (out, last), retain_graph=True, allow_unused=True)
    states = (out.transpose(0, 1) if rnn.batch_first else out).detach()
    g = torch.zeros_like(states)
    if direct is not None:
        g = g + (direct.transpose(0, 1) if rnn.batch_first else direct)
    if at_end is not None:
        g[-1] = g[-1] + at_end[-1]
    with torch.no_grad():
        for t in range(len(g) - 1, 0, -1):
            g[t - 1] = g[t - 1] + _back(rnn, g[t], states[t])
    return g, states


def _back(cell: Any, grad: Tensor, state: Tensor) -> Tensor:
    """g_t+1 through one step: (g * phi'(a)) W_hh, phi' from the state itself."""
    slope = 1 - state**2 if cell.nonlinearity == "tanh" else (state > 0).to(state.dtype)
    name = f"weight_hh_l{cell.num_layers - 1}" if isinstance(cell, nn.RNN) else "weight_hh"
    back: Tensor = (grad * slope) @ getattr(cell, name)
    return back


def time_gain(cell: Any, grads: Tensor, states: Tensor) -> Tensor:
    """Omega of gradients dLoss/dh_t and states h_t, both (T, B, N)."""
    total = grads.new_zeros(())
    for grad, state in zip(grads[1:], states[1:], strict=True):
        ratio = _back(cell, grad, state).norm(dim=-1) / grad.norm(dim=-1).clamp_min(1e-12)
        total = total + ((ratio - 1) ** 2).mean()
    return total


@dataclass(frozen=True)
class Auxiliary(LossTerm):
    """weight times the same loss, computed from the output of a module in the middle through a head of its own."""

    weight: float
    cut: str
    head: str

    @contextmanager
    def watching(self, model: nn.Module, batch: Any, loss_fn: LossFn) -> Iterator[Term]:
        kept: list[Tensor] = []
        handle = model.get_submodule(self.cut).register_forward_hook(lambda _, __, out: kept.append(out))

        def term(_: Tensor) -> Tensor:
            head = model.get_submodule(self.head)
            out = head(pooled(kept[-1]).to(next(head.parameters()).dtype))  # autocast ends with the user's loss
            return self.weight * loss_fn(Given(out), batch)

        try:
            yield term
        finally:
            handle.remove()


class Given(nn.Module):
    """A model that has its output already."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.out


def pooled(x: Tensor) -> Tensor:
    """The mean over an image, (B, C, H, W) -> (B, C); anything else as it is."""
    return x.flatten(2).mean(2) if x.dim() >= 4 else x
