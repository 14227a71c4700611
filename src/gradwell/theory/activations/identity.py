"""No activation: the linear network."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("Identity",)
AUTOGRAD: tuple[str, ...] = ()
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.Identity()"


def identity(x: Floats) -> Floats:
    """Passes every value through unchanged: a deep linear network.

    Formula:
        phi(x) = x; phi'(x) = 1.

    What it does to gradients:
        Nothing. The gain of a layer is that of its weights alone: chi = sigma_w2, so 1/3 under PyTorch's
        default and 1 under LeCun and square Xavier.

    When to use it:
        As the last layer before the loss, and as the control of an experiment: what remains of a problem
        without activations is a problem of the weights.

    When not:
        Between hidden layers: without a nonlinearity the stack is one matrix.

    Source:
        Saxe, McClelland, Ganguli 2014 (deep linear networks).
    """
    return np.asarray(x, dtype=float)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.ones_like(x, dtype=float)
