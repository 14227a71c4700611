"""tanh made of straight lines."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (-1.0, 1.0)
TORCH: tuple[str, ...] = ("Hardtanh", "hardtanh", "hardtanh_")
AUTOGRAD: tuple[str, ...] = ("HardtanhBackward0",)
MAX_SLOPE = 1.0
SATURATES = True
CAN_DIE = False
CODE = "nn.Hardtanh()"


def hardtanh(x: Floats) -> Floats:
    """The identity cut at -1 and 1.

    Formula:
        phi(x) = min(max(x, -1), 1); phi'(x) = 1 for |x| < 1, else 0.

    What it does to gradients:
        As the identity for small signals: critical at sigma_w2 = 1 with q* -> 0, approached so slowly that
        it is almost linear. With orthogonal weights and small q it can be a dynamical isometry.

    When to use it:
        Recurrent cells on cheap hardware; the exactly solvable stand-in for tanh.

    When not:
        Where |x| often passes 1: the gradient is then exactly zero.

    Source:
        Pennington, Schoenholz, Ganguli 2017.
    """
    return np.clip(x, -1.0, 1.0)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.where(np.abs(x) < 1, 1.0, 0.0)
