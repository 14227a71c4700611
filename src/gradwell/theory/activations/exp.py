"""The exponential."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

CAP = 88.0

KINKS: tuple[float, ...] = (CAP,)
TORCH: tuple[str, ...] = ("exp", "exp_")
AUTOGRAD: tuple[str, ...] = ("ExpBackward0",)
MAX_SLOPE = float("inf")
SATURATES = False
CAN_DIE = False
CODE = "torch.exp(x)"

Z_MAX = 32.0
"""exp(4 sqrt(q) z) moves the mass of the fourth moment up by 4 sqrt(q), at most to 88 / sqrt(q)."""


def exp(x: Floats) -> Floats:
    """The exponential: slope and value grow without bound.

    Formula:
        phi(x) = phi'(x) = exp(min(x, 88)): the cap is where float32 overflows, so that every average stays
        finite.

    What it does to gradients:
        V = D = exp(2q) until the cap acts (q of about 20). The q map has a stable fixed point only for
        small weights and there chi = q* - sigma_b2 < 1/2: the gradient vanishes; everywhere else the signal
        explodes within a few layers.

    When to use it:
        On an output that must be positive; inside softmax, where the maximum is subtracted first.

    When not:
        Between hidden layers.

    Source:
        Closed form: Gaussian moment generating function (derived here).
    """
    return np.exp(np.minimum(x, CAP))


def slope(x: Floats) -> Floats:
    """phi'(x) = exp(x); beyond the cap it keeps exp(88), as the cap stands for an overflow."""
    return np.exp(np.minimum(x, CAP))
