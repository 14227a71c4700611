"""Statistics of units and slopes from small samples; equal shapes are done in one stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def unit_statistics(samples: Sequence[Array]) -> list[tuple[float | None, float | None, float | None]]:
    """(mean, zero, spread) of each sample with the axes (batch B, positions P, units U), None for an empty one.

    `zero`: share of elements that are exactly 0.
    `spread`: variance between the samples of the batch over the mean square; nan for a batch of one and for zeros.
    """
    answers: list[Any] = [(None, None, None)] * len(samples)
    for members in _alike(samples):
        for start in range(0, len(members), 512):
            part = members[start : start + 512]
            stacked = np.concatenate([samples[i][None] for i in part])
            with np.errstate(all="ignore"):  # what is not finite is counted elsewhere
                rows = _statistics(stacked)
            for i, row in zip(part, rows, strict=True):
                answers[i] = tuple(row)
    return answers


def _alike(samples: Sequence[Array]) -> list[list[int]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, values in enumerate(samples):
        if values.size:
            groups.setdefault((values.shape, values.dtype), []).append(i)
    return list(groups.values())


def _statistics(x: Array) -> list[list[float]]:
    # x: (S, B, P, U). Sums are matrix products: numpy's own are five times slower.
    flat = x.reshape(len(x), -1)
    ones = np.ones(flat.shape[1], x.dtype)
    columns = [flat @ ones / flat.shape[1], 1 - (flat != 0).astype(x.dtype) @ ones / flat.shape[1]]
    if x.shape[1] > 1:
        # Differences from the first sample keep the digits that subtracting mean squares would lose.
        apart = x - x[:, :1]
        all_apart = apart.reshape(len(x), -1)
        between = np.einsum("se,se->s", all_apart, all_apart) / x.shape[1]
        centre = np.full(x.shape[1], 1 / x.shape[1], x.dtype) @ apart.reshape(len(x), x.shape[1], -1)
        between -= np.einsum("se,se->s", centre, centre)
        square = np.einsum("se,se->s", flat, flat) / x.shape[1]
        columns.append(np.maximum(between, 0) / square)
    else:
        columns.append(np.full(len(x), math.nan))
    rows: list[list[float]] = np.stack(columns, 1).tolist()
    return rows


def slope_statistics(ratios: Sequence[Array], ceilings: Sequence[float]) -> list[tuple[float, float]]:
    """Mean square slope and share of saturated elements, from samples of gradient sent on over gradient arrived.

    Elements that got no gradient are 0/0 and do not count. Saturated: |slope| below 1/20 of the largest that the
    activation has. (nan, nan) where no element got a gradient.
    """
    answers = [(math.nan, math.nan)] * len(ratios)
    for members in _alike(ratios):
        slope = np.abs(np.stack([ratios[i] for i in members]), dtype=np.float64)
        bound = np.array([[ceilings[i] / 20] for i in members])
        known = np.isfinite(slope)
        if known.all():
            count = np.full(len(members), slope.shape[1])
        else:
            count = np.count_nonzero(known, axis=1)
            slope[~known] = 0
        low = np.count_nonzero(slope < bound, axis=1) - (slope.shape[1] - count)
        square = np.einsum("se,se->s", slope, slope)
        for i, n, s, f in zip(members, count.tolist(), square.tolist(), low.tolist(), strict=True):
            answers[i] = (s / n, f / n) if n else (math.nan, math.nan)
    return answers


def fork_shares(parts: Sequence[Array]) -> list[float] | None:
    """Share of each branch, <d_k, d> / |d|^2 with d = sum_k d_k; None where d is zero or not finite."""
    stacked = np.stack(parts).astype(np.float64)
    with np.errstate(all="ignore"):
        largest = np.abs(stacked).max()
        if not (largest > 0 and math.isfinite(largest)):
            return None
        stacked /= largest
        total = stacked.sum(0)
        square = float(total @ total)
    if not square > 0:
        return None
    shares: list[float] = (stacked @ total / square).tolist()
    return shares


CLOSE = 1e-4
"""Difference, relative to the RMS, up to which two rows are twins: matrix products round equal columns unequally."""
FEWEST_TWINS = 0.25
"""Below this share of rows with an equal first element no row is looked at in full."""


def may_have_twins(columns: Sequence[Array]) -> list[bool]:
    """For the first column of each weight: False where fewer than a quarter of its rows can share it with another."""
    answers = [False] * len(columns)
    for members in _alike(columns):
        first = np.sort([columns[i] for i in members], axis=1)
        size = np.maximum(np.abs(first[:, 0]), np.abs(first[:, -1]))
        with np.errstate(all="ignore"):  # what is not finite is counted elsewhere
            close = np.count_nonzero(first[:, 1:] - first[:, :-1] <= CLOSE * size[:, None], axis=1)
        for i, found in zip(members, close.tolist(), strict=True):
            answers[i] = 2 * found >= FEWEST_TWINS * first.shape[1]
    return answers


def twin_fraction(weight: Array, grad: Array) -> float:
    """Share of the rows (units M, inputs N) that have a twin: another row with the same weights and gradients.

    Twins stay twins under every optimizer, so that the layer has as many different units as it has different rows.
    Rows of zeros with a gradient of zeros are idle and no twins where other rows learn: experts that a router whose
    weights start at zero has not chosen.
    Ask `may_have_twins` first: it is a hundred times faster. nan for what is not finite.
    """
    with np.errstate(all="ignore"):  # what is not finite is counted elsewhere
        both = np.concatenate([_unit_size(weight), _unit_size(grad)], 1)
        # A fixed direction brings twins next to each other.
        order = np.argsort(both @ np.random.default_rng(0).standard_normal(both.shape[1]))
        apart = np.abs(np.diff(both[order], axis=0)).max(1)
    if not np.isfinite(apart).all():
        return math.nan
    idle = ~both[order].any(1)
    return float(np.mean(_either(apart <= CLOSE) & (idle.all() | ~idle)))


def _unit_size(x: Array) -> Array:
    """The matrix over its RMS; zeros stay."""
    wide = x.astype(np.float64)
    largest = np.abs(wide).max()
    scaled: Array = wide / largest if largest > 0 else wide
    size = math.sqrt(float(np.mean(scaled * scaled)))
    answer: Array = scaled / size if size > 0 else scaled
    return answer


def _either(equal: Array) -> Array:
    """From "equal to the next" to "equal to a neighbour"."""
    answer: Array = np.append(equal, False) | np.append(False, equal)
    return answer
