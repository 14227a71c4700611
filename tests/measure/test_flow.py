"""The ledger adds up on any chain, also where the gradient dies on the way, and the profile's windows are honest."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwell.measure import profile
from gradwell.measure.flow import ledger
from gradwell.records.run import Header, Run, Site, Step

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

ROLES = ("weight", "activation", "norm", "other")
leaves = st.lists(
    st.tuples(st.sampled_from(ROLES), st.floats(-2, 2), st.floats(-2, 2), st.floats(-0.5, 0.5)), min_size=1, max_size=12
)


def chain(parts, *, output_size: float = 1.0, dead_from: int | None = None) -> tuple[list[Site], Step]:
    """A chain: a source, then leaves (role, gain, isotropic gain, gain of the function behind it), the last the output.

    `dead_from`: the gradient is exactly zero below that leaf.
    """
    sites = [Site("first", "Linear", order=0, role="weight")]
    sites += [Site(f"leaf.{n}", "Thing", order=n, role=role) for n, (role, *_) in enumerate(parts, start=1)]
    sites.append(Site("head", "Linear", order=len(sites), role="weight"))
    gains: list[float | None] = [None, *(gain for _, gain, _, _ in parts), -0.2]
    isotropic: list[float | None] = [None, *(guess for _, _, guess, _ in parts), -0.3]
    deltas = [output_size]
    for n in range(len(sites) - 2, -1, -1):
        gap = parts[n - 1][3] if n else 0.0
        alive = dead_from is None or n >= dead_from
        deltas.insert(0, deltas[0] * 10 ** (gains[n + 1] + gap) if alive else 0.0)
        if not alive:
            gains[n + 1] = -math.inf if deltas[1] else math.nan
    total = math.log10(deltas[0] / deltas[-1]) if deltas[0] else -math.inf
    columns = {"leaf_gain": gains, "isotropic": isotropic, "flow": [1.0] * len(sites), "delta_norm": deltas}
    return sites, Step(0, total=total, source=0, output=len(sites) - 1, sites=columns)


def parts_of(book) -> float:
    causes = ("activation_slope", "weight_gain", "normalization_gain", "between_modules", "other_layers", "unexplained")
    return math.fsum(book.share(cause) for cause in causes)


@given(leaves)
def test_the_causes_add_up_on_a_chain(parts):
    sites, step = chain(parts)
    book = ledger(sites, step)
    assert parts_of(book) == pytest.approx(book.total, abs=1e-9)
    assert book.total == step.total
    gaps = math.fsum(gap for *_, gap in parts)
    assert book.between_modules == pytest.approx(gaps, abs=1e-9)
    guessed = {"activation_slope": "activation", "weight_gain": "weight", "normalization_gain": "norm"}
    for cause, role in guessed.items():
        expected = math.fsum(guess for kind, _, guess, _ in parts if kind == role)
        expected += -0.3 if role == "weight" else 0.0
        assert book.share(cause) == pytest.approx(expected, abs=1e-9)


@given(leaves, st.floats(-30, 30))
def test_the_size_of_the_loss_is_no_matter(parts, scale):
    one, other = chain(parts), chain(parts, output_size=10.0**scale)
    first, second = ledger(*one), ledger(*other)
    assert second.total == pytest.approx(first.total, abs=1e-6)
    for i in range(len(one[0])):
        assert profile.log10_gain(other[1], i) == pytest.approx(profile.log10_gain(one[1], i), abs=1e-6)


@given(leaves, st.data())
def test_where_the_gradient_dies_the_ledger_is_that_of_the_layers_before(parts, data):
    dead_from = data.draw(st.integers(1, len(parts) + 1))
    sites, step = chain(parts, dead_from=dead_from)
    book = ledger(sites, step)
    assert book.reaches_zero == dead_from - 1
    assert parts_of(book) == pytest.approx(book.total, abs=1e-9)
    assert book.total == pytest.approx(profile.log10_gain(step, dead_from), abs=1e-9)
    assert {i for i, _ in book.by_site} <= set(range(dead_from + 1, len(sites)))


def test_no_path_no_ledger():
    sites, step = chain([("weight", -1.0, -1.0, 0.0)])
    assert ledger(sites, msgspec.structs.replace(step, total=None)) is None
    assert ledger(sites, msgspec.structs.replace(step, total=math.nan)) is None
    assert ledger(sites, msgspec.structs.replace(step, source=None)) is None


def run_of(values) -> Run:
    return Run(Header("gradwell"), [Step(10 * n, loss=value) for n, value in enumerate(values)])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_few_steps_are_one_window(values):
    course = profile.course(run_of(values), lambda step: step.loss)
    assert course.start == course.end
    assert not course.parted
    assert course.start in values


@given(st.lists(st.floats(-5, 5) | st.just(math.inf), min_size=6, max_size=40))
def test_many_steps_have_a_start_and_an_end(values):
    course = profile.course(run_of(values), lambda step: step.loss)
    assert course.start in values[:5]
    assert course.end in values[-(len(values) // 3) :]
    assert course.last_step.loss == course.end
    assert course.first_step.step < 50


def test_two_ways_are_judged_apart():
    steps = [Step(n, source=n % 2, output=5) for n in range(40)] + [Step(40, source=3, output=5), Step(41)]
    ways = profile.by_way(Run(Header("gradwell"), steps))
    assert [len(way.steps) for way in ways] == [20, 20]
    assert [len(way.steps) for way in profile.by_way(Run(Header("gradwell"), [Step(0, source=0, output=1)]))] == [1]
    assert profile.by_way(Run(Header("gradwell"), [Step(0, source=1, output=1)])) == []


def test_nothing_measured_has_no_course():
    assert profile.course(run_of([math.nan]), lambda step: step.loss) is None
    assert profile.course(Run(Header("gradwell")), lambda step: step.loss) is None


def test_pooling_counts_above_a_site_only_and_recurrent_layers_do_not():
    sites, step = chain([("other", -0.9, 0.0, 0.0), ("activation", -0.2, -0.2, 0.0)])
    assert profile.pooled(sites, step)[0] == pytest.approx(-0.9)
    assert profile.pooled(sites, step)[1] == 0
    recurrent = [msgspec.structs.replace(s, kind="LSTM") if s.role == "other" else s for s in sites]
    assert profile.pooled(recurrent, step)[0] == 0


def test_the_trunk_leaves_branches_out():
    sites, step = chain([("weight", -0.5, -0.5, 0.0), ("activation", -0.2, -0.2, 0.0)])
    flow = [1.0, 0.1, 0.9, 1.0]
    forked = msgspec.structs.replace(step, sites={**step.sites, "flow": flow})
    assert profile.trunk(sites, forked) == [0, 2, 3]
    assert profile.chain(sites, step) == [0, 1, 3]
    assert profile.chain(sites, forked) in ([0], [3])
    assert profile.layers(sites, step, 0) == 2


def test_one_mean_written_as_a_function_is_pooling_but_a_chain_of_factors_is_not():
    sites, step = chain([("activation", -0.2, -0.2, -0.5 * math.log10(64))])
    assert profile.pooled(sites, step) == pytest.approx({0: -0.5 * math.log10(64), 1: -0.5 * math.log10(64), 2: 0.0})
    sites, step = chain(
        [("activation", -0.2, -0.2, -1.0), ("weight", 0.0, 0.0, -1.0), ("activation", -0.2, -0.2, -1.0)]
    )
    assert min(profile.pooled(sites, step).values()) == pytest.approx(-1.0)
    sites, step = chain([("activation", -0.2, -0.2, -0.37)])
    assert min(profile.pooled(sites, step).values()) == 0
