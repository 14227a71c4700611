"""What a loss curve says: its noise, its level by quarters, its setbacks, its spikes and how far it rose.

All functions take the losses of successive steps, shape (S,), finite. A positive factor changes no answer but by that
factor, and nothing is divided by a single loss, which may be negative or near zero. Batches make losses noisy, and the
noise is seldom normal or constant: medians and neighbours tell, not means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLOCKS = 60
"""Blocks into which a curve is cut to look for setbacks."""
SMALLEST_BLOCK = 5
SURE = 4.0
"""Standard errors that count as beyond the noise: about 60 blocks are compared with each other."""
PAST = 20
"""Losses before a spike that say what is usual."""
QUIET = 3.0
"""Standard deviations that no change among the hundred losses before may have, for a curve without heavy tails."""
JUMPS = 200
"""Largest jumps of a curve that are looked at as spikes."""

_SIGMA = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""
_MEDIAN = 1.2533
"""Standard error of a median over that of a mean, sqrt(pi / 2)."""


def start(losses: Sequence[float]) -> float:
    """The level that the curve began at: of five losses, or of the first two where it rises within them."""
    first = np.asarray(losses[:5], float)
    return float(min(np.median(first), first[:2].max()))


def noise(losses: Sequence[float] | Array, *, tails: bool = False) -> float:
    """Standard deviation of the independent part, from the differences of neighbours; 0 for fewer than two.

    By their median, so that a few outliers and jumps do not count; with `tails` at least by their mean: they do count.
    """
    change = np.abs(np.diff(np.asarray(losses, float)))
    if not change.size:
        return 0.0
    middle = _SIGMA * float(np.median(change))
    return max(middle, _MEDIAN * float(np.mean(change)) if tails else 0.0) / math.sqrt(2)


class Quarters(NamedTuple):
    """Medians of the four quarters of a curve and the standard error of the last two."""

    medians: tuple[float, float, float, float]
    error: float

    @property
    def early(self) -> float:
        """What was gained from the first quarter to the second."""
        return self.medians[0] - self.medians[1]

    @property
    def late(self) -> float:
        """What was gained from the third quarter to the fourth."""
        return self.medians[2] - self.medians[3]

    @property
    def steady(self) -> bool:
        """True where the loss falls beyond the noise, and in the end at least two fifths as fast as at the start."""
        fallen = self.medians[0] - self.medians[3] > 4 * self.error
        return fallen and self.late > max(0.4 * self.early, self.error)

    @property
    def flat(self) -> bool:
        """True where the last two quarters are surely within 2 % of each other."""
        return abs(self.late) + 2 * self.error < 0.02 * abs(self.medians[3])


def quarters(losses: Sequence[float]) -> Quarters:
    """The course of a curve of at least eight losses in four numbers."""
    x = np.asarray(losses, float)
    parts = np.array_split(x, 4)
    medians = tuple(float(np.median(part)) for part in parts)
    error = _MEDIAN * math.hypot(*(noise(part, tails=True) / math.sqrt(len(part)) for part in parts[2:]))
    return Quarters((medians[0], medians[1], medians[2], medians[3]), error)


class Setback(NamedTuple):
    """A rise beyond the noise: from the middle of its lowest to the middle of its highest block."""

    begin: int
    end: int
    low: float
    high: float


def setbacks(losses: Sequence[float]) -> list[Setback]:
    """Where the curve went up beyond the noise, in order.

    The curve is cut into blocks of equal length (at least five losses). A rise counts when the medians of two blocks
    differ by more than `SURE` standard errors, with the noise of the blocks around them; it ends at the highest block
    before an equally sure fall.
    """
    x = np.asarray(losses, float)
    size = max(SMALLEST_BLOCK, -(-len(x) // BLOCKS))
    count = len(x) // size
    if count < 3:
        return []
    cut = x[len(x) - count * size :]
    offset = len(x) - count * size + size // 2
    level = np.median(cut.reshape(count, size), axis=1)
    around = [noise(cut[max(i - 1, 0) * size : (i + 2) * size], tails=True) for i in range(count)]
    error = [_MEDIAN * value / math.sqrt(size) for value in around]

    def sure(i: int, j: int) -> bool:
        return bool(level[j] - level[i] > SURE * math.hypot(error[i], error[j]))

    found: list[tuple[int, int]] = []
    low = high = 0
    rising = False
    for i in range(1, count):
        if rising:
            high = i if level[i] > level[high] else high
            if sure(i, high):
                found.append((low, high))
                rising, low = False, i
        else:
            low = i if level[i] <= level[low] else low
            if sure(low, i):
                rising, high = True, i
    found += [(low, high)] if rising else []
    return [
        Setback(offset + a * size, offset + b * size, float(level[a]), float(level[b])) for a, b in found
    ]  # fmt: skip


def swing(losses: Sequence[float]) -> tuple[int, float]:
    """Number of setbacks, and their sum over what the curve has gained at its best.

    Steps that jump over the valley undo again and again what was gained; batch noise alone, however large, does not.
    The gain is taken as at least a quarter of the size of the loss at the start.
    """
    rises = setbacks(losses)
    if not rises:
        return 0, 0.0
    best = min(rise.low for rise in rises)
    gain = max(start(losses) - best, 0.25 * abs(start(losses)))
    return len(rises), sum(rise.high - rise.low for rise in rises) / gain if gain > 0 else math.inf


class Spike(NamedTuple):
    """A loss far above those before it.

    `at`: where it stands out first; `usual`: median before; `top`: highest loss; `distance`: of the top from the
    usual in standard deviations; `length`: losses until they are usual again, None where they never are.
    """

    at: int
    usual: float
    top: float
    distance: float
    length: int | None


def spikes(losses: Sequence[float], *, distance: float, beyond: float) -> list[Spike]:
    """Where the loss stands out from the `PAST` losses before, in order.

    It must be `distance` standard deviations above their median and undo half of what had been gained since the start
    (at least half of the loss's own size). Small batches give losses with heavy tails: it must also be `beyond` times
    as far away as any loss before, those at the start included, or as any of the last hundred where these were quiet.
    """
    x = np.asarray(losses, float)
    first = start(losses)
    jumps = np.argsort(np.diff(x, prepend=x[:1]))[::-1][:JUMPS]
    found: list[Spike] = []
    for i in sorted(int(j) for j in jumps if j >= PAST // 2):
        if found and (found[-1].length is None or i < found[-1].at + (found[-1].length or 0)):
            continue
        before = x[max(i - PAST, 0) : i]
        usual = float(np.median(before))
        spread = max(_SIGMA * float(np.median(np.abs(before - usual))), noise(before))
        excess = x[i] - usual
        past = x[max(i - 5 * PAST, 0) : i] if _quiet(x[:i]) else x[:i]
        far = max(distance * spread, beyond * (1 + PAST / i) * float(past.max() - usual))  # few have not seen much
        if excess > max(far, 0.5 * (first - usual), 0.5 * abs(usual)):
            back = np.flatnonzero(x[i:] < usual + max(3 * spread, 0.1 * excess))
            length = int(back[0]) if back.size else None
            top = float(x[i : i + length if length is not None else None].max())
            found.append(Spike(i, usual, top, (top - usual) / spread if spread else math.inf, length))
    return found


def _quiet(before: Array) -> bool:
    """True where the last hundred losses, fifty at least, have no heavy tails."""
    last = before[-5 * PAST :]
    return len(last) >= 50 and float(np.abs(np.diff(last)).max()) <= QUIET * math.sqrt(2) * noise(last)


def rise(losses: Sequence[float]) -> tuple[float, int]:
    """How many times its first size the loss has at the end, and where it went above that for good.

    The end is the median of the last five losses (the smaller of two, where there are less than ten). Where losses are
    not all positive, the size is the largest distance from the start among the first ten. 0 where one of the last is
    not above the start.
    """
    x = np.asarray(losses, float)
    begin = start(losses)
    last = x[-5:] if len(x) >= 10 else x[-2:]
    end = float(np.median(last)) if len(x) >= 10 else float(last.min())
    size = begin if x.min() > 0 else max(abs(begin), float(np.abs(x[:10] - begin).max()))
    if size <= 0 or last.min() <= begin:
        return 0.0, len(x)
    below = np.flatnonzero(x <= begin)
    return (end if x.min() > 0 else end - begin) / size, int(below[-1]) + 1 if below.size else 0
