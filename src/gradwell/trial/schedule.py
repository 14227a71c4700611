"""The course of a trial: how long runs may be, screening by successive halving, judging on fresh seeds.

Every arm, the baseline among them, has its learning rate chosen on the screening seeds: all rates for a quarter of the
steps, the better half of the arms and of the rates for half of them. The best arms go to the judge with one rate each:
fresh seeds, all steps, paired with the baseline. Each stage has its part of the time and is planned anew from what the
stage before has cost; runs that a stage has no time for are missing, and the judge hears fewer arms before shorter
runs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from gradwell.records.treatment import Course
from gradwell.trial.arms import BASELINE, LR_SCALES, Arm
from gradwell.trial.judge import Ending, first_losses, worth
from gradwell.trial.train import Job, Trained
from gradwell.trial.workers import Runner

SCREENING, CONTROL = 1001, 2001
"""The first seeds of the screening and of the control; the judge counts from 0, the training as it was handed over."""
USUAL = 500
"""Steps of a run where the setup names none: enough to tell a net that trains from one that does not."""
FEWEST = 100
"""Below so many steps fewer arms are better than shorter runs."""
TAIL = 5
"""Points at the end of a course that tell how a short run did."""
FURTHER = 4
"""Decades beyond the usual rates that an arm of nothing but a rate may go."""
FEW = 3
"""So many arms are judged even where that makes their runs short."""
JUDGED = 5
"""Arms that are judged where the trial has chosen them itself; named arms are all judged if there is time."""
NOISE = 0.05
"""Decades from the baseline (12 % of the loss) that say nothing of a short run: many a training stays on a plateau
until half of its steps are done. Such arms go by the order in which they were asked for, their rates by the usual
one."""
GUESS = 3e-3
"""Seconds a step, where the first run diverged before it could tell."""
WATCHED = 120
"""Steps of a watched run that the monitor sees."""
PATIENCE = 4.0
"""A run may take so many times as long as expected."""
SHORT, LONG = 0.3, 0.5
"""Parts of the time after which the first and the second round of the screening are over; the rest is the judge's."""

Tick = Callable[[str, int, int], None]
"""Told what is going on: words, runs done, runs in all."""


class Plan(NamedTuple):
    """How many steps a run has, arms that are tried, seeds of the screening, arms that it keeps, arms that are judged.

    The baseline is one of the tried and kept.
    """

    steps: int
    tried: int
    screening: int
    kept: int
    judged: int


class Key(NamedTuple):
    """An arm at a rate."""

    arm: int
    lr_scale: float


class Shown(msgspec.Struct, frozen=True):
    """All that a trial showed. `screened`: mean log10 of the held loss over the baseline's, on the screening seeds.

    Runs stand by seed; `given` is the setup at its own rate, `control` the baseline on other seeds. The baseline stands
    among the judged, as arm 0, where its best rate is another one.
    """

    plan: Plan
    rates: dict[int, float]
    screened: dict[int, float]
    judged: dict[int, list[Trained]]
    baseline: list[Trained]
    given: list[Trained]
    control: list[Trained]
    failed: dict[int, str]


