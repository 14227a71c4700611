"""What normalisation layers do to the gradient: growth per layer, and the gain of one Jacobian.

Rates are factors on the squared norm of the gradient for one block Linear - norm - activation at
initialisation, in the limit of infinite width, with sigma_b2 = 0 unless said otherwise.

Axis letters: B batch, N features.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gradwell.errors import UsageError
from gradwell.theory.meanfield import moments
from gradwell.theory.nonlinearity import Activation, Nonlinearity, resolve
from gradwell.theory.quadrature import Floats, panel_nodes, x_borders

LARGE_BATCH = 100_000
"""From here on a batch counts as infinite; the rate differs by less than 1e-4."""


def batchnorm_rate(activation: Activation, batch: int | None = None) -> float:
    """Growth of the squared gradient norm per Linear - BatchNorm - activation block; never below 1.

    `batch` B is the number of values that one channel is normalised over (batch times positions); None means
    infinite. Exact at infinite width for inputs in general position, once the first blocks are passed. Without
    shortcuts BatchNorm always explodes: by the Gaussian Poincare inequality E phi'^2 >= Var phi, with equality
    only for a linear phi.

    Errors: UsageError for B below 4 (at B = 3 the variance of the gradient is infinite).
    Source: Yang et al. 2019; the average over the sphere is derived here.

    >>> round(batchnorm_rate("relu"), 6)
    1.466942
    >>> round(batchnorm_rate("relu", 32), 6)
    1.521953
    """
    unit = resolve(activation)
    if batch is None or batch >= LARGE_BATCH:
        found = moments(unit, 1.0)
        # lambda = E[phi'(z)^2] / Var[phi(z)]
        return float(found.squared_slope[0] / found.variance[0])
    if batch < 4:
        raise UsageError(
            f"A batch-norm rate needs at least 4 values in a channel and was asked for {batch}; "
            "below that the gradient has no finite variance."
        )
    return _finite_batch_rate(unit, batch)


def _finite_batch_rate(unit: Nonlinearity, B: int) -> float:
    """lambda = B T / ((B - 1)(B - 3) S) with averages over x uniform on the sphere of normalised batches.

    x has mean 0 and square norm B over the batch. S = E phi_i^2 - E phi_i phi_j is the eigenvalue of the
    output's covariance, 1 / ((B - 3) S) the mean of 1 / variance of the next batch, and
    T = E tr(P F M F P), F = diag phi'(x), P = 1 - 11'/B, M = P - x x'/B (the Jacobian of BN, a projection).
    """
    x1, x2, w1, w12 = _sphere_pairs(unit, B)
    phi, slope, square = unit.phi(x1), unit.slope(x1), np.square(unit.slope(x1))
    S = float(w1 @ np.square(phi)) - float(np.sum(w12 * phi[:, None] * unit.phi(x2)))
    # M_ii = 1 - 1/B - x_i^2/B,  M_ij = -(1 + x_i x_j)/B
    diagonal = float(w1 @ (square * (1 - 1 / B - np.square(x1) / B)))
    across = float(np.sum(w12 * slope[:, None] * unit.slope(x2) * -(1 + x1[:, None] * x2) / B))
    # tr(P F M F P) = sum_i F_i^2 M_ii - (1/B) sum_ij F_i M_ij F_j
    T = B * diagonal - (diagonal + (B - 1) * across)
    return B * T / ((B - 1) * (B - 3) * S)


def _sphere_pairs(unit: Nonlinearity, B: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Two coordinates of a normalised batch: x1 (K,), x2 (K, J) and the weights of x1 and of both.

    A coordinate of the unit sphere in n = B - 1 dimensions is sin(a) with density cos(a)^(n - 2); two
    samples' axes have the inner product r = -1 / (B - 1) in it.
    """
    if unit.density is not None:
        raise UsageError(
            f"The batch-norm rate of {unit.id!r} is known for an infinite batch only; leave out the batch."
        )
    n, root, r = B - 1, math.sqrt(B - 1), -1 / (B - 1)
    kinks = x_borders(unit.kinks, 8)
    first, w1 = _arc(np.zeros(1), np.full(1, root), np.concatenate([kinks, _edges(kinks, n, r)]), n - 2)
    x1 = root * np.sin(first[0])
    spread = math.sqrt(1 - r * r) * root * np.cos(first[0])
    second, w2 = _arc(r * x1, spread, kinks, n - 3)
    return x1, r * x1[:, None] + spread[:, None] * np.sin(second), w1[0], w1[0][:, None] * w2


def _edges(kinks: Floats, n: int, r: float) -> Floats:
    # In small batches the second coordinate stops reaching a kink k at x1 = k r +- sqrt((1 - r^2)(n - k^2)), where
    # the inner average goes like a square root: borders are graded towards it.
    k = kinks[np.abs(kinks) < math.sqrt(n)] if n <= 8 else kinks[:0]
    at = np.concatenate([k * r + sign * np.sqrt((1 - r * r) * (n - k**2)) for sign in (-1, 1)])
    return np.concatenate([at + sign * 4.0**-step for sign in (-1, 0, 1) for step in range(1, 8)])


