"""Loss curves made by hand: what is in them is found, what is not is not, at any scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwell.measure.curves import noise, quarters, rise, setbacks, spikes, start, swing

SEEDS = st.integers(0, 10_000)
SPIKE = {"distance": 8.0, "beyond": 3.0}


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def falling(length: int, pace: float = 4.0) -> np.ndarray:
    """From 2.3 to near 0, as a healthy classifier."""
    return 2.3 * np.exp(-pace * np.arange(length) / length)


def noisy(curve: np.ndarray, seed: int, part: float) -> np.ndarray:
    """Noise in proportion to the loss, with the heavy tail that batches have."""
    return curve * np.exp(part * random(seed).standard_normal(len(curve)) - part**2 / 2)


HEALTHY = {
    "falling": lambda seed, n: noisy(falling(n), seed, 0.1),
    "noisy": lambda seed, n: noisy(falling(n), seed, 0.7),
    "very noisy": lambda seed, n: noisy(falling(n), seed, 0.8),
    "done": lambda seed, n: noisy(np.full(n, 0.05), seed, 0.3),
    "just begun": lambda seed, n: noisy(falling(10 * n)[:n], seed, 0.05),
    "negative": lambda seed, n: falling(n) - 3 + 0.2 * random(seed).standard_normal(n),
    "around zero": lambda seed, n: random(seed).standard_normal(n),
    "no noise": lambda seed, n: falling(n),
    "constant": lambda seed, n: np.full(n, 0.7),
    "zero": lambda seed, n: np.zeros(n),
    "steps": lambda seed, n: noisy(2.3 * 0.3 ** (4 * np.arange(n) // n), seed, 0.1),
    "by epochs": lambda seed, n: noisy(falling(n) * (1 + 0.3 * np.sin(np.arange(n))), seed, 0.1),
    "rare errors": lambda seed, n: falling(n, 99) + random(seed).exponential(1, n) * (random(seed).random(n) < 0.1),
}  # fmt: skip
"""Curves by (seed, length) in which nothing is wrong."""


def alarms(x: np.ndarray) -> dict[str, bool]:
    """The answers that a symptom would act on."""
    number, lost = swing(x)
    return {
        "swing": number > 1 and lost > 0.3,
        "spikes": bool(spikes(x, **SPIKE)),
        "rise": rise(x)[0] > 3,
    }


# ------------------------------------------------------------------ healthy


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("length", [12, 60, 400])
def test_healthy_curves_raise_no_alarm(kind, length):
    found = [name for seed in range(25) for name, alarm in alarms(HEALTHY[kind](seed, length)).items() if alarm]
    assert len(found) <= 1, found  # of 75 answers


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from(sorted(HEALTHY)), st.floats(0.0, 0.5))
def test_more_noise_raises_no_alarm(seed, kind, part):
    x = HEALTHY[kind](seed, 200)
    if not any(alarms(x).values()):
        louder = x + part * random(seed + 7).standard_normal(200) * (x.max() - x.min() or 1.0)
        assert not alarms(louder)["swing"]
        assert not alarms(louder)["rise"]


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(sorted(HEALTHY)), st.sampled_from([1e-6, 0.3, 1e6]), st.booleans())
def test_a_constant_factor_changes_no_answer(seed, kind, factor, sick):
    x = HEALTHY[kind](seed, 150)
    if sick:
        x = x + 3 * np.abs(np.sin(np.arange(150) / 12))
        x[100] += 50
    scaled = factor * x
    plain, other = quarters(x), quarters(scaled)
    assert (plain.steady, plain.flat) == (other.steady, other.flat)
    assert [s[:2] for s in setbacks(x)] == [s[:2] for s in setbacks(scaled)]
    assert swing(scaled) == pytest.approx(swing(x), rel=1e-6)
    assert [(s.at, s.length) for s in spikes(x, **SPIKE)] == [(s.at, s.length) for s in spikes(scaled, **SPIKE)]
    assert rise(scaled) == pytest.approx(rise(x), rel=1e-6)


# ------------------------------------------------------------------ noise and level


@pytest.mark.parametrize("sd", [1e-9, 1.0, 1e9])
def test_noise_of_independent_losses_is_their_standard_deviation(sd):
    x = sd * random(0).standard_normal(4000)
    assert noise(x) == pytest.approx(sd, rel=0.08)
    assert noise(x + 100 * sd * np.linspace(0, 1, 4000)) == pytest.approx(sd, rel=0.08)  # a trend is no noise
    x[::50] += 1e6 * sd
    assert noise(x) == pytest.approx(sd, rel=0.15)  # nor are a few outliers


def test_the_error_of_a_quarter_is_that_of_its_median():
    ends = [quarters(random(seed).standard_normal(200)) for seed in range(300)]
    found = np.std([q.late for q in ends])
    assert np.mean([q.error for q in ends]) == pytest.approx(found, rel=0.15)


def test_start_is_robust_and_knows_a_start_that_rises():
    assert start([2.3, 2.2, 9.0, 2.1, 2.0]) == 2.2
    assert start([2.3, 30.0, 400.0, 1e4, 1e6]) == 30.0
    assert start([2.3]) == 2.3


# ------------------------------------------------------------------ slow, flat


@pytest.mark.parametrize("part", [0.0, 0.02])
def test_a_straight_fall_is_steady_and_one_that_levels_off_is_not(part):
    line = np.linspace(2.6, 2.0, 200)
    assert quarters(noisy(line, 0, part)).steady
    assert not quarters(noisy(falling(200), 0, part)).steady
    assert not quarters(noisy(np.full(200, 2.6), 0, part)).steady
    assert not quarters(line[::-1]).steady


def test_a_fall_within_the_noise_is_not_steady():
    found = [quarters(np.linspace(2.6, 2.59, 100) + 0.3 * random(seed).standard_normal(100)) for seed in range(100)]
    assert sum(q.steady for q in found) <= 2


def test_flat_is_only_what_surely_is():
    assert quarters(noisy(np.full(300, 2.3), 0, 0.02)).flat
    assert not quarters(noisy(np.full(300, 2.3), 0, 0.5)).flat  # perhaps, but it cannot be known
    assert not quarters(np.linspace(2.6, 2.3, 300)).flat
    assert quarters(np.full(20, -1.0)).flat


# ------------------------------------------------------------------ setbacks


@pytest.mark.parametrize("part", [0.02, 0.1, 0.3])
def test_waves_are_counted(part):
    wave = 1.5 + np.cos(6 * np.pi * np.arange(600) / 600)  # three valleys, and the way up from each
    rises = setbacks(noisy(wave, 1, part))
    assert len(rises) == 3
    for k, found in enumerate(rises):
        assert found.begin == pytest.approx(100 + 200 * k, abs=40)
        assert found.end == pytest.approx(200 + 200 * k, abs=40)
        assert found.high - found.low == pytest.approx(2, rel=0.35)
    number, lost = swing(noisy(wave, 1, part))
    assert (number, lost) == (3, pytest.approx(3, rel=0.35))


def test_restarts_cost_little_of_the_gain():
    curve = np.concatenate([[2.3] * 5, 0.3 + 0.2 * np.cos(np.pi * (np.arange(400) % 100) / 100)])
    number, lost = swing(noisy(curve, 0, 0.05))
    assert number == 3
    assert lost == pytest.approx(3 * 0.4 / 2.2, rel=0.2)


def test_too_few_losses_have_no_setbacks():
    assert setbacks([1.0, 2.0, 3.0]) == []


# ------------------------------------------------------------------ spikes


@pytest.mark.parametrize("kind", ["falling", "noisy", "done", "negative", "no noise", "constant"])
@pytest.mark.parametrize("length", [1, 3, 10])
def test_a_spike_is_found_where_it_is(kind, length):
    for seed in range(5):
        x = HEALTHY[kind](seed, 200)
        usual = float(np.median(x[130:150]))
        x[150 : 150 + length] += 100.0
        (spike,) = spikes(x, **SPIKE)
        assert spike.at == 150
        assert spike.usual == pytest.approx(usual)
        assert spike.top == pytest.approx(usual + 100, abs=8)
        assert spike.length == length


def test_a_spike_that_stays_is_not_back():
    x = noisy(falling(100), 0, 0.1)
    x[60:] += 30
    (spike,) = spikes(x, **SPIKE)
    assert (spike.at, spike.length) == (60, None)


def test_a_spike_is_named_at_once():
    x = noisy(falling(200), 0, 0.1)
    x[150] += 8
    assert [spike.at for spike in spikes(x[:151], **SPIKE)] == [150]


def test_far_losses_that_come_again_and_again_are_no_spikes():
    x = HEALTHY["rare errors"](3, 500)
    assert spikes(x, **SPIKE) == []
    x[300] = 100
    assert [spike.at for spike in spikes(x, **SPIKE)] == [300]


def test_a_bump_that_undoes_little_is_no_spike():
    x = noisy(falling(200), 0, 0.01)
    x[150] += 0.3  # thirty standard deviations, an eighth of the gain
    assert spikes(x, **SPIKE) == []


# ------------------------------------------------------------------ rise


def test_a_loss_that_left_its_start():
    x = noisy(falling(50), 0, 0.05)
    worse = np.concatenate([x[:20], np.geomspace(1, 500, 20)])
    times, onset = rise(worse)
    assert times == pytest.approx(500 / start(x), rel=0.6)
    assert 20 <= onset <= 25
    assert rise(x)[0] == 0


def test_divergence_from_the_first_step_is_seen_though_the_start_is_already_wrong():
    assert rise([2.3, 3.0, 50.0, 1e3, 1e5])[0] > 100


def test_ten_steps_are_enough_to_name_a_divergence():
    x = noisy(falling(100), 0, 0.05)
    onset = 60
    grown = np.concatenate([x[:onset], x[onset] * 4.0 ** np.arange(1, 11)])
    assert rise(grown)[0] > 3


def test_a_start_below_zero_is_measured_in_its_scatter():
    x = -3 + 0.1 * random(0).standard_normal(100)
    assert rise(x)[0] < 3
    assert rise(np.concatenate([x, x + 50]))[0] > 10
    assert not math.isnan(rise(np.zeros(20))[0])


def test_the_module_divides_by_no_loss():
    for x in (np.zeros(50), np.full(50, 1e-300), -np.ones(50)):
        assert swing(x) == (0, 0.0)
        assert spikes(x, **SPIKE) == []
        assert rise(x)[0] == 0
