"""`gradwell treat`: tries the remedies on copies of a training and tells, with evidence, which one works."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from gradwell.errors import NotMeasurable, UsageError
from gradwell.journeys.diagnose import diagnose
from gradwell.journeys.report import of
from gradwell.probe.names import Construction
from gradwell.records.treatment import Baseline, Control, Outcome, Treatment, ranked
from gradwell.records.verdict import RANK, Diagnosis, Remedy
from gradwell.remedies._advice import ECHOES
from gradwell.surgery.setup import TrainSetup
from gradwell.trial.arms import Arm, candidates, with_lines
from gradwell.trial.judge import Comparison, compare, verdict
from gradwell.trial.schedule import JUDGED, USUAL, WATCHED, Shown, Tick, Trial, course
from gradwell.trial.train import Job, Trained, lines_of
from gradwell.trial.workers import GRACE, Runner, runner

FEWEST_SEEDS = 2


def treat(
    setup: TrainSetup,
    *,
    minutes: float = 5,
    seeds: int = 5,
    executor: Executor | None = None,
    arms: Sequence[Arm] | None = None,
    construction: Construction | None = None,
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Any] | None = None,
    tick: Tick = lambda *_: None,
    argv: Sequence[str] | None = None,
) -> Treatment:
    """Diagnose a training, try remedies on copies of it, and rank them by what they do on fresh seeds.

    `minutes`: the time that it may take; runs are as long as that allows, at most `setup.steps` (500 where there are
    none). `seeds`: fresh seeds that the best arms are judged on. `executor`: any `concurrent.futures.Executor`; without
    one, runs are forked children of this process, one for each core. `arms`: try these instead of those that the
    diagnosis asks for. The setup, its model and all random numbers are afterwards as before.

    A healthy training yields no outcome: there is nothing to cure. Raises `NotMeasurable` where the training cannot be
    run at all, `UsageError` for what cannot be meant.
    """
    _require(setup, minutes, seeds)
    started = time.monotonic()
    until = started + 60 * minutes - min(GRACE, 6 * minutes)  # runs end a moment after they were told to
    run = runner(setup, executor)
    judged: dict[str, Any] = {"ignore": ignore, "thresholds": thresholds or {}}
    lines = lines_of(setup.model, construction)
    tick("diagnosing", 0, 1)
    first = _first(run, setup, lines, until)
    assert first.run is not None
    diagnosis = diagnose(first.run if argv is None else of(first.run, argv), **judged)
    tick("diagnosing", 1, 1)
    tried = candidates(first.run, diagnosis) if arms is None else [with_lines(a, first.run, diagnosis) for a in arms]
    if not tried or not (diagnosis.findings or arms is not None):
        return Treatment(diagnosis, seeds=seeds, steps=first.steps, seconds=_since(started))
    judged_most = JUDGED if arms is None else len(tried)
    trial = Trial(tried, run, seeds=seeds, until=until, tick=tick, lines=lines, judged=judged_most)
    shown = trial.conduct(first, steps=setup.steps)
    return _told(diagnosis, tried, shown, judged, seeds=seeds, started=started)


def _require(setup: TrainSetup, minutes: float, seeds: int) -> None:
    if not isinstance(setup, TrainSetup):
        raise UsageError(f"treat needs a TrainSetup, found {type(setup).__name__}; make one with gw.TrainSetup(...).")
    if setup.batches is None:
        raise UsageError("treat trains: give the TrainSetup `batches`, a function seed -> batches.")
    if not minutes > 0:
        raise UsageError(f"minutes must be above 0, found {minutes!r}.")
    if seeds < FEWEST_SEEDS:
        raise UsageError(f"seeds must be at least {FEWEST_SEEDS}, found {seeds!r}: one seed gives no interval.")


def _first(run: Runner, setup: TrainSetup, lines: dict[str, str], until: float) -> Trained:
    """The training as it is, watched: what is sick, and how long a step takes."""
    steps = min(setup.steps or USUAL, WATCHED + WATCHED // 2)
    limit = max(1.0, (until - time.monotonic()) / 3)
    job = Job(remedies=(), lr_scale=1.0, seed=0, steps=steps, limit_s=limit, watched=min(WATCHED, steps), lines=lines)
    found = next((trained for _, trained in run([job], until=until)), None)
    if found is None or (found.late and (found.run is None or not found.run.steps)):
        raise NotMeasurable("The time ran out before the first steps of the training were done; give more minutes.")
    if found.raised is not None:
        raise found.raised
    if found.problem:
        raise NotMeasurable(f"The training cannot be run on a copy: {found.problem}")
    if found.start is not None and found.start <= 0:
        raise NotMeasurable(
            f"treat compares log10 of the loss, and this loss is {found.start:.3g}; add a constant that keeps it "
            "positive."
        )
    return found


# What the trial says.


def _told(
    diagnosis: Diagnosis, arms: Sequence[Arm], shown: Shown, judged: dict[str, Any], *, seeds: int, started: float
) -> Treatment:
    complete = not any(r.late for r in (*shown.control, *shown.baseline))
    control = compare([r.ending for r in shown.control], [r.ending for r in shown.baseline]) if complete else None
    outcomes, after = list[tuple[Outcome, int]](), dict[int, Diagnosis]()
    for number, arm in enumerate([_rate(shown.rates[0]), *arms]):
        own = next((r.run for r in shown.judged.get(number, []) if r.run is not None), None)
        if own is not None:
            after[number] = diagnose(own, **judged)
        outcome = _outcome(arm, number, shown, diagnosis, after.get(number), control)
        if outcome is not None and not any(outcome.name == other.name for other, _ in outcomes):
            outcomes.append((outcome, number))
    order = ranked([outcome for outcome, _ in outcomes])
    numbers = {id(outcome): number for outcome, number in outcomes}
    return Treatment(
        diagnosis,
        baseline=_baseline(shown),
        control=Control() if control is None else Control(*_plain(control), [r.loss for r in shown.control]),
        outcomes=order,
        steps=shown.plan.steps,
        seeds=seeds,
        seconds=_since(started),
        after=after.get(numbers[id(order[0])]) if order else None,
        notes=[f"{arms[k - 1].name}: {problem}" for k, problem in sorted(shown.failed.items()) if k],
    )


def _outcome(
    arm: Arm, number: int, shown: Shown, diagnosis: Diagnosis, after: Diagnosis | None, control: Comparison | None
) -> Outcome | None:
    """What is known of one arm; None for a remedy that does not fit this model (a note says why).

    An arm that left in the screening has its effect there, which no interval backs.
    """
    runs = shown.judged.get(number, [])
    if not arm.remedies or (number in shown.failed and not any(run.loss is not None for run in runs)):
        return None
    rate = shown.rates.get(number, 1.0) if number else 1.0
    told = _rate(arm.remedies[0].settings["factor"] * rate) if arm.only_rate else arm
    plain: dict[str, Any] = {
        "remedies": list(told.remedies),
        "lr_scale": 1.0 if arm.only_rate else rate,
        "in_your_code": told.in_your_code if arm.only_rate else in_your_code(arm, rate),
    }
    done = bool(runs) and not any(run.late for run in runs)
    against = shown.given if arm.only_rate else shown.baseline
    if not done or any(run.late for run in against):
        return Outcome(**plain, effect_log10_loss=shown.screened.get(number))
    found = compare([run.ending for run in runs], [run.ending for run in against])
    cured, caused = _changed(diagnosis, after)
    word = verdict(found, gone=_gone(diagnosis, after), control=control)
    effect, interval = _plain(found)
    return Outcome(
        **plain, effect_log10_loss=effect, interval=interval, infeasible_frac=found.infeasible_frac, cured=cured,
        caused=caused, step_time_ratio=_ratio(runs, against), verdict=word, losses=[run.loss for run in runs],
        course=course(runs), note=shown.failed.get(number, ""),
    )  # fmt: skip


def _plain(found: Comparison) -> tuple[float | None, tuple[float | None, float | None]]:
    return found.effect, found.interval or (None, None)


def _baseline(shown: Shown) -> Baseline:
    runs = shown.baseline
    times = [run.step_time_s for run in runs if run.step_time_s]
    share = sum(run.ending.infeasible for run in runs) / len(runs)
    start = next((run.start for run in runs if run.start is not None), None)
    step_time = statistics.median(times) if times else None
    return Baseline(shown.rates[0], start, [run.loss for run in runs], share, step_time, course(runs))


def _ratio(runs: Sequence[Trained], against: Sequence[Trained]) -> float | None:
    """Time of a step over the baseline's, medians of the runs."""
    own, other = ([r.step_time_s for r in side if r.step_time_s] for side in (runs, against))
    return round(statistics.median(own) / statistics.median(other), 2) if own and other else None


