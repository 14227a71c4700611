"""An optimizer's step becomes no step when one of its gradients is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

Aside = list[tuple[Tensor, Tensor]]


class Rescue:
    """Takes the gradients away before a step that would spread NaN, and gives them back after it.

    An optimizer passes over a parameter without a gradient, so weights and its own state stay bit for bit. A step
    that a GradScaler guards itself (a fused one) is left to it. `told` hears which parameters' gradients were not
    finite, `refused` once which step cannot be guarded, see `can_guard`.
    """

    def __init__(self, *, told: Callable[[list[Tensor]], None], refused: Callable[[str], None]) -> None:
        self.spent = 0.0
        self._told, self._refused = told, refused
        self._has_refused = self._has_failed = False
        self._aside: dict[int, Aside] = {}

    def before(self, optimizer: torch.optim.Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Guard a step; returns other arguments for it where it has a closure."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._guard(optimizer)
            return None
        if not can_guard(optimizer, closure=True):
            name = type(optimizer).__name__
            self._refuse(name if not can_guard(optimizer, closure=False) else f"{name}.step(closure)")
            return None

        def guarded() -> Any:
            loss = closure()
            self._guard(optimizer)
            return loss

        rest = {name: value for name, value in kwargs.items() if name != "closure"}
        return (args[0], guarded, *args[2:]), rest

    def _refuse(self, called: str) -> None:
        told, self._has_refused = self._has_refused, True
        if not told:
            self._refused(f"rescue=True cannot guard {called}; its steps are taken as they are.")

    def _guard(self, optimizer: torch.optim.Optimizer) -> None:
        """The instrument never harms the patient: what we fail at is told and left alone."""
        if self._has_failed or getattr(optimizer, "found_inf", None) is not None:
            return
        start = time.perf_counter()
        try:
            self._take_away(optimizer)
        except Exception as problem:
            self._has_failed = True
            self.restore()
            self._refuse(f"{type(optimizer).__name__} ({type(problem).__name__}: {problem})")
        self.spent += time.perf_counter() - start

    def _take_away(self, optimizer: torch.optim.Optimizer) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = not_finite(held)
        if bad:
            self._aside[id(optimizer)] = [(p, p.grad) for p in held]
            for p in held:
                p.grad = None
            self._told(bad)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients back."""
        _give_back(self._aside.pop(id(optimizer), []))

    def restore(self) -> None:
        """Give back what a step that raised has left."""
        for aside in self._aside.values():
            _give_back(aside)
        self._aside = {}


def _give_back(aside: Aside) -> None:
    for parameter, grad in aside:
        if parameter.grad is None:
            parameter.grad = grad


def can_guard(optimizer: torch.optim.Optimizer, *, closure: bool) -> bool:
    """False for LBFGS, whose step needs every gradient of its line search, and for a closure that somebody else's
    optimizer may call when it likes.
    """
    own = type(optimizer).__module__.startswith("torch.optim.")
    return not isinstance(optimizer, torch.optim.LBFGS) and (own or not closure)


@torch.no_grad()
def not_finite(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parameters whose gradient has a NaN or an infinity; one number is read where there is none."""
    given = [(p, p.grad) for p in parameters if p.grad is not None and p.grad.numel()]
    grads = [(p, grad.coalesce()._values() if grad.is_sparse else grad) for p, grad in given]
    if not grads or bool(torch.isfinite(get_total_norm([g for _, g in grads], norm_type=torch.inf))):
        return []
    return [p for p, g in grads if not bool(torch.isfinite(g).all())]
