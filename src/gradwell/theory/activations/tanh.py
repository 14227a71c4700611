"""The hyperbolic tangent."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("Tanh", "tanh", "tanh_")
AUTOGRAD: tuple[str, ...] = ("TanhBackward0",)
MAX_SLOPE = 1.0
SATURATES = True
CAN_DIE = False
CODE = "nn.Tanh()"


def tanh(x: Floats) -> Floats:
    """Squeezes every value into (-1, 1), odd, with slope 1 at zero.

    Formula:
        phi(x) = (exp(x) - exp(-x)) / (exp(x) + exp(-x)); phi'(x) = 1 - phi(x)^2.

    What it does to gradients:
        The slope is 1 at zero and falls on both sides. At sigma_w2 = 1 it is critical: q decays like
        1/(2l), and 50 layers lose less than one decade. PyTorch's default (sigma_w2 = 1/3) loses 12 decades
        in 50 layers; torch's gain of 5/3 is chaotic.

    When to use it:
        Recurrent cells, and plain deep nets with Xavier or the init `critical` with a small bias variance.

    When not:
        With PyTorch's default initialisation beyond about 10 layers; where inputs are large (saturation).

    Source:
        Glorot and Bengio 2010; Schoenholz et al. 2017.
    """
    return np.tanh(x)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    value = np.tanh(x)
    return np.asarray((1 - value) * (1 + value))
