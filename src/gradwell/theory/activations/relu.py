"""The rectified linear unit."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0,)
TORCH: tuple[str, ...] = ("ReLU", "relu", "relu_")
AUTOGRAD: tuple[str, ...] = ("ReluBackward0",)
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = True
CODE = "nn.ReLU()"


def relu(x: Floats) -> Floats:
    """Keeps the positive half and sets the negative half to zero.

    Formula:
        phi(x) = max(x, 0); phi'(x) = 1 for x > 0, else 0.

    What it does to gradients:
        Half of the squared gradient at each layer is lost whatever the scale: D = 1/2 for every q, so He's
        sigma_w2 = 2 is exactly critical. At finite width the log of the gain is noisy, variance about 5/n a
        layer. A unit whose pre-activation is negative on all data gets no gradient for ever (a dead unit).

    When to use it:
        The default for feed-forward nets with He initialisation, or behind a norm.

    When not:
        With PyTorch's default or Xavier initialisation beyond about 10 layers without a norm; with large
        learning rates (dead units); in recurrent nets without care.

    Source:
        Nair and Hinton 2010; He et al. 2015.
    """
    return np.maximum(x, 0.0)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.where(np.asarray(x) > 0, 1.0, 0.0)
