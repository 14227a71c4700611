"""In how many directions the rows of a matrix differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def participation_ratio(rows: npt.NDArray[Any]) -> float | None:
    """(sum of eigenvalues)^2 / sum of their squares, of the covariance between the rows (samples, units).

    Between 1 and min(samples - 1, units): k where the rows scatter alike in k directions; 0 where all rows are the
    same. None for fewer than two rows and for what is not finite.

    >>> participation_ratio(np.eye(2))
    1.0
    """
    if len(rows) < 2 or not np.isfinite(rows).all():
        return None
    apart = rows.astype(np.float64)
    apart = apart - apart.mean(0)
    largest = np.abs(apart).max(initial=0.0)
    if largest == 0:
        return 0.0
    apart /= largest
    gram = apart @ apart.T if len(apart) <= apart.shape[1] else apart.T @ apart
    # tr(G)^2 / tr(G^2): no eigenvalues are needed.
    return float(np.trace(gram) ** 2 / np.square(gram).sum())
