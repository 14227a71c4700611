"""ReLU with a ceiling at 6."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (0.0, 6.0)
TORCH: tuple[str, ...] = ("ReLU6", "relu6")
AUTOGRAD: tuple[str, ...] = ("HardtanhBackward0",)
MAX_SLOPE = 1.0
SATURATES = True
CAN_DIE = True
CODE = "nn.ReLU6()"


def relu6(x: Floats) -> Floats:
    """ReLU cut at 6, so that 8-bit arithmetic can hold its values.

    Formula:
        phi(x) = min(max(x, 0), 6); phi'(x) = 1 for 0 < x < 6, else 0.

    What it does to gradients:
        As ReLU while q is far below 36 (He is critical up to a slow drift to smaller q), and it saturates
        above: large inputs lose their gradient.

    When to use it:
        Mobile networks that are quantised.

    When not:
        Without a norm, where pre-activations may grow past 6.

    Source:
        Howard et al. 2017 (MobileNets); Sandler et al. 2018.
    """
    return np.clip(x, 0.0, 6.0)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    x = np.asarray(x)
    return np.where((x > 0) & (x < 6), 1.0, 0.0)
