"""gradwell's own verdict on a case: `gw.watch` in the loop, as a user would, and when it said what."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

from benchmarks.verdicts.cases import Case
from benchmarks.verdicts.families import Batch, Bench
from benchmarks.verdicts.training import Trained, train

import gradwell as gw
from gradwell.records.run import Run
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
