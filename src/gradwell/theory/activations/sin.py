"""The sine."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("sin",)
AUTOGRAD: tuple[str, ...] = ("SinBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "torch.sin(x)"

WAVELENGTH = 2 * np.pi
"""Period in x: the quadrature needs a panel for each. Beyond q of about 5e4 its averages are approximate."""


def sin(x: Floats) -> Floats:
    """The sine, whose slope never dies out however large the input.

    Formula:
        phi(x) = sin(x); phi'(x) = cos(x).

    What it does to gradients:
        Critical at sigma_w2 = 1 with q* -> 0; for large q the slope averages to D = 1/2, so there is no
        saturation, but the output turns into noise of the input.

    When to use it:
        Coordinate networks (SIREN), with their own first-layer frequency and U(-sqrt(6/n), sqrt(6/n))
        weights.

    When not:
        With unscaled inputs: a large q makes neighbouring inputs uncorrelated.

    Source:
        Sitzmann et al. 2020. Closed forms: V = (1 - exp(-2q)) / 2, D = (1 + exp(-2q)) / 2.
    """
    return np.sin(x)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.cos(x)