def _arc(mean: Floats, radius: Floats, kinks: Floats, power: int) -> tuple[Floats, Floats]:
    """Nodes in the angle a, with weights cos(a)^power scaled to sum 1; borders where mean + radius sin(a) is a kink."""
    cut = min(math.pi / 2, 12 / math.sqrt(power + 1))
    plain = np.broadcast_to(np.linspace(-cut, cut, 9), (mean.size, 9))
    at_kinks = np.arcsin(np.clip((kinks - mean[:, None]) / np.maximum(radius, 1e-300)[:, None], -1, 1))
    borders = np.sort(np.concatenate([plain, np.clip(at_kinks, -cut, cut)], axis=1), axis=1)
    angle, weights = panel_nodes(borders, 12)
    weights = weights * np.cos(angle) ** power
    return angle, weights / weights.sum(axis=1, keepdims=True)


def layernorm_rate(
    activation: Activation, *, sigma_w2: float = 1.0, sigma_b2: float = 0.0, after: bool = False
) -> float:
    """Growth of the squared gradient norm per block with LayerNorm.

    `after=False`: Linear - LayerNorm - activation, chi = sigma_w2 D(1) / (sigma_w2 V(1) + sigma_b2), which for
    sigma_b2 = 0 does not depend on the weights: ReLU exactly 1, sigmoid 0.15 (LayerNorm does not cure it).
    `after=True`: Linear - activation - LayerNorm, where the mean of the outputs is removed.

    >>> round(layernorm_rate("tanh"), 6)
    1.177807
    """
    _check_weights(sigma_w2)
    if after:
        # chi = sigma_w^2 D(q) / Var phi, q = sigma_w^2 + sigma_b^2
        found = moments(activation, sigma_w2 + sigma_b2)
        return float(sigma_w2 * found.squared_slope[0] / found.variance[0])
    found = moments(activation, 1.0)
    return float(sigma_w2 * found.squared_slope[0] / (sigma_w2 * found.second[0] + sigma_b2))


def rmsnorm_rate(activation: Activation, *, sigma_w2: float = 1.0, sigma_b2: float = 0.0, after: bool = False) -> float:
    """Growth of the squared gradient norm per block with RMSNorm: as LayerNorm, but the mean stays.

    >>> round(rmsnorm_rate("relu"), 6)
    1.0
    """
    if not after:
        return layernorm_rate(activation, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    _check_weights(sigma_w2)
    found = moments(activation, sigma_w2 + sigma_b2)
    return float(sigma_w2 * found.squared_slope[0] / found.second[0])


def _check_weights(sigma_w2: float) -> None:
    if not sigma_w2 > 0:
        raise UsageError(f"A norm divides by the spread of its input, so sigma_w2 = {sigma_w2} must be above zero.")


def layernorm_gain2(features: int, std: npt.ArrayLike = 1.0, mean_squared_weight: npt.ArrayLike = 1.0) -> Floats:
    """Isotropic squared gain |J|_F^2 / N of LayerNorm: (N - 2)/N * mean(g^2) / std^2.

    Exact for equal weights g; for unequal ones an average over directions of the input. `std` is that of
    the input over its N features; N >= 2. The Jacobian is (1/std) diag(g) (1 - 11'/N - x x'/N).

    >>> float(layernorm_gain2(4))
    0.5
    """
    return _gain2(features, 2, std, mean_squared_weight)


def batchnorm_gain2(count: int, std: npt.ArrayLike = 1.0, mean_squared_weight: npt.ArrayLike = 1.0) -> Floats:
    """Isotropic squared gain of BatchNorm in training mode for one channel: (B - 2)/B * g^2 / std^2.

    `count` is the number of values the channel is normalised over, batch times positions.

    >>> float(batchnorm_gain2(8, std=2.0))
    0.1875
    """
    return _gain2(count, 2, std, mean_squared_weight)


def rmsnorm_gain2(features: int, rms: npt.ArrayLike = 1.0, mean_squared_weight: npt.ArrayLike = 1.0) -> Floats:
    """Isotropic squared gain of RMSNorm: (N - 1)/N * mean(g^2) / rms^2.

    >>> float(rmsnorm_gain2(4))
    0.75
    """
    return _gain2(features, 1, rms, mean_squared_weight)


def _gain2(count: int, lost: int, scale: npt.ArrayLike, mean_squared_weight: npt.ArrayLike) -> Floats:
    if count < lost:
        raise UsageError(f"A norm over {count} value has no gradient to speak of; it needs {lost} or more.")
    # |J|_F^2 / n = (n - lost)/n * g^2 / s^2: a norm takes out the mean (not RMSNorm) and the direction of x
    return np.asarray((count - lost) / count * np.asarray(mean_squared_weight) / np.square(np.asarray(scale)))
