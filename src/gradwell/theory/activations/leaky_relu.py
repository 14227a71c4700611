"""ReLU with a small slope on the negative half."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("LeakyReLU", "leaky_relu", "leaky_relu_")
AUTOGRAD: tuple[str, ...] = ("LeakyReluBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "nn.LeakyReLU(0.01)"


def leaky_relu(x: Floats, *, negative_slope: float = 0.01) -> Floats:
    """ReLU that leaks: negative values keep a small slope, so no unit can die.

    Formula:
        phi(x) = x for x > 0, else negative_slope * x; phi'(x) = 1 or negative_slope.

    What it does to gradients:
        D = (1 + a^2) / 2 for every q, a the slope: critical at sigma_w2 = 2 / (1 + a^2). With a = 0.01
        hardly different from ReLU in gain; with 0.2 the mean of the outputs is smaller, and batch norm
        explodes less.

    When to use it:
        In place of ReLU when units die; in discriminators with slope 0.2.

    When not:
        When sparsity of the activations is wanted.

    Source:
        Maas, Hannun, Ng 2013; He et al. 2015 for its gain.
    """
    return np.where(np.asarray(x) > 0, x, negative_slope * np.asarray(x))


def slope(x: Floats, *, negative_slope: float = 0.01) -> Floats:
    """phi'(x)."""
    return np.where(np.asarray(x) > 0, 1.0, negative_slope)
