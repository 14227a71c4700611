"""What is found while the training still runs: one line, and a call, for each new finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gradwell.journeys.diagnose import diagnose, load_rules
from gradwell.journeys.log import Item, Log
from gradwell.probe.clock import FIRST
from gradwell.records.numbers import log10
from gradwell.records.run import Event, Step, finite
from gradwell.records.text import render_finding, render_line
from gradwell.records.verdict import RANK, Diagnosis, Finding

EARLY = 8
"""Sampled steps at the start, and after what is a reason by itself, each of which is a look at the whole run."""
GROWTH = 1.5
"""The next look without a reason comes after so many times as many sampled steps."""
RECENT = 5
"""Sampled steps that a look with a reason goes by: the median of a long run does not move for what is new."""
MOVED = {"decades": 1.0, "share": 0.2}
"""By how much a size or a share of units has to move since the last look to be a reason for another."""
QUIET = 10
"""Steps after a closer look without another one; twice as many each time."""
URGENT = ("nonfinite_loss", "unusual_loss", "rescue")
"""Events that are a reason by themselves."""


class Live:
    """Diagnoses a log while it grows and tells what is new or has become worse.

    It looks at the whole run after the first sampled steps and then at growing distance; in between, at the newest
    steps, when a size or a share has moved, a number is not finite any more or something has happened. What is mild is
    told when two looks in a row have found it. `say` takes the lines, `found` the findings.
    """

    def __init__(
        self,
        log: Log,
        *,
        say: Callable[[str], None],
        found: Callable[[Finding], None] = lambda _: None,
        ignore: Sequence[str] = (),
        thresholds: Mapping[str, Any] | None = None,
    ) -> None:
        load_rules()  # now: at the first look it would count as the training's time
        self._log, self._say, self._found = log, say, found
        self._judged: dict[str, Any] = {"ignore": ignore, "thresholds": thresholds or {}}
        self._told: dict[tuple[str, int], int] = {}
        self._before: set[tuple[str, int]] = set()  # what the last look has found
        self._next = self._since = 0
        self._seen: dict[tuple[int | None, int | None], tuple[float | None, ...]] = {}
        self._alert = 0  # sampled steps that are still to be looked at
        self._quiet_until = self._closer = 0
        self._broken = False

    def __call__(self, item: Item) -> None:
        """An item has been recorded."""
        self._safely(lambda: self._consider(item))

    def end(self) -> None:
        """The last look."""
        self._safely(self.look)

    def _safely(self, work: Callable[[], object]) -> None:
        """A fault of ours ends the looking, not the record."""
        try:
            if not self._broken:
                work()
        except Exception as problem:
            self._broken = True
            self._say(f"stopped looking ({type(problem).__name__}: {problem}); the record goes on.")

    def _consider(self, item: Item) -> None:
        if isinstance(item, Event):
            if item.event in URGENT:
                self._since = self._log.sampled
                self._alert = RECENT // 2 + 1
                if self._log.monitor is None or not self._log.monitor.sampling:
                    self.look(RECENT)  # else that step's own record says more, and comes at once
            return
        way, signs = (item.source, item.output), _signs(item)  # the two losses of a GAN go two ways
        if _moved(self._seen.setdefault(way, signs), signs):
            self._alert = RECENT // 2 + 1
            self._look_closer(item.step)
        count = self._log.sampled
        if count - self._since <= EARLY or count >= self._next:
            diagnosis = self.look()
            self._next = max(count + 1, int(count * GROWTH))
            if count == FIRST:
                self._say(f"checkup after {FIRST} steps: {self._checkup(diagnosis)}")
        elif self._alert:
            self.look(RECENT)
        if self._alert:
            self._seen[way] = signs
            self._alert -= 1

    def _look_closer(self, step: int) -> None:
        """Have the next steps sampled too, now and then: what moves all the time must not raise the cost."""
        if self._log.monitor is not None and step >= self._quiet_until:
            self._quiet_until = step + QUIET * 2**self._closer
            self._closer += 1
            self._log.monitor.trigger()

    def look(self, newest: int = 0) -> Diagnosis:
        """Diagnose now, from the newest sampled steps or from all, and tell what is new."""
        run = self._log.run()
        diagnosis = diagnose(msgspec.structs.replace(run, steps=run.steps[-newest:]), **self._judged)
        keys = _keys(diagnosis.findings)
        for index, (key, finding) in enumerate(zip(keys, diagnosis.findings, strict=True)):
            believed = finding.severity != "mild" or key in self._before
            if believed and RANK[finding.severity] > self._told.get(key, 0):
                self._told[key] = RANK[finding.severity]
                self._say(f"step {finding.last_step}: {render_finding(diagnosis, index)}")
                self._found(finding)
        self._before = set(keys)
        return diagnosis

    def _checkup(self, diagnosis: Diagnosis) -> str:
        """The verdict; what has been told a moment ago is only named."""
        if diagnosis.verdict == "undecided" or not set(_keys(diagnosis.findings)) & set(self._told):
            return render_line(diagnosis)
        names = dict.fromkeys(symptom for symptom, _ in self._told)
        return f"{diagnosis.verdict.upper()}: {', '.join(names)}, as told above."


def _keys(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Each finding's symptom and its number among those of the same symptom."""
    symptoms = [finding.symptom for finding in findings]
    return [(symptom, symptoms[:i].count(symptom)) for i, symptom in enumerate(symptoms)]


def _signs(step: Step) -> tuple[float | None, ...]:
    """What a look would go by: sizes in decades, then shares of units."""
    sizes = [step.total, log10(step.grad_norm), log10(step.loss if step.loss is None else abs(step.loss))]
    shares = [max(finite(step.sites.get(name, ())), default=0.0) for name in ("dead_frac", "saturated_frac")]
    return (*sizes, *shares)


def _moved(before: Sequence[float | None], now: Sequence[float | None]) -> bool:
    """Whether a sign has moved, come, gone or stopped being finite."""
    bounds = [*[MOVED["decades"]] * (len(now) - 2), *[MOVED["share"]] * 2]
    for old, new, bound in zip(before, now, bounds, strict=False):
        if old is None or new is None or not (math.isfinite(old) and math.isfinite(new)):
            if old is not new and repr(old) != repr(new):
                return True
        elif abs(new - old) > bound:
            return True
    return False
