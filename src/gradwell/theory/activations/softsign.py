"""The ratio x / (1 + |x|)."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("Softsign", "softsign")
AUTOGRAD: tuple[str, ...] = ()
MAX_SLOPE = 1.0
SATURATES = True
CAN_DIE = False
CODE = "nn.Softsign()"


def softsign(x: Floats) -> Floats:
    """Squeezes every value into (-1, 1) with algebraic tails.

    Formula:
        phi(x) = x / (1 + |x|); phi'(x) = 1 / (1 + |x|)^2.

    What it does to gradients:
        The slope is 1 at zero only, with a corner there, and falls faster than that of tanh near zero, but
        more slowly far out: saturation is gentle. Critical at sigma_w2 = 1 with q* -> 0.

    When to use it:
        In place of tanh where hard saturation hurts.

    When not:
        Deep plain nets: the gradient loss at moderate q is larger than with tanh.

    Source:
        Bergstra et al. 2009; Glorot and Bengio 2010.
    """
    return np.asarray(x / (1 + np.abs(x)))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.asarray(1 / np.square(1 + np.abs(x)))
