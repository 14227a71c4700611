"""ELU with a continuous slope for every alpha."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("CELU", "celu", "celu_")
AUTOGRAD: tuple[str, ...] = ("CeluBackward0", "EluBackward0")
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.CELU()"


def celu(x: Floats, *, alpha: float = 1.0) -> Floats:
    """ELU whose slope is continuous at zero for every alpha.

    Formula:
        phi(x) = x for x > 0, else alpha (exp(x / alpha) - 1); phi'(x) = 1, or exp(x / alpha).

    What it does to gradients:
        As ELU; at alpha = 1 they are the same function. The slope at zero is 1 for every alpha, so sigma_w2
        = 1 is critical.

    When to use it:
        Where ELU with alpha other than 1 is wanted.

    When not:
        Where ELU itself will do: it is better known.

    Source:
        Barron 2017.
    """
    x = np.asarray(x, dtype=float)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / alpha))


def slope(x: Floats, *, alpha: float = 1.0) -> Floats:
    """phi'(x)."""
    x = np.asarray(x, dtype=float)
    return np.where(x > 0, 1.0, np.exp(np.minimum(x, 0.0) / alpha))
