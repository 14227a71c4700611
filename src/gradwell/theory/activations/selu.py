"""The self-normalising exponential linear unit."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

SCALE = 1.0507009873554805
ALPHA = 1.6732632423543772

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("SELU", "selu", "selu_")
AUTOGRAD: tuple[str, ...] = ("EluBackward0",)
MAX_SLOPE = SCALE * ALPHA
SATURATES = False
CAN_DIE = False
CODE = "nn.SELU()"


def selu(x: Floats) -> Floats:
    """ELU scaled so that outputs keep mean 0 and variance 1 under LeCun initialisation.

    Formula:
        phi(x) = scale * (x for x > 0, else alpha (exp(x) - 1)) with scale = 1.0507009873554805, alpha =
        1.6732632423543772.

    What it does to gradients:
        The forward fixed point is (mean 0, variance 1), but the backward gain is above 1: chi = E phi'^2 at
        q = 1 exceeds 1 by 7 %, so gradients grow a few per cent a layer. torch's gain of 3/4 gives chi
        close to 1.

    When to use it:
        Plain deep nets of fully connected layers, with LeCun-normal initialisation and AlphaDropout.

    When not:
        With batch norm, ordinary dropout or shortcuts: they break the fixed point it was made for.

    Source:
        Klambauer et al. 2017.
    """
    x = np.asarray(x, dtype=float)
    return SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0.0)))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    x = np.asarray(x, dtype=float)
    return SCALE * np.where(x > 0, 1.0, ALPHA * np.exp(np.minimum(x, 0.0)))
