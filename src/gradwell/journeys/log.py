"""The record of a training as it grows: all of it on disk, as much as fits in memory, each item to whoever listens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gradwell.probe.clock import FIRST, Monitor
from gradwell.records.run import (
    Event,
    Header,
    Run,
    RunWriter,
    Step,
    event_line,
    header_line,
    optimizer_line,
    param_line,
    site_line,
    step_line,
)

NUMBERS = 2_000_000
"""Numbers of sampled steps that are kept in memory at most (about 64 MB); the file holds all."""
STEPS = 1000
"""Sampled steps that are kept in memory at most."""
EVENTS = 1000
"""Events that are kept in memory at most, the first and the last half of them."""
LOSSES = 200_000
"""Losses between the samples that are kept in memory at most, the first and the last."""
TOGETHER = 4096
"""Losses in one event in memory."""

Item = Step | Event


class Log:
    """Collects the steps of a training in memory and, where there is a folder, line by line on disk.

    `listen` is called with each item after it is recorded. Memory does not grow for ever: older sampled steps are
    thinned, all but the first ones and those right after an event that is no loss.
    """

    def __init__(self, folder: Path | None, *, argv: Sequence[str], say: Callable[[str], None]) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.sampled = 0
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.monitor: Monitor | None = None
        self.listen: Callable[[Item], None] = lambda _: None
        self._argv = list(argv)
        self._writer = RunWriter(folder / "run.jsonl", say) if folder is not None else None
        self._written: Header | None = None
        self._early: list[Event] = []
        self._marked: set[int] = set()

    def __call__(self, item: Item) -> None:
        """Take a finished step or an event."""
        if isinstance(item, Event):
            self._keep_event(item)
            if self._written is None:  # it waits for the header, which waits until sites and parameters are known
                self._early.append(item)
            else:
                self._write(event_line(item))
        else:
            self._write_header()
            self._keep_step(item)
            self._write(step_line(item))
        self.listen(item)

    def _keep_step(self, step: Step) -> None:
        self.steps.append(step)
        self.sampled += 1
        size = sum(map(len, step.sites.values())) + sum(map(len, step.params.values()))
        if len(self.steps) > max(min(STEPS, NUMBERS // max(size, 1)), 8 * FIRST):
            self.steps = thinned(self.steps, self._marked)

    def _keep_event(self, event: Event) -> None:
        if event.event != "losses":
            if len(self._marked) < 8 * FIRST:
                self._marked |= set(range(event.step, event.step + FIRST))
        elif self.events and (joined := _joined(self.events[-1], event)) is not None:
            self.events[-1] = joined
            return
        self.events.append(event)
        self.events = _few(self.events)

    def _write_header(self) -> None:
        """The header or, later, a line for everything that has come since."""
        known, now = self._written, self._header()
        self._written = now
        if known is None:
            self._write(header_line(now))
            for event in self._early:
                self._write(event_line(event))
            self._early = []
            return
        for site in now.sites[len(known.sites) :]:
            self._write(site_line(site))
        for param in now.params[len(known.params) :]:
            self._write(param_line(param))
        for optimizer in now.optimizers[len(known.optimizers) :]:
            self._write(optimizer_line(optimizer))

    def _write(self, line: bytes) -> None:
        if self._writer is not None:
            self._writer.write(line)

    def _header(self) -> Header:
        assert self.monitor is not None
        return self.monitor.recorder.header(argv=self._argv, started=self.started, seed=_seed())

    def run(self) -> Run:
        """The run as it stands."""
        assert self.monitor is not None
        folder = str(self.folder) if self.folder is not None else None
        return Run(self._header(), list(self.steps), list(self.events), folder=folder, overhead=self.monitor.overhead)

    def close(self, *, status: int, reason: str) -> Run:
        """Write the last event and hand over the whole run."""
        assert self.monitor is not None
        detail: dict[str, Any] = {
            "status": status,
            "reason": reason,
            "steps": self.monitor.steps,
            "micro_steps": self.monitor.micro_steps,
            "sampled": self.sampled,
            "overhead": self.monitor.overhead,
        }
        self._write_header()
        self(Event("ended", self.monitor.steps, detail))
        if self._writer is not None:
            self._writer.close()
        return self.run()


def thinned(steps: Sequence[Step], marked: set[int]) -> list[Step]:
    """The newer half, and of the older half every second step, the first ones and the marked ones."""
    half = len(steps) // 2
    older = [step for i, step in enumerate(steps[:half]) if i < FIRST or i % 2 == 0 or step.step in marked]
    return [*older, *steps[half:]]


def _joined(known: Event, new: Event) -> Event | None:
    """Two events of losses as one, None where they do not follow each other or the first is long enough."""
    values = known.detail.get("values") or []
    follows = known.event == "losses" and known.step + len(values) == new.step and len(values) < TOGETHER
    if not follows or known.detail.keys() != new.detail.keys():
        return None
    return msgspec.structs.replace(known, detail={k: [*known.detail[k], *new.detail[k]] for k in known.detail})


def _few(events: list[Event]) -> list[Event]:
    """Without the event in the middle, where there are too many; losses are counted one by one."""
    losses = [event for event in events if event.event == "losses"]
    if sum(len(event.detail.get("values", ())) for event in losses) > LOSSES:
        return [event for event in events if event is not losses[1]]
    others = [event for event in events if event.event != "losses"]
    return [event for event in events if event is not others[EVENTS // 2]] if len(others) > EVENTS else events


def _seed() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.initial_seed())
