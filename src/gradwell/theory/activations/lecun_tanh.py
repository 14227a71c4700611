"""LeCun's scaled hyperbolic tangent."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

OUTER = 1.7159
INNER = 2 / 3

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ()
AUTOGRAD: tuple[str, ...] = ()
MAX_SLOPE = OUTER * INNER
SATURATES = True
CAN_DIE = False
CODE = "1.7159 * torch.tanh(2 / 3 * x)"


def lecun_tanh(x: Floats) -> Floats:
    """tanh scaled so that phi(1) is close to 1 and the second derivative is largest there.

    Formula:
        phi(x) = 1.7159 tanh(2x / 3); phi'(x) = 1.7159 (2/3) (1 - tanh(2x / 3)^2).

    What it does to gradients:
        The slope at zero is 1.144, so LeCun's sigma_w2 = 1 holds unit-variance signals and is slightly
        chaotic (chi = 1.02); the critical point with q* -> 0 is sigma_w2 = 0.764.

    When to use it:
        With standardised inputs and LeCun initialisation, as in the original recipe.

    When not:
        Where plain tanh is expected: its gains differ.

    Source:
        LeCun, Bottou, Orr, Mueller 1998 (Efficient BackProp). No torch module computes it.
    """
    return np.asarray(OUTER * np.tanh(INNER * np.asarray(x)))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    value = np.tanh(INNER * np.asarray(x))
    return np.asarray(OUTER * INNER * (1 - value) * (1 + value))
