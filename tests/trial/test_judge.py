"""The judge: intervals against scipy's own, the control's coverage on synthetic runs, verdicts at their borders."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradwell.trial.judge import Comparison, Ending, compare, first_losses, t_interval, verdict, worth

losses = st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=8)


@given(losses)
def test_the_interval_is_scipys(differences):
    mean, interval = t_interval(differences)
    assert mean == pytest.approx(np.mean(differences))
    assert interval is not None
    if np.std(differences) < 1e-9 * abs(mean):
        return  # scipy warns about it
    twin = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert interval == pytest.approx((twin.low, twin.high))


def test_one_seed_gives_no_interval_and_none_gives_nothing():
    assert t_interval([0.3]) == (0.3, None)
    assert t_interval([]) == (None, None)


@given(st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=2, max_size=6), st.floats(1e-3, 1e3))
def test_the_effect_does_not_see_the_unit_of_the_loss(pairs, unit):
    arm = [Ending(20.0, a) for a, _ in pairs]
    base = [Ending(20.0, b) for _, b in pairs]
    scaled = compare(
        [Ending(20.0 * unit, a * unit) for a, _ in pairs], [Ending(20.0 * unit, b * unit) for _, b in pairs]
    )
    assert scaled.effect == pytest.approx(compare(arm, base).effect, abs=1e-9)


@given(st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=2, max_size=6))
def test_swapping_the_arms_turns_the_sign(pairs):
    a, b = [Ending(20.0, x) for x, _ in pairs], [Ending(20.0, y) for _, y in pairs]
    there, back = compare(a, b), compare(b, a)
    assert there.effect == pytest.approx(-back.effect)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))


# What a run that went wrong counts for.


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, 1e9, 2.31])
def test_a_run_that_raised_or_diverged_counts_as_one_that_learnt_nothing(loss):
    assert worth(Ending(2.3, loss), 2.3) == pytest.approx(math.log10(2.3))


def test_infeasible_runs_are_counted_and_not_dropped():
    base = [Ending(2.3, 2.0)] * 4
    arm = [Ending(2.3, 0.2), Ending(2.3, 0.2), Ending(2.3, math.nan), Ending(2.3, None)]
    found = compare(arm, base)
    assert found.infeasible_frac == 0.5
    assert found.effect == pytest.approx((2 * math.log10(0.1) + 2 * math.log10(2.3 / 2.0)) / 4)


def test_a_start_that_overflows_counts_as_the_largest_loss_seen():
    base, arm = [Ending(math.inf, math.nan), Ending(5.0, 4.0)], [Ending(math.inf, 3.0), Ending(5.0, 70.0)]
    assert first_losses(base, arm) == [70.0, 5.0]
    assert first_losses([Ending(None, None)]) == [1.0]
    assert compare(arm[:1], base[:1]).effect == pytest.approx(0.0)  # nothing finite on the other side, nothing told


def test_a_loss_of_exactly_zero_is_no_infinite_effect():
    assert compare([Ending(1.0, 0.0)] * 2, [Ending(1.0, 1.0)] * 2).effect == pytest.approx(-6)


# The words.


def found(low, high, *, infeasible=0.0, baseline=0.0):
    return Comparison((low + high) / 2, (low, high), infeasible, baseline)


@pytest.mark.parametrize(
    ("comparison", "gone", "word"),
    [
        (found(-2.0, -0.31), False, "cures"),
        (found(-2.0, -0.29), False, "helps"),
        (found(-0.4, -0.11), True, "cures"),
        (found(-0.4, -0.09), True, "helps"),
        (found(-0.25, 0.1), True, "no effect"),
        (found(-2.0, 0.1), True, "undecided"),
        (found(0.02, 0.5), True, "harms"),
        (found(-0.008, -0.001), True, "no effect"),
        (found(0.001, 0.008), True, "no effect"),
        (found(-2.0, -0.5, infeasible=0.6), True, "harms"),
        (found(-2.0, -0.5, infeasible=0.6, baseline=1.0), True, "cures"),
        (Comparison(-1.0, None, 0.0, 0.0), True, "undecided"),
    ],
)
def test_verdicts_at_their_borders(comparison, gone, word):
    assert verdict(comparison, gone=gone) == word


def test_an_effect_that_the_control_shows_too_is_not_believed():
    off = found(-0.6, -0.1)
    assert verdict(found(-0.5, -0.2), gone=True, control=off) == "undecided"
    assert verdict(found(-2.5, -1.5), gone=True, control=off) == "cures"
    assert verdict(found(-0.5, -0.2), gone=True, control=found(-0.3, 0.2)) == "cures"


# Calibration: the baseline against itself.


def normal(draw):
    return 10 ** draw.gauss(-0.5, 0.3)


def bistable(draw):
    """Most runs get stuck at chance, some learn."""
    return 0.05 * 10 ** draw.gauss(0, 0.1) if draw.random() < 0.3 else 2.3


def with_divergence(draw):
    return math.nan if draw.random() < 0.2 else 10 ** draw.gauss(-1.0, 0.2)


@pytest.mark.parametrize("law", [normal, bistable, with_divergence])
@pytest.mark.parametrize("seeds", [5, 8])
def test_the_controls_interval_holds_0_in_90_of_100_trials(law, seeds):
    draw = random.Random(1)

    def run():
        return [Ending(2.3, law(draw)) for _ in range(seeds)]

    found = [compare(run(), run()).interval for _ in range(100)]
    assert sum(low <= 0 <= high for low, high in found) >= 90


def test_the_best_of_twelve_null_arms_on_its_own_seeds_is_why_fresh_ones_are_drawn():
    draw = random.Random(2)

    def run():
        return [Ending(2.3, normal(draw)) for _ in range(5)]

    def best_excludes_0(*, fresh):
        base, arms = run(), [run() for _ in range(12)]
        chosen = min(arms, key=lambda arm: compare(arm, base).interval[1])
        judged = compare(run(), run()) if fresh else compare(chosen, base)
        return judged.interval[1] < 0

    assert sum(best_excludes_0(fresh=False) for _ in range(200)) > 30
    assert sum(best_excludes_0(fresh=True) for _ in range(200)) <= 15
