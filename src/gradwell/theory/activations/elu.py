"""The exponential linear unit."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("ELU", "elu", "elu_")
AUTOGRAD: tuple[str, ...] = ("EluBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.ELU()"


def elu(x: Floats, *, alpha: float = 1.0) -> Floats:
    """ReLU whose negative half bends smoothly to -alpha, so that the mean output is near zero.

    Formula:
        phi(x) = x for x > 0, else alpha (exp(x) - 1); phi'(x) = 1, or alpha exp(x).

    What it does to gradients:
        Near x = 0 it is the identity, so for alpha = 1 it is critical at sigma_w2 = 1 with q* -> 0 (slow,
        algebraic loss). With He initialisation q grows without bound and chi -> 1. `calculate_gain` of
        torch does not know it.

    When to use it:
        Nets without norm; it pushes mean activations towards zero and does not die exactly.

    When not:
        Where exp is too dear, or with large negative inputs (saturation on one side).

    Source:
        Clevert, Unterthiner, Hochreiter 2016.
    """
    x = np.asarray(x, dtype=float)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def slope(x: Floats, *, alpha: float = 1.0) -> Floats:
    """phi'(x)."""
    x = np.asarray(x, dtype=float)
    return np.where(x > 0, 1.0, alpha * np.exp(np.minimum(x, 0.0)))
