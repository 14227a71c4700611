"""The course of a trial over trainings whose loss is a known function of arm, rate and steps."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from gradwell.records.verdict import Remedy
from gradwell.trial.arms import Arm
from gradwell.trial.schedule import Trial
from gradwell.trial.train import Job, Trained

FIRST, SECOND, THIRD = (Arm((Remedy(f"change_{k}"),)) for k in range(3))
ARMS = [FIRST, SECOND, THIRD]
PLATEAU = 0.169
STEPS = 2000

Law = Callable[[str, float, int], float]
"""Loss of an arm at a rate after so many steps."""


@dataclass
class Paper:
    """A runner that looks the loss up in a law, with some noise of the seed's, and keeps the jobs."""

    law: Law
    width: int = 2
    jobs: list[Job] = field(default_factory=list)

    def __call__(self, jobs, *, until):
        for place, job in enumerate(jobs):
            self.jobs.append(job)
            name = job.remedies[0].id if job.remedies else "baseline"
            noise = np.random.default_rng([job.seed, job.steps, int(1000 * job.lr_scale), len(name), ord(name[-1])])
            loss = self.law(name, job.lr_scale, job.steps) * 10 ** (0.01 * noise.standard_normal())
            yield place, Trained(1.5, loss, job.steps, step_time_s=1e-3, seconds=1e-3 * job.steps)

    def rates(self, steps):
        """The rates that each arm was run at for so many steps."""
        found = {}
        for job in self.jobs:
            if job.steps == steps:
                found.setdefault(job.remedies[0].id if job.remedies else "baseline", set()).add(job.lr_scale)
        return found


def conducted(law, **options):
    paper = Paper(law)
    trial = Trial(
        ARMS, paper, seeds=5, until=time.monotonic() + 3600, tick=lambda *_: None, lines={}, **{"judged": 3, **options}
    )
    return trial.conduct(Trained(1.5, 1.5, 20, step_time_s=1e-3), steps=STEPS), paper


def breaks_off(arm, *, at, rate=1.0):
    """A plateau that one arm leaves after so many steps at the usual rate, and only there or faster."""

    def law(name, lr_scale, steps):
        left = name == arm and lr_scale >= rate and steps * lr_scale > at
        return PLATEAU / 100 if left else PLATEAU

    return law


@pytest.mark.parametrize("at", [300, 1200, 1900])
@pytest.mark.parametrize("arm", range(3))
def test_an_arm_that_starts_late_is_judged_at_a_rate_at_which_it_starts(arm, at):
    shown, _ = conducted(breaks_off(f"change_{arm}", at=at))
    assert shown.rates[arm + 1] in {1.0, 3.0}
    ends = [run.loss for run in shown.judged[arm + 1]]
    assert max(ends) < PLATEAU / 10


def test_without_a_difference_the_usual_rate_and_the_order_of_the_arms_stay():
    shown, paper = conducted(lambda *_: PLATEAU, judged=1)
    assert set(shown.rates.values()) == {1.0}
    assert list(shown.judged) == [1]
    assert paper.rates(STEPS // 2) == {name: {1.0, 3.0} for name in ("baseline", "change_0", "change_1", "change_2")}


def test_an_arm_that_is_better_goes_first_at_its_best_rate():
    best = {"change_2": 0.3, "change_1": 3.0}

    def law(name, lr_scale, steps):
        off = abs(math.log10(lr_scale / best.get(name, 1.0)))
        return PLATEAU * (1 + off) / (10 if name == "change_2" else 3 if name == "change_1" else 1)

    shown, _ = conducted(law, judged=2)
    assert shown.rates == {0: 1.0, 1: 1.0, 2: 3.0, 3: 0.3}
    assert list(shown.judged) == [3, 2]
    assert shown.screened[3] < shown.screened[2] < -0.3


def test_an_arm_that_harms_comes_last():
    shown, _ = conducted(lambda name, *_: PLATEAU * (3 if name == "change_0" else 1), judged=2)
    assert list(shown.judged) == [2, 3]


def test_all_named_arms_are_judged_where_there_is_time():
    assert set(conducted(lambda *_: PLATEAU, judged=3)[0].judged) == {1, 2, 3}
