"""The error function."""

from __future__ import annotations

import numpy as np
from scipy.special import erf as _erf

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("erf",)
AUTOGRAD: tuple[str, ...] = ("ErfBackward0",)
MAX_SLOPE = 1.1283791670955126
SATURATES = True
CAN_DIE = False
CODE = "torch.erf(x)"


def erf(x: Floats) -> Floats:
    """The error function: a tanh whose averages have closed forms.

    Formula:
        phi(x) = erf(x); phi'(x) = 2 exp(-x^2) / sqrt(pi).

    What it does to gradients:
        The slope at zero is 1.128, so the critical point with q* -> 0 is sigma_w2 = pi/4. In closed form V
        = (2/pi) asin(2q / (1 + 2q)) and D = (4/pi) / sqrt(1 + 4q).

    When to use it:
        In theory, and to test programs against closed forms.

    When not:
        Where tanh will do: it is the same picture and better supported.

    Source:
        Williams 1997 (Gaussian integrals of erf networks).
    """
    return np.asarray(_erf(x))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.asarray(2 / np.sqrt(np.pi) * np.exp(-np.square(x)))
