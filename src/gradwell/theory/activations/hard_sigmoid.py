"""The sigmoid made of straight lines."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (-3.0, 3.0)
TORCH: tuple[str, ...] = ("Hardsigmoid", "hardsigmoid")
AUTOGRAD: tuple[str, ...] = ("HardsigmoidBackward0",)
MAX_SLOPE = 1 / 6
SATURATES = True
CAN_DIE = True
CODE = "nn.Hardsigmoid()"


def hard_sigmoid(x: Floats) -> Floats:
    """The logistic function replaced by a ramp from -3 to 3.

    Formula:
        phi(x) = min(max(x / 6 + 1/2, 0), 1); phi'(x) = 1/6 for |x| < 3, else 0.

    What it does to gradients:
        Worse than the sigmoid: the slope is at most 1/6, so D <= 1/36, and it is exactly zero outside (-3,
        3), where a unit can stay for good.

    When to use it:
        In gates on cheap hardware.

    When not:
        Between hidden layers.

    Source:
        Howard et al. 2019 (MobileNetV3), which uses it in its gates.
    """
    return np.clip(np.asarray(x) / 6.0 + 0.5, 0.0, 1.0)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    return np.where(np.abs(x) < 3, 1 / 6, 0.0)
