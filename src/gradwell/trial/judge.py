"""What a trial shows: paired differences of log10 loss, Student's t interval, a verdict. No torch.

A run is worth the log10 of its held loss after the last step. Nothing is dropped: a run that raised, ended in NaN or
ended above the loss it began with has learnt nothing, and counts as the loss that the baseline had before its first
step. That is too kind to it, so that an effect told against a diverging baseline is rather too small.

Arm and learning rate are chosen on other seeds than they are judged on. Of twelve arms that do nothing, one looks
better than the baseline in 20 % of all trials when the seeds that chose it judge it too, in 3 % on fresh ones (5
seeds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from scipy import stats

from gradwell.records.treatment import OutcomeVerdict

CONFIDENCE = 0.95
FLOOR = 1e-6
"""A loss below this share of the first one counts as this share: behind it the float's last digits speak."""
TENFOLD = 10.0
"""A run that ends this many times above where it began is infeasible."""
RESOLUTION = 0.01
"""Decades: an effect below 2 % of the loss is no effect, however certain."""
MARGIN = 0.1
"""Decades: an effect that matters is a loss lower by a fifth (20 %), with confidence."""
HALVED = math.log10(2)
"""Decades: with the loss at least halved, with confidence, the training has got going whatever the symptoms say."""


class Ending(msgspec.Struct, frozen=True):
    """How one run ended: its held loss before the first and after the last step (None: it did not get there)."""

    start: float | None
    loss: float | None

    @property
    def infeasible(self) -> bool:
        """True for a run that raised, is not finite, or ended far above where it began."""
        if not _is_finite(self.loss):
            return True
        return _is_finite(self.start) and self.loss > TENFOLD * self.start  # type: ignore[operator]


class Comparison(msgspec.Struct, frozen=True):
    """An arm against its baseline over the same seeds: mean difference of log10 loss and its t interval."""

    effect: float | None
    interval: tuple[float, float] | None
    infeasible_frac: float
    baseline_infeasible_frac: float


def compare(arm: Sequence[Ending], baseline: Sequence[Ending]) -> Comparison:
    """Paired by seed: the runs stand in the same order; negative is a lower loss for the arm.

    >>> sick, cured = [Ending(2.3, 2.3)] * 3, [Ending(2.3, 0.20), Ending(2.3, 0.23), Ending(2.3, 0.26)]
    >>> found = compare(cured, sick)
    >>> round(found.effect, 2), [round(edge, 2) for edge in found.interval]
    (-1.0, [-1.14, -0.86])
    """
    starts = first_losses(baseline, arm)
    pairs = zip(arm, baseline, starts, strict=True)
    differences = [worth(a, start) - worth(b, start) for a, b, start in pairs]
    effect, interval = t_interval(differences)
    return Comparison(effect, interval, _share(arm), _share(baseline))


def worth(run: Ending, start: float) -> float:
    """log10 of the loss that a run counts for: never above `start`, never below a millionth of it."""
    loss = start if run.infeasible else run.loss
    assert loss is not None
    return math.log10(min(max(loss, FLOOR * start), start))


def first_losses(baseline: Sequence[Ending], *others: Sequence[Ending]) -> list[float]:
    """The baseline's loss before the first step, seed by seed; where that overflows, the largest loss seen anywhere."""
    every = [run for runs in (baseline, *others) for run in runs]
    finite = [x for run in every for x in (run.start, run.loss) if x is not None and _is_finite(x)]
    largest = max(finite, default=1.0)
    return [run.start if run.start is not None and _is_finite(run.start) else largest for run in baseline]


def t_interval(differences: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean and Student's t interval; no interval for fewer than two numbers.

    mean -+ t_{n-1}(97.5 %) s / sqrt(n)
    """
    n = len(differences)
    if n == 0:
        return None, None
    mean = math.fsum(differences) / n
    if n == 1:
        return mean, None
    s = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * s / math.sqrt(n)
    return mean, (mean - half, mean + half)


def verdict(found: Comparison, *, gone: bool, control: Comparison | None = None) -> OutcomeVerdict:
    """The word for a comparison on fresh seeds; `gone`: the symptom that was treated is no longer there.

    cures: the interval lies below -0.1 decades (a fifth less loss) and the symptom is gone, or below -0.3 (half the
    loss). helps: the interval lies below 0. harms: it lies above 0, or half of the arm's runs are infeasible and fewer
    of the baseline's. no effect: it holds 0 and rules out half the loss, or the effect is below 0.01 decades.
    undecided: it holds 0 and is too wide for that. An effect within the interval of a control that excludes 0 is
    undecided.
    """
    if found.infeasible_frac >= 0.5 and found.infeasible_frac > found.baseline_infeasible_frac:
        return "harms"
    if found.effect is None or found.interval is None:
        return "undecided"
    low, high = found.interval
    if low <= 0 <= high:
        return "no effect" if low > -HALVED else "undecided"
    if abs(found.effect) < RESOLUTION:
        return "no effect"
    return "harms" if low > 0 else _better(found.effect, high, gone=gone, control=control)


def _better(effect: float, high: float, *, gone: bool, control: Comparison | None) -> OutcomeVerdict:
    """The word for an interval below 0."""
    low, top = (control.interval if control is not None else None) or (0.0, 0.0)
    if not low <= 0 <= top and low <= effect <= top:
        return "undecided"
    return "cures" if (high < -MARGIN and gone) or high < -HALVED else "helps"


def _share(runs: Sequence[Ending]) -> float:
    return sum(run.infeasible for run in runs) / len(runs) if runs else 0.0


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