def _severities(diagnosis: Diagnosis) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in diagnosis.findings:
        found[finding.symptom] = max(found.get(finding.symptom, 0), RANK[finding.severity])
    return found


MILD = RANK["mild"]


def _changed(before: Diagnosis, after: Diagnosis | None) -> tuple[list[str], list[str]]:
    """Symptoms that are gone (or mild, where they were worse), and symptoms that are new."""
    if after is None:
        return [], []
    old, new = _severities(before), _severities(after)
    return [s for s, rank in old.items() if _is_gone(s, rank, after)], [s for s in new if s not in old]


def _is_gone(symptom: str, rank: int, after: Diagnosis) -> bool:
    """True for a symptom that is no longer there, or only mild; one that needs more steps than there were is not."""
    now = _severities(after).get(symptom)
    if now is not None:
        return now == MILD < rank
    return not (symptom in ECHOES and symptom in {item.symptom for item in after.not_checked})


def _gone(before: Diagnosis, after: Diagnosis | None) -> bool:
    """True when each of the worst symptoms is gone or mild now, and nothing as bad is new."""
    if after is None or not before.findings:
        return False
    old, new = _severities(before), _severities(after)
    worst = max(old.values())
    gone = all(_is_gone(s, rank, after) for s, rank in old.items() if rank == worst)
    return gone and all(rank < worst for s, rank in new.items() if s not in old)


def in_your_code(arm: Arm, rate: float) -> str:
    """The lines to paste, and the learning rate that the arm was judged at."""
    if rate == 1.0:
        return arm.in_your_code
    text, own = arm.in_your_code, [r.settings["lr"] for r in arm.remedies if "lr" in r.settings]
    for lr in own:  # a remedy that brings a rate of its own
        text = re.sub(rf"(?<![\w.]){re.escape(f'{lr:g}')}(?![\w.])", f"{lr * rate:.3g}", text)
    return text if own else f"{text}\n\n{_rate_line(rate)}".strip()


def _rate(factor: float) -> Arm:
    """The arm of nothing but a rate; the baseline itself for a factor of 1."""
    return Arm((Remedy("scale_lr", {"factor": factor}),), _rate_line(factor)) if factor != 1.0 else Arm()


def _rate_line(factor: float) -> str:
    return f'for group in optimizer.param_groups:  # once, before training\n    group["lr"] *= {factor:.3g}'


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
