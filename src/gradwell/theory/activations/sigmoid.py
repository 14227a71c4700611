"""The logistic function."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("Sigmoid", "sigmoid", "sigmoid_")
AUTOGRAD: tuple[str, ...] = ("SigmoidBackward0",)
MAX_SLOPE = 0.25
SATURATES = True
CAN_DIE = False
CODE = "nn.Sigmoid()"


def sigmoid(x: Floats) -> Floats:
    """Squeezes every value into (0, 1); the classic cause of vanishing gradients.

    Formula:
        phi(x) = 1 / (1 + exp(-x)); phi'(x) = phi(x) (1 - phi(x)), at most 1/4.

    What it does to gradients:
        The slope is at most 1/4, so D <= 1/16: with Xavier chi = 0.056, a factor 4 in norm lost at each
        layer, and 50 layers lose 31 decades. Its mean of 1/2 keeps the next layer off centre. The cure is
        the init `centred_sigmoid`: b_i = -1/2 sum_j W_ij and Var W = 16 / fan_in.

    When to use it:
        On an output that is a probability (better: inside the loss, on logits) and in gates.

    When not:
        Between hidden layers; layer norm does not cure it, batch norm does (it removes the mean).

    Source:
        Glorot and Bengio 2010; Hochreiter 1991 for the vanishing.
    """
    return np.asarray(expit(x))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    value = expit(x)
    return np.asarray(value * expit(-np.asarray(x)))
