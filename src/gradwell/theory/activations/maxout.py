"""The largest of several linear pieces."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from gradwell.errors import UsageError
from gradwell.theory.quadrature import Floats

KINKS: tuple[float, ...] = ()
TORCH: tuple[str, ...] = ()
AUTOGRAD: tuple[str, ...] = ()
MAX_SLOPE = 1.0
SATURATES = False
CAN_DIE = False
CODE = "x.unflatten(-1, (-1, 2)).amax(-1)"


def density(z: Floats, *, pieces: int = 2) -> Floats:
    """Density of the largest of k normals against one normal: k Phi(z)^(k-1)."""
    return np.asarray(pieces * ndtr(z) ** (pieces - 1))


def _check(x: Floats, pieces: int) -> None:
    found = np.shape(x)[-1:] or (1,)
    if found != (pieces,):
        raise UsageError(
            f"maxout takes the {pieces} pieces of a unit on the last axis, and found {found[0]} there; "
            "reshape the pre-activations to (..., units, pieces)."
        )


def maxout(x: Floats, *, pieces: int = 2) -> Floats:
    """Takes the largest of k pre-activations that have their own weights.

    Formula:
        phi(x_1 .. x_k) = max_j x_j over the last axis; its slope is 1 for the largest piece and 0 for the
        others.

    What it does to gradients:
        No saturation: at every input exactly one piece carries the gradient with slope 1. For k independent
        pieces of variance q, V = q E[max_j z_j^2] (= q for k = 2) and, summed over the pieces, D = 1. So k
        = 2 is critical at sigma_w2 = 1, sigma_b2 = 0, sigma_w2 counted for each piece.

    When to use it:
        With dropout, where k times the parameters are affordable.

    When not:
        As a drop-in: it needs k linear maps for each unit.

    Source:
        Goodfellow et al. 2013; gains derived here.
    """
    _check(x, pieces)
    return np.asarray(np.max(x, axis=-1))


def slope(x: Floats, *, pieces: int = 2) -> Floats:
    """The slope to each piece, shape (..., k): 1 at the largest, 0 elsewhere."""
    _check(x, pieces)
    return np.asarray(np.arange(pieces) == np.argmax(x, axis=-1)[..., None], dtype=float)
