"""x tanh(softplus(x))."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ("Mish", "mish")
AUTOGRAD: tuple[str, ...] = ("MishBackward0",)
MAX_SLOPE = 1.0884981612517279
SATURATES = False
CAN_DIE = False
CODE = "nn.Mish()"


def mish(x: Floats) -> Floats:
    """A smooth ReLU gated by the tanh of a softplus.

    Formula:
        phi(x) = x tanh(ln(1 + exp(x))).

    What it does to gradients:
        Small signals see a slope of 3/5, so D -> 0.36 as q -> 0: with sigma_b = 0 no initialisation is
        critical, and He loses about 2 decades in 50 layers. See the init `critical` for its bias variance.

    When to use it:
        Detection networks with batch norm that were designed around it.

    When not:
        Deep plain stacks with zero biases; where speed matters.

    Source:
        Misra 2019.
    """
    return np.asarray(x * np.tanh(np.logaddexp(0.0, x)))


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    tanh = np.tanh(np.logaddexp(0.0, x))
    # phi' = tanh(s) + x (1 - tanh^2 s) sigmoid(x), s = softplus(x)
    return np.asarray(tanh + x * (1 - tanh) * (1 + tanh) * expit(x))
