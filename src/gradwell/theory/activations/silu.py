"""The sigmoid-weighted linear unit, also called Swish."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("SiLU", "silu")
AUTOGRAD: tuple[str, ...] = ("SiluBackward0",)
MAX_SLOPE = 1.0998393201288669
SATURATES = False
CAN_DIE = False
CODE = "nn.SiLU()"


def silu(x: Floats) -> Floats:
    """x times its own sigmoid: a smooth ReLU, also known as Swish.

    Formula:
        phi(x) = x sigmoid(x); phi'(x) = sigmoid(x) (1 + x (1 - sigmoid(x))).

    What it does to gradients:
        Small signals see a slope of 1/2, so D -> 1/4 as q -> 0: with sigma_b = 0 no initialisation is
        critical, and He loses about 7 decades of gradient norm in 50 layers. It needs a bias variance; see
        the init `critical`.

    When to use it:
        Convolutional nets with batch norm and gated feed-forward blocks (SwiGLU).

    When not:
        Deep plain stacks with zero biases.

    Source:
        Elfwing, Uchibe, Doya 2017; Ramachandran, Zoph, Le 2017.
    """
    return np.asarray(x * expit(x))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    gate = expit(x)
    return np.asarray(gate * (1 + x * (1 - gate)))