class Trial:
    """Runs a trial on a runner, within a time."""

    def __init__(
        self, arms: Sequence[Arm], run: Runner, *, seeds: int, until: float, tick: Tick, lines: dict[str, str],
        judged: int = JUDGED,
    ) -> None:  # fmt: skip
        self.arms, self.lines, self.judged = [BASELINE, *arms], lines, judged
        self.run, self.seeds, self.until, self.tick = run, seeds, until, tick
        self.began = time.monotonic()
        self.step_s = 1e-3
        self.extra_s = 0.25  # what a run costs besides its steps, until that has been measured
        self.failed: dict[int, str] = {}

    def conduct(self, first: Trained, *, steps: int | None) -> Shown:
        """The whole trial; `first` is the watched run of the training as it is, which tells how long a step takes."""
        self.step_s = first.step_time_s or GUESS
        plan = self.plan(steps or USUAL)
        rates, screened, order = self._screen(plan)
        chosen = [arm for arm in order if arm != 0][: plan.judged]
        return self._judge(plan._replace(steps=steps or USUAL), rates, screened, chosen)

    # how long

    def plan(self, wanted: int) -> Plan:
        """The longest runs that fit, with fewer seeds and arms where they would get too short."""
        arms = len(self.arms)
        ways = [
            Plan(0, arms, 2, min(arms, max(7, self.judged + 1, (arms + 1) // 2)), min(arms - 1, self.judged)),
            Plan(0, arms, 1, min(arms, max(5, arms // 2)), min(arms - 1, 4)),
            Plan(0, min(arms, 7), 1, min(arms, 4), min(arms - 1, 3)),
            Plan(0, min(arms, 5), 1, min(arms, 3), min(arms - 1, 2)),
        ]
        plans = [way._replace(steps=min(wanted, self._steps(way))) for way in ways]
        return next((plan for plan in plans if plan.steps >= min(FEWEST, wanted)), plans[-1])

    def _steps(self, way: Plan) -> int:
        """Steps of a whole run, so that every stage keeps to its part of the time."""
        rates = len(LR_SCALES)
        short = self._fitting(way.tried * rates * way.screening, SHORT)
        long = self._fitting(way.kept * (rates // 2) * way.screening, LONG - SHORT)
        whole = self._fitting((way.judged + 2) * self.seeds, 1 - LONG)
        return max(1, min(4 * short, 2 * long, whole))

    def _fitting(self, runs: int, part: float) -> int:
        """Steps of each of so many runs that together take a part of the time that is left."""
        left = 0.75 * part * max(0.0, self.until - time.monotonic())
        return max(0, int((left * self.run.width / max(runs, 1) - self.extra_s) / self.step_s))

    def _at(self, part: float) -> float:
        """When a stage is over."""
        return self.began + part * (self.until - self.began)

    # screening

    def _screen(self, plan: Plan) -> tuple[dict[int, float], dict[int, float], list[int]]:
        """The best rate of each arm, its distance from the baseline in its last round, and the arms, best first."""
        keys = [Key(arm, scale) for scale in sorted(LR_SCALES, key=_usual_first) for arm in range(plan.tried)]
        first = self._round("screening, short runs", keys, max(1, plan.steps // 4), plan.screening, SHORT)
        first |= self._further(first, plan)
        kept = {0, *_best_first(first)[: plan.kept]}
        second_keys = [key for arm in sorted(kept) for key in _better_half(first, arm)]
        steps = min(plan.steps // 2, self._fitting(len(second_keys) * plan.screening, (LONG - SHORT) / (1 - SHORT)))
        second = self._round("screening, longer runs", second_keys, max(1, steps), plan.screening, LONG)
        rates, screened = {0: 1.0}, dict[int, float]()
        for scored in (first, second):
            best = {arm: _better_half(scored, arm)[0] for arm in _best_first(scored)}
            rates |= {arm: key.lr_scale for arm, key in best.items()}
            if 0 in best:
                screened |= {arm: scored[key] - scored[best[0]] for arm, key in best.items()}
        return rates, screened, list(dict.fromkeys([*_best_first(second), *_best_first(first)]))

    def _further(self, first: dict[Key, float], plan: Plan) -> dict[Key, float]:
        """Rates beyond the usual ones, for arms that change nothing else and did best at the end of the range."""
        keys = []
        for arm, item in enumerate(self.arms):
            own = [key for key in first if key.arm == arm] if item.only_rate else []
            end = min(own, key=lambda key: first[key]).lr_scale if own else 1.0
            if end in (LR_SCALES[0], LR_SCALES[-1]):
                step = 0.1 if end < 1 else 10.0
                keys += [Key(arm, end * step**k) for k in range(1, FURTHER + 1)]
        return self._round("learning rates further out", keys, max(1, plan.steps // 4), 1, LONG) if keys else {}

    def _round(self, words: str, keys: Sequence[Key], steps: int, seeds: int, part: float) -> dict[Key, float]:
        """Mean log10 of the held loss of each arm and rate; arms that failed are left out."""
        jobs = [(key, SCREENING + n) for n in range(seeds) for key in keys]
        done = self._do(words, [self._job(key, seed, steps) for key, seed in jobs], until=self._at(part))
        starts: dict[int, float] = {}
        for (_, seed), found in zip(jobs, done, strict=True):
            if found is not None and found.start is not None and math.isfinite(found.start):
                starts[seed] = found.start
        scores: dict[Key, list[float]] = {}
        for (key, seed), found in zip(jobs, done, strict=True):
            if found is None or found.late or key.arm in self.failed:
                continue
            start = starts.get(seed) or first_losses([found.ending])[0]
            scores.setdefault(key, []).append(_promise(found, start))
        return {key: statistics.fmean(values) for key, values in scores.items()}

    def _job(self, key: Key, seed: int, steps: int, *, watched: bool = False) -> Job:
        limit = PATIENCE * (steps * self.step_s * 2 + self.extra_s) + 5
        left = max(0.1, self.until - time.monotonic())
        return Job(
            remedies=self.arms[key.arm].remedies, lr_scale=key.lr_scale, seed=seed, steps=steps,
            limit_s=min(limit, left), watched=min(WATCHED, steps) if watched else 0,
            lines=self.lines if watched else {},
        )  # fmt: skip

    def _do(self, words: str, jobs: Sequence[Job], *, until: float) -> list[Trained | None]:
        """The runs in the order of the jobs, None for those that time did not suffice for; notes what fails."""
        found: list[Trained | None] = [None] * len(jobs)
        self.tick(words, 0, len(jobs))
        began = time.monotonic()
        for count, (place, trained) in enumerate(self.run(jobs, until=until), start=1):
            found[place] = trained
            self.tick(words, count, len(jobs))
            if trained.problem:
                self._note(jobs[place], trained)
        self._learn([trained for trained in found if trained is not None], time.monotonic() - began)
        return found

    def _learn(self, done: Sequence[Trained], seconds: float) -> None:
        """What a step and a run have really cost on these cores."""
        timed = [run for run in done if run.step_time_s]
        if timed:
            self.step_s = statistics.fmean(run.step_time_s or 0.0 for run in timed)
            steps = sum(run.steps for run in done)
            self.extra_s = max(0.01, (seconds * self.run.width - steps * self.step_s) / len(done))

    def _note(self, job: Job, trained: Trained) -> None:
        arm = next(k for k, a in enumerate(self.arms) if a.remedies == job.remedies)
        self.failed.setdefault(arm, trained.problem)

    # judging

    def _judge(self, plan: Plan, rates: dict[int, float], screened: dict[int, float], chosen: Sequence[int]) -> Shown:
        """Fresh seeds, seed 0 first: the baseline and its control, the training as given, then arm after arm."""
        given = rates[0] != 1.0
        keys = [Key(0, rates[0]), *([Key(0, 1.0)] if given else []), *(Key(arm, rates[arm]) for arm in chosen)]
        seeds = range(self.seeds)
        fixed = 1 + given
        while len(keys) > fixed + 1:
            steps = self._fitting((len(keys) + 1) * self.seeds, 1.0)
            if steps >= min(FEWEST if len(keys) > fixed + FEW else FEWEST / 2, plan.steps):
                break
            keys.pop()
        steps = max(1, min(plan.steps, self._fitting((len(keys) + 1) * self.seeds, 1.0)))
        jobs = [(key, seed, False) for key in keys[: 1 + given] for seed in seeds]
        jobs += [(keys[0], CONTROL + seed, True) for seed in seeds]
        jobs += [(key, seed, False) for key in keys[1 + given :] for seed in seeds]
        work = [self._job(key, seed, steps, watched=seed == 0 and key != Key(0, 1.0)) for key, seed, _ in jobs]
        done = self._do("judging on fresh seeds", work, until=self.until)
        plan = plan._replace(steps=steps)
        runs: dict[tuple[Key, bool], list[Trained]] = {}
        for (key, _, control), found in zip(jobs, done, strict=True):
            runs.setdefault((key, control), []).append(found or Trained(late=True))
        baseline = runs[keys[0], False]
        return Shown(
            plan=plan, rates=rates, screened=screened, baseline=baseline,
            judged={key.arm: runs[key, False] for key in keys if key != Key(0, 1.0)},
            given=runs[Key(0, 1.0), False] if given else baseline, control=runs[keys[0], True], failed=self.failed,
        )  # fmt: skip


def _usual_first(scale: float) -> float:
    """The setup's own rate first, those far from it last."""
    return abs(math.log(scale))


def _promise(run: Trained, start: float) -> float:
    """What a short run is worth: the better of its held loss and of its last training losses.

    In eval mode a batch norm's running statistics need some ten steps before they mean anything.
    """
    last = [loss for _, loss in run.course[-TAIL:]]
    trained = Ending(start, math.fsum(last) / len(last) if last else None)
    return min(worth(run.ending, start), math.inf if run.ending.loss is None else worth(trained, start))


def _best_first(scored: dict[Key, float]) -> list[int]:
    """The arms by their best rate; those that do not differ from the baseline stand in their own order."""
    best = _best(scored)
    base = best.get(0, math.inf)
    return sorted(best, key=lambda arm: (base if abs(best[arm] - base) < NOISE else best[arm], arm))


def _better_half(scored: dict[Key, float], arm: int) -> list[Key]:
    """The better half of an arm's rates, best first; where the arm is no better than the baseline, rates that do not
    differ stand by their distance from the usual one."""
    best = _best(scored)
    if arm not in best:
        return []
    noise = NOISE if best.get(0, math.inf) - best[arm] < NOISE else 0.0
    own = {key: max(score, best[arm] + noise) for key, score in scored.items() if key.arm == arm}
    order = sorted(own, key=lambda key: (own[key], _usual_first(key.lr_scale)))
    return order[: max(1, len(LR_SCALES) // 2)]


def _best(scored: dict[Key, float]) -> dict[int, float]:
    """The best score of each arm."""
    best: dict[int, float] = {}
    for key, score in scored.items():
        best[key.arm] = min(best.get(key.arm, math.inf), score)
    return best


def course(runs: Sequence[Trained]) -> Course:
    """The training loss over the steps: median over the runs that got there."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, loss in run.course:
            by_step.setdefault(step, []).append(loss)
    return [(step, statistics.median(by_step[step])) for step in sorted(by_step)]
