"""What may be done to the gradients between backward and step, each against its published formula.

An edit is a frozen description; `start()` gives a fresh function of one training, with whatever it must remember
(AutoClip's past norms, ZClip's mean) inside. It changes `.grad` in place and gets (name, parameter) pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Named = Sequence[tuple[str, Tensor]]
Edit = Callable[[Named], None]


class GradientEdit(ABC):
    """A change of the gradients, as data."""

    @abstractmethod
    def start(self) -> Edit:
        """The edit for one training, from its first step."""


def norm_of(named: Named) -> Tensor:
    """Norm of all gradients together."""
    grads = [p.grad for _, p in named if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


def scale_to(named: Named, bound: float, norm: Tensor) -> None:
    """Multiply all gradients by bound / norm where the norm is larger, as torch's own clipping does."""
    params = [p for _, p in named]
    torch.nn.utils.clip_grads_with_norm_(params, bound, norm)


@dataclass(frozen=True)
class UnitClip(GradientEdit):
    """AGC: g_i <- g_i min(1, ratio max(|w_i|, 1e-3) / |g_i|) for each output unit i; the last weight stays as it is.

    Brock et al. 2021; over output units as in timm (THEORY trap 5).
    """

    ratio: float = 0.01
    floor: float = 1e-3

    def start(self) -> Edit:
        return self._clip

    @torch.no_grad()
    def _clip(self, named: Named) -> None:
        weights = [p for _, p in named if p.grad is not None and p.dim() > 1]
        for p in weights[:-1]:
            dims = tuple(range(1, p.dim()))
            limit = self.ratio * torch.linalg.vector_norm(p, dim=dims, keepdim=True).clamp_min(self.floor)
            size = torch.linalg.vector_norm(_grad(p), dim=dims, keepdim=True).clamp_min(1e-6)
            _grad(p).mul_((limit / size).clamp_max(1.0))


@dataclass(frozen=True)
class AutoClip(GradientEdit):
    """Clips the norm at the p-th percentile of all norms so far, this one counted (Seetharaman et al. 2020)."""

    percentile: float = 10.0

    def start(self) -> Edit:
        past: list[Tensor] = []

        def clip(named: Named) -> None:
            norm = norm_of(named)
            past.append(norm.detach())
            bound = torch.quantile(torch.stack(past).float(), self.percentile / 100)
            scale_to(named, float(bound), norm)

        return clip


@dataclass(frozen=True)
class ZClip(GradientEdit):
    """Clips norms whose z-score against a running mean and variance is above a threshold (Kumar et al. 2025).

    The first `warmup` norms only give the mean and variance. Above the threshold the norm is brought to
    mean + threshold * std / (z / threshold), and the running figures are fed with that.
    """

    threshold: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    max_norm: float | None = 1.0

    def start(self) -> Edit:
        return _Running(self)


@dataclass
class _Running:
    """Running mean and variance of the gradient's norm."""

    settings: ZClip
    first: list[float] = field(default_factory=list)
    mean: float = 0.0
    var: float = 0.0

    def __call__(self, named: Named) -> None:
        norm = norm_of(named)
        size = float(norm)
        bound = self._bound(size)
        if bound < size:
            scale_to(named, bound, norm)

    def _bound(self, size: float) -> float:
        cap = self.settings.max_norm if self.settings.max_norm is not None else float("inf")
        if len(self.first) < self.settings.warmup:
            self.first.append(size)
            if len(self.first) == self.settings.warmup:
                self.mean = sum(self.first) / len(self.first)
                self.var = sum((n - self.mean) ** 2 for n in self.first) / len(self.first)
            return cap
        limit, std = self.settings.threshold, self.var**0.5
        z = (size - self.mean) / (std + 1e-6)
        kept = self.mean + limit * std / (z / limit) if z > limit else size
        alpha = self.settings.alpha
        self.mean = alpha * self.mean + (1 - alpha) * kept
        self.var = alpha * self.var + (1 - alpha) * (kept - self.mean) ** 2
        return min(kept, cap)


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad
