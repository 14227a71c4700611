"""`gradwell run`: an unmodified training script under the monitor, its record on disk, its diagnosis at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gradwell.journeys.diagnose import diagnose
from gradwell.probe import host
from gradwell.probe.clock import FIRST, Monitor
from gradwell.probe.names import Construction, Names
from gradwell.records.run import (
    Event,
    Header,
    Run,
    RunWriter,
    Site,
    Step,
    event_line,
    header_line,
    site_line,
    step_line,
)
from gradwell.records.verdict import Diagnosis


class RunResult(msgspec.Struct, frozen=True):
    """How a script ended, what was diagnosed, and the run folder (None when it could not be written)."""

    ending: host.Ending
    diagnosis: Diagnosis
    folder: str | None


class Log:
    """Collects the steps of a training in memory and, where there is a folder, line by line on disk."""

    def __init__(self, folder: Path | None, *, argv: Sequence[str], say: Callable[[str], None]) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.monitor: Monitor | None = None
        self._argv = list(argv)
        self._header: Header | None = None
        self._say = say
        self._writer = RunWriter(folder / "run.jsonl", say) if folder is not None else None
        self.on_step: Callable[[Run], None] | None = None

    def __call__(self, item: Step | Event) -> None:
        """Take a finished step or an event."""
        self._write_header()
        if isinstance(item, Event):
            self.events.append(item)
            self._write(event_line(item))
            return
        for site in self._fresh_sites():
            self._write(site_line(site))
        self.steps.append(item)
        self._write(step_line(item))
        if self.on_step is not None:
            self.on_step(self.run())

    def _fresh_sites(self) -> list[Site]:
        assert self.monitor is not None
        return self.monitor.recorder.appeared()

    def _write_header(self) -> None:
        if self._header is None and self.monitor is not None:
            self._header = self.monitor.recorder.header(argv=self._argv, started=self.started, seed=_seed())
            self.monitor.recorder.appeared()
            self._write(header_line(self._header))

    def _write(self, line: bytes) -> None:
        if self._writer is not None:
            self._writer.write(line)

    def run(self) -> Run:
        """The run as it stands."""
        assert self.monitor is not None
        header = self.monitor.recorder.header(argv=self._argv, started=self.started, seed=_seed())
        folder = str(self.folder) if self.folder is not None else None
        return Run(header, list(self.steps), list(self.events), folder=folder, overhead=self.monitor.overhead)

    def close(self, ending: host.Ending) -> Run:
        """Write the last event and hand over the whole run."""
        assert self.monitor is not None
        detail: dict[str, Any] = {
            "status": ending.status,
            "reason": ending.reason,
            "steps": self.monitor.steps,
            "micro_steps": self.monitor.micro_steps,
            "overhead": self.monitor.overhead,
        }
        self(Event("ended", self.monitor.steps, detail))
        if self._writer is not None:
            self._writer.close()
        return self.run()


def run_script(
    target: str,
    args: Sequence[str] = (),
    *,
    module: bool = False,
    steps: int | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    finish: Callable[[RunResult], None] = lambda _: None,
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Any] | None = None,
) -> host.Ending:
    """Run a script (or with `module` a module) as plain python would and diagnose its training.

    `steps` stops it after so many training steps. `say` takes single lines for the person at the terminal, among
    them the checkup after the first sampled steps; `finish` takes the result when the script has ended, for
    whatever reason. Returns how the script ended.
    """
    construction = Construction()
    log = Log(folder, argv=[target, *args], say=say)
    monitor = Monitor(
        Names(construction),
        sink=log,
        max_steps=steps,
        on_failure=lambda text: say(f"gradwell stopped measuring ({text}); the training goes on."),
    )
    log.monitor = monitor
    log.on_step = _checkup(say, ignore, thresholds or {})

    def on_end(ending: host.Ending) -> None:
        monitor.remove()
        construction.off()
        run = log.close(ending)
        diagnosis = diagnose(run, ignore=ignore, thresholds=thresholds or {})
        finish(RunResult(ending, diagnosis, run.folder))

    start = host.run_module if module else host.run_script
    construction.on()
    monitor.install()
    try:
        return start(target, args, on_end=on_end)
    finally:
        monitor.remove()
        construction.off()


def _checkup(say: Callable[[str], None], ignore: Sequence[str], thresholds: Mapping[str, Any]) -> Callable[[Run], None]:
    """One line after the first sampled steps."""

    def on_step(run: Run) -> None:
        if len(run.steps) == FIRST:
            from gradwell.records.text import render_line

            say(f"checkup after {FIRST} steps: {render_line(diagnose(run, ignore=ignore, thresholds=thresholds))}")

    return on_step


def _seed() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.initial_seed())
