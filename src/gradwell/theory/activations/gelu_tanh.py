"""GELU in its tanh approximation."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from gradwell.theory.quadrature import Floats

ROOT = np.sqrt(2 / np.pi)
CUBIC = 0.044715

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ()
AUTOGRAD: tuple[str, ...] = ()
MAX_SLOPE = 1.1289930686587718
SATURATES = False
CAN_DIE = False
CODE = "nn.GELU(approximate='tanh')"


def _inner(x: Floats) -> Floats:
    return np.asarray(ROOT * (x + CUBIC * np.power(x, 3)))


def gelu_tanh(x: Floats) -> Floats:
    """The tanh approximation of GELU, as GPT-2 and many others compute it.

    Formula:
        phi(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3).

    What it does to gradients:
        As GELU: the two differ by less than 0.001 everywhere, and their critical points in the fourth
        digit.

    When to use it:
        To load weights of nets that were trained with it.

    When not:
        As GELU: deep plain stacks with zero biases.

    Source:
        Hendrycks and Gimpel 2016. In torch it is nn.GELU with approximate='tanh', so its torch names are
        those of `gelu`.
    """
    # (1 + tanh u)/2 = sigmoid(2u): the second form keeps its digits for large negative x
    return np.asarray(x * expit(2 * _inner(x)))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    twice = 2 * _inner(x)
    gate = expit(twice)
    # phi' = sigmoid(2u) + x sigmoid(2u) sigmoid(-2u) 2 u'
    inner_slope = 2 * ROOT * (1 + 3 * CUBIC * np.square(x))
    return np.asarray(gate + x * gate * expit(-twice) * inner_slope)
