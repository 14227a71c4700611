"""What the tasks of long memory share: recurrent nets read at their last step, and their training."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Reader(nn.Module):
    """A recurrent cell over (B, T, N), read at the last step: (B, M)."""

    def __init__(self, cell: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.cell(x)
        out: Tensor = self.head(steps[:, -1])
        return out


class Course(msgspec.Struct, frozen=True):
    """A training: a measure every `every` steps, and decades of gradient from the last time step to the first."""

    steps: list[int]
    values: list[float]
    start_decades: float


def forget_bias(cell: nn.RNNBase, forget: float, enter: float | None = None) -> None:
    """Set the forget gate's bias of an LSTM and, if given, the input gate's."""
    hidden = cell.hidden_size
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name.startswith("bias"):
                whole = 1.0 if "ih" in name else 0.0
                parameter[hidden : 2 * hidden] = forget * whole
                if enter is not None:
                    parameter[:hidden] = enter * whole


def through_time(model: Reader, x: Tensor) -> float:
    """log10 |dL/dx_1| / |dL/dx_T| of a random cotangent at the output: the reach of the gradient at the start."""
    inputs = x.clone().requires_grad_()
    out = model(inputs)
    (grad,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)
    last, first = float(grad[:, -1].double().norm()), float(grad[:, 0].double().norm())
    return math.log10(first / last) if first > 0 else -math.inf


def train(
    model: Reader,
    batch: Callable[[], Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[], float],
    *,
    steps: int,
    lr: float,
    clip: float = 1.0,
    every: int = 50,
    tick: Callable[[float], None] = lambda _: None,
) -> Course:
    """Adam with the norm clipped; `measure()` every `every` steps; a rate that is halved at half and three quarters."""
    start = through_time(model, batch()[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    seen, values = [0], [measure()]
    for step in range(1, steps + 1):
        x, y = batch()
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(x), y))
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if step in (steps // 2, 3 * steps // 4):
            optimizer.param_groups[0]["lr"] /= 2
        if step % every == 0 or step == steps:
            tick(step - seen[-1])
            seen.append(step)
            values.append(measure())
    return Course(seen, values, start)
