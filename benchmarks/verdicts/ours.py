"""gradwell's own verdict on a case: `gw.watch` in the loop, as a user would, and when it said what."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import msgspec
from benchmarks.verdicts.cases import Case
from benchmarks.verdicts.families import Batch, Bench
from benchmarks.verdicts.training import Trained, train

import gradwell as gw
from gradwell.journeys.live import Live
from gradwell.journeys.log import Log
from gradwell.records.run import Event, Run
from gradwell.records.verdict import Finding


class Told(NamedTuple):
    """A finding as it was told while the training ran, and the iteration at which that was."""

    symptom: str
    severity: str
    step: int


class Watched:
    """An observer that watches from the first forward pass on."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.step = 0
        self._watch: Any = None

    def begins(self, bench: Bench, step: int, _batch: Batch) -> None:
        self.step = step
        if self._watch is None:
            self._watch = gw.watch(bench.model, sinks=[self._hear])

    def _hear(self, item: Any) -> None:
        if isinstance(item, Finding):
            self.told.append(Told(item.symptom, item.severity, self.step))

    def backward(self, _bench: Bench, _step: int) -> None:
        """Nothing: a user's loop has no such line."""

    def ends(self, _bench: Bench, _step: int, _loss: float) -> None:
        """Nothing."""

    def stop(self) -> Run:
        self._watch.stop()
        found: Run = self._watch.run
        return found


def watched(case: Case, seed: int) -> tuple[Trained, Run, list[Told]]:
    """Train a case under the watch; the lines that it prints are not shown."""
    observer = Watched()
    with contextlib.redirect_stderr(io.StringIO()):
        trained = train(case, seed, observer=observer)
        run = observer.stop()
    return trained, run, observer.told


class Grown(Log):
    """A log that grows as far as an earlier record had grown at some step."""

    def __init__(self, record: Run) -> None:
        super().__init__(None, argv=[], say=lambda _: None)
        self.record = record

    def run(self) -> Run:
        return msgspec.structs.replace(self.record, steps=list(self.steps), events=list(self.events))

    def reach(self, step: int) -> None:
        """Know what had been sampled and had happened by the end of a step, and the losses up to it."""
        self.steps = [item for item in self.record.steps if item.step <= step]
        self.sampled = len(self.steps)
        self.events = [_until(event, step) for event in self.record.events if event.step <= step]


def _until(event: Event, step: int) -> Event:
    """An event of losses without those that came later."""
    if event.event != "losses":
        return event
    parts = {name: values[: step + 1 - event.step] for name, values in event.detail.items()}
    return msgspec.structs.replace(event, detail=parts)


def told_again(record: Run) -> list[Told]:
    """The findings as the rules of now would have told them while the record grew, sampled at the steps that it has."""
    told: list[Told] = []
    log = Grown(record)
    optimizers = max(1, len(record.header.optimizers))
    now = 0

    def hear(finding: Finding) -> None:
        told.append(Told(finding.symptom, finding.severity, now // optimizers))

    live = Live(log, say=lambda _: None, found=hear)
    events = [event for event in record.events if event.event not in ("losses", "ended")]
    for item in sorted([*events, *record.steps], key=lambda item: item.step):
        now = item.step
        log.reach(now)
        live(item)
    now = max((curve.steps[-1] for curve in record.losses()), default=now)
    log.reach(now)
    live.end()
    return told
