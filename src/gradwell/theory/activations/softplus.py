"""The smooth ReLU whose slope is the sigmoid."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("Softplus", "softplus")
AUTOGRAD: tuple[str, ...] = ("SoftplusBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.Softplus()"


def softplus(x: Floats, *, beta: float = 1.0) -> Floats:
    """The logarithm of 1 + exp(x): a ReLU without the corner, always positive.

    Formula:
        phi(x) = ln(1 + exp(beta x)) / beta; phi'(x) = sigmoid(beta x).

    What it does to gradients:
        Its large positive mean feeds the forward signal but not the gradient, so chi < 1 for every finite
        fixed point: it has no critical initialisation at all (one would need a negative bias variance).

    When to use it:
        On an output that must be positive (a variance, a rate).

    When not:
        Between hidden layers of a deep net, unless behind a norm that removes the mean.

    Source:
        Dugas et al. 2001; Glorot, Bordes, Bengio 2011.
    """
    return np.asarray(np.logaddexp(0.0, beta * np.asarray(x)) / beta)


def slope(x: Floats, *, beta: float = 1.0) -> Floats:
    """phi'(x)."""
    return np.asarray(expit(beta * np.asarray(x)))
