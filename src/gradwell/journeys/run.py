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
    Step,
    event_line,
    header_line,
    optimizer_line,
    param_line,
    site_line,
    step_line,
)
from gradwell.records.text import render_line
from gradwell.records.verdict import Diagnosis


class RunResult(msgspec.Struct, frozen=True):
    """How a script ended, its record, and what was diagnosed."""

    ending: host.Ending
    run: Run
    diagnosis: Diagnosis


class Log:
    """Collects the steps of a training in memory and, where there is a folder, line by line on disk."""

    def __init__(self, folder: Path | None, *, argv: Sequence[str], say: Callable[[str], None]) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.monitor: Monitor | None = None
        self.on_step: Callable[[], None] | None = None
        self._argv = list(argv)
        self._writer = RunWriter(folder / "run.jsonl", say) if folder is not None else None
        self._written: Header | None = None
        self._early: list[Event] = []

    def __call__(self, item: Step | Event) -> None:
        """Take a finished step or an event."""
        if isinstance(item, Event):
            self.events.append(item)
            if self._written is None:  # it waits for the header, which waits until sites and parameters are known
                self._early.append(item)
            else:
                self._write(event_line(item))
            return
        self._write_header()
        self.steps.append(item)
        self._write(step_line(item))
        if self.on_step is not None:
            self.on_step()

    def _write_header(self) -> None:
        """The header or, later, a line for everything that has come since."""
        known, now = self._written, self._header()
        self._written = now
        if known is None:
            self._write(header_line(now))
            for event in self._early:
                self._write(event_line(event))
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
        self._write_header()
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
    warn: Callable[[str], None] = lambda _: None,
    finish: Callable[[RunResult], None] = lambda _: None,
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Any] | None = None,
) -> host.Ending:
    """Run a script (or with `module` a module) as plain python would and diagnose its training.

    `steps` stops it after so many training steps. `say` takes the checkup line after the first sampled steps, `warn`
    what went wrong with the measuring; `finish` takes the result when the script has ended, for whatever reason.
    Returns how the script ended.
    """
    construction = Construction()
    log = Log(folder, argv=[target, *args], say=warn)
    monitor = Monitor(
        Names(construction),
        sink=log,
        max_steps=steps,
        on_failure=lambda text: warn(f"stopped measuring ({text}); the training goes on."),
    )
    log.monitor = monitor
    judged: dict[str, Any] = {"ignore": ignore, "thresholds": thresholds or {}}
    log.on_step = lambda: _checkup(log, say, **judged)

    def conclude(ending: host.Ending) -> None:
        monitor.remove()
        construction.off()
        run = log.close(ending)
        finish(RunResult(ending, run, diagnose(run, **judged)))

    def on_end(ending: host.Ending) -> None:
        record = f"; the record is in {folder}, `gradwell report` reads it" if folder is not None else ""
        try:
            conclude(ending)
        except KeyboardInterrupt:  # a second Ctrl-C: the script still ends as after the first
            warn(f"the diagnosis was interrupted{record}.")
        except Exception as problem:  # a fault of ours never changes how the script ends
            warn(f"the diagnosis failed ({type(problem).__name__}: {problem}){record}.")

    start = host.run_module if module else host.run_script
    construction.on()
    monitor.install()
    try:
        return start(target, args, on_end=on_end)
    finally:
        monitor.remove()
        construction.off()


def _checkup(log: Log, say: Callable[[str], None], **judged: Any) -> None:
    """One line after the first sampled steps."""
    if len(log.steps) == FIRST:
        say(f"checkup after {FIRST} steps: {render_line(diagnose(log.run(), **judged))}")


def _seed() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.initial_seed())
