"""Optimizers: a new parameter joins the group of its neighbour, rates are scaled around a step, signs step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwell.errors import UnknownId


def adopt(optimizer: Optimizer, new: Tensor, neighbour: Tensor) -> bool:
    """Append a new parameter to the group that holds `neighbour`; False where no group does (it is frozen).

    A group of its own would break LambdaLR, SequentialLR, OneCycleLR and LBFGS, which count groups.
    """
    groups = optimizer.param_groups
    if any(new is p for group in groups for p in group["params"]):
        return True
    for group in groups:
        if any(neighbour is p for p in group["params"]):
            group["params"].append(new)
            return True
    return False


@contextmanager
def scaled_rates(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Inside, every learning rate is multiplied; afterwards it is put back, so that schedulers see their own."""
    kept = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate


class SignSGD(Optimizer):
    """w <- w - lr sign(g) (Bernstein et al., 2018)."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())
        return loss


def known(name: str) -> Callable[..., Optimizer]:
    """The optimizer class of `torch.optim` with that name; raises `UnknownId`."""
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise UnknownId(f"torch.optim has no optimizer {name!r}; take AdamW, Adam, RMSprop or Adagrad.")
    return kind
