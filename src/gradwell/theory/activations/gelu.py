"""The Gaussian error linear unit."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("GELU", "gelu")
AUTOGRAD: tuple[str, ...] = ("GeluBackward0",)
MAX_SLOPE = 1.1289041451851548
SATURATES = False
CAN_DIE = False
CODE = "nn.GELU()"


def gelu(x: Floats) -> Floats:
    """x times the probability that a standard normal is below x: a smooth ReLU.

    Formula:
        phi(x) = x Phi(x), Phi the normal distribution function; phi'(x) = Phi(x) + x exp(-x^2 / 2) / sqrt(2
        pi).

    What it does to gradients:
        Small signals see a slope of 1/2, so D -> 1/4 as q -> 0: with sigma_b = 0 no initialisation is
        critical. `He for GELU` loses about 6 decades of gradient norm in 50 layers. It needs a bias
        variance; see the init `critical`.

    When to use it:
        Transformers: behind a norm its missing fixed point does not matter.

    When not:
        Deep plain stacks with zero biases; torch's `calculate_gain` refuses it for that reason.

    Source:
        Hendrycks and Gimpel 2016; critical point: Roberts, Yaida, Hanin 2022 (PDLT), section 5.3.4.
    """
    return np.asarray(x * ndtr(x))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    # phi' = Phi(x) + x N(x)
    return np.asarray(ndtr(x) + x * np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))
