"""Leaky ReLU whose slope is learned."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("PReLU", "prelu")
AUTOGRAD: tuple[str, ...] = ("PreluKernelBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.PReLU()"


def prelu(x: Floats, *, weight: float = 0.25) -> Floats:
    """Leaky ReLU whose negative slope is a parameter, 0.25 at the start.

    Formula:
        phi(x) = x for x > 0, else weight * x; phi'(x) = 1 or weight.

    What it does to gradients:
        At the start D = (1 + 0.25^2) / 2: critical at sigma_w2 = 32/17. The slope is learned, so the gain
        moves during training.

    When to use it:
        In place of ReLU where its parameter costs nothing, with He initialisation at a = 0.25.

    When not:
        With weight decay on the slope: decay pulls it towards ReLU.

    Source:
        He et al. 2015.
    """
    return np.where(np.asarray(x) > 0, x, weight * np.asarray(x))


def slope(x: Floats, *, weight: float = 0.25) -> Floats:
    """phi'(x)."""
    return np.where(np.asarray(x) > 0, 1.0, weight)
