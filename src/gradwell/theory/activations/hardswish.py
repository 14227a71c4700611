"""SiLU made of straight lines and a parabola."""

from __future__ import annotations

import numpy as np

from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = (-3.0, 3.0)
TORCH: tuple[str, ...] = ("Hardswish", "hardswish")
AUTOGRAD: tuple[str, ...] = ("HardswishBackward0",)
MAX_SLOPE = 1.5
SATURATES = False
CAN_DIE = True
CODE = "nn.Hardswish()"


def hardswish(x: Floats) -> Floats:
    """SiLU with the sigmoid replaced by straight lines, for cheap hardware.

    Formula:
        phi(x) = x min(max(x + 3, 0), 6) / 6; phi'(x) = 0 below -3, (2x + 3) / 6 between, 1 above 3.

    What it does to gradients:
        As SiLU: slope 1/2 for small signals and no critical initialisation with sigma_b = 0. Below -3 the
        output and the slope are exactly zero.

    When to use it:
        Mobile networks with batch norm.

    When not:
        Deep plain stacks with zero biases.

    Source:
        Howard et al. 2019 (MobileNetV3).
    """
    return np.asarray(x * np.clip(np.asarray(x) + 3.0, 0.0, 6.0) / 6.0)


def slope(x: Floats) -> Floats:
    """phi'(x)."""
    x = np.asarray(x)
    return np.where(x <= -3, 0.0, np.where(x < 3, x / 3 + 0.5, 1.0))
