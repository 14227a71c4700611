"""What shortcuts do to the gradient: products 1 + a^2 chi instead of chi.

All gains are squared-norm ratios of the gradient, |d_l|^2 / |d_L|^2, at infinite width.

Axis letters: L blocks.
"""

from __future__ import annotations

import math

import numpy as np

from gradwell.errors import UsageError
from gradwell.theory.meanfield import moments
from gradwell.theory.nonlinearity import Activation, resolve
from gradwell.theory.quadrature import Floats


def _check_depth(depth: int) -> None:
    if depth < 0:
        raise UsageError(f"depth is a number of blocks and was given as {depth}; give 0 or more.")


def plain_gain2(depth: int, *, chi_branch: float = 1.0, scale: float = 1.0) -> float:
    """Squared gain through L blocks x' = x + scale * F(x), F with gain chi: (1 + scale^2 chi)^L.

    With scale 1 and a critical branch it is 2^L; with scale 1/sqrt(L) it stays below e. Infinite where it
    overflows.

    >>> plain_gain2(10)
    1024.0
    """
    _check_depth(depth)
    exponent = depth * math.log1p(scale**2 * chi_branch)
    return math.exp(exponent) if exponent < 709 else math.inf


def prenorm_gain2(depth: int, *, branch_variance: float = 1.0, start: float = 1.0) -> Floats:
    """|d_l|^2 / |d_L|^2 at l = 0 .. L for x' = x + F(norm(x)), F homogeneous with output variance s^2.

    The stream grows as p_l = p_0 + s^2 l and the gradient falls as p_L / p_l from the bottom up: linear in
    L, not exponential. Shape (L + 1,); at finite width real nets lie somewhat above (32 blocks: 42, not 33).

    >>> float(prenorm_gain2(8)[0])
    9.0
    """
    _check_depth(depth)
    # p_l = p_0 + s^2 l
    stream = start + branch_variance * np.arange(depth + 1)
    return np.asarray(stream[-1] / stream)


def reduced_log_gain2(
    activation: Activation,
    depth: int,
    sigma_w2: float = 1.0,
    sigma_b2: float = 0.0,
    *,
    scale: float = 1.0,
    start: float = 1.0,
) -> Floats:
    """ln of the squared gain of each block of a reduced resnet x' = x + scale * phi(W x + b), first block first.

    q_l = sigma_w2 p_{l-1} + sigma_b2, p_l = p_{l-1} + scale^2 V(q_l), gain 1 + scale^2 sigma_w2 D(q_l). Shape (L,).
    For tanh the sum grows like (8 / (3 sqrt(2 pi))) sigma_w sqrt(L) only; for ReLU like L. The cross terms of
    shortcut and branch are left out: exact for odd phi, approximate where E phi is not 0.
    Source: Yang and Schoenholz 2017; the coefficient is derived here.
    """
    _check_depth(depth)
    unit, stream, gains = resolve(activation), start, np.empty(depth)
    for block in range(depth):
        found = moments(unit, sigma_w2 * stream + sigma_b2)
        gains[block] = math.log1p(scale**2 * sigma_w2 * float(found.squared_slope[0]))
        stream += scale**2 * float(found.second[0])
    return gains
