"""Gradient signal to noise: how much of a batch's gradient is common to its samples."""

from __future__ import annotations

from collections.abc import Sequence


def signal_to_noise(squares: Sequence[float], mean_square: float, samples: float) -> float | None:
    """|E g|^2 / Var g of the gradient of one sample, from the gradients of K parts of a batch.

    `squares`: |g_k|^2 of each part; `mean_square`: |mean of g_k|^2; `samples` in each part. Part gradients scatter
    around the true one with S^2 = Var g / samples, so that |mean|^2 is too large by S^2 / K, which is taken off; 0
    where nothing is left. Does not depend on the batch size or on the loss's scale. None for fewer than two parts and
    where all parts are 0; inf where they are all alike.

    Reference: Liu et al. 2020 (Understanding why neural networks generalize well through GSNR of parameters), here
    for a whole tensor: sums over its elements above and below.

    >>> signal_to_noise([9.0, 1.0], 4.0, 1)  # 3 and 1: variance 2, mean^2 4 - 2/2
    1.5
    """
    parts = len(squares)
    if parts < 2 or not any(squares):
        return None
    scatter = max(sum(squares) - parts * mean_square, 0.0) / (parts - 1)
    signal = max(mean_square - scatter / parts, 0.0)
    if scatter == 0:
        return float("inf")
    return signal / (scatter * samples)
