"""Statistics of units and slopes from small samples; many sites are done in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

AT_ONCE = 131_072
"""Elements that are measured in one table, about: what stays in the processor's cache."""


def unit_statistics(samples: Sequence[Array]) -> list[tuple[float | None, float | None, float | None]]:
    """(mean, zero, spread) of each sample with the axes (batch B, positions P, units U), None for an empty one.

    `zero`: share of elements that are exactly 0.
    `spread`: variance between the samples of the batch over the mean square; nan for a batch of one and for zeros.
    """
    answers: list[Any] = [(None, None, None)] * len(samples)
    for members in _alike(samples, [(len(x), x.dtype) for x in samples]):
        with np.errstate(all="ignore"):  # what is not finite is counted elsewhere
            rows = _statistics([samples[i].reshape(len(samples[i]), -1) for i in members])
        for i, row in zip(members, rows, strict=True):
            answers[i] = row
    return answers


def _alike(arrays: Sequence[Array], kinds: Sequence[Any]) -> list[list[int]]:
    """The indices of the arrays of one kind, not too many together; empty ones are left out."""
    groups: dict[Any, list[list[int]]] = {}
    room: dict[Any, int] = {}
    for i, (array, kind) in enumerate(zip(arrays, kinds, strict=True)):
        if not array.size:
            continue
        if room.get(kind, 0) <= 0:
            groups.setdefault(kind, []).append([])
            room[kind] = AT_ONCE
        groups[kind][-1].append(i)
        room[kind] -= array.size
    return [part for parts in groups.values() for part in parts]


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several rows begins when they are put one behind the other."""
    return [0, *accumulate(lengths[:-1])]


def _statistics(sites: list[Array]) -> list[tuple[float, float, float]]:
    # sites: (B, E) each; side by side they make one table (B, 3, E) that one matrix product sums over B.
    batch, widths = len(sites[0]), [x.shape[1] for x in sites]
    table = np.empty((batch, 3, sum(widths)), sites[0].dtype)
    apart, nonzero, square = table[:, 0], table[:, 1], table[:, 2]
    np.concatenate(sites, axis=1, out=apart)
    np.not_equal(apart, 0, out=nonzero)
    # Differences from the first sample keep the digits that subtracting mean squares would lose.
    first = apart[0].astype(np.float64)
    np.subtract(apart, apart[0].copy(), out=apart)
    np.multiply(apart, apart, out=square)
    change, alive, spread = (np.ones(batch, table.dtype) @ table.reshape(batch, -1)).astype(np.float64).reshape(3, -1)
    total = change + batch * first
    rows = np.concatenate([total, alive, spread - change * change / batch, spread + first * (change + total)])
    total, alive, between, square = np.add.reduceat(rows.reshape(4, -1), _starts(widths), axis=1).tolist()
    return [
        (t / (batch * n), 1 - a / (batch * n), max(b, 0.0) / s if s and batch > 1 else math.nan)
        for t, a, b, s, n in zip(total, alive, between, square, widths, strict=True)
    ]


def slope_statistics(ratio: Array, ceiling: float) -> tuple[float, float]:
    """Mean square slope and share of saturated elements, from a sample of gradient sent on over gradient arrived.

    Elements that got no gradient are 0/0 and do not count. Saturated: |slope| below 1/20 of `ceiling`, the largest that
    the activation has. (nan, nan) where no element got a gradient.
    """
    slope = np.abs(ratio)
    square = float(np.vdot(slope, slope))
    if not math.isfinite(square):
        slope = slope[np.isfinite(slope)].astype(np.float64)
        square = float(np.vdot(slope, slope))
    if not slope.size:
        return math.nan, math.nan
    return square / slope.size, int(np.count_nonzero(slope < ceiling / 20)) / slope.size


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
    if not columns:
        return []
    lengths = [len(column) for column in columns]
    table = np.full((len(columns), max(lengths)), math.nan)  # nan is close to nothing and comes last
    for row, column in zip(table, columns, strict=True):
        row[: len(column)] = column
    table.sort(axis=1)
    with np.errstate(all="ignore"):  # what is not finite is counted elsewhere
        size = np.fmax.reduce(np.abs(table), axis=1)
        close = np.add.reduce(table[:, 1:] - table[:, :-1] <= CLOSE * size[:, None], axis=1, dtype=np.intp)
    return [2 * found >= FEWEST_TWINS * length for found, length in zip(close.tolist(), lengths, strict=True)]


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
