"""`gradwell run`: an unmodified training script under the monitor, its record on disk, its diagnosis at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gradwell.journeys.diagnose import diagnose
from gradwell.journeys.live import Live
from gradwell.journeys.log import Log
from gradwell.probe import host
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Construction, Names
from gradwell.records.run import Run
from gradwell.records.verdict import Diagnosis


class RunResult(msgspec.Struct, frozen=True):
    """How a script ended, its record, and what was diagnosed."""

    ending: host.Ending
    run: Run
    diagnosis: Diagnosis


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

    `steps` stops it after so many training steps. `say` takes a line for each new finding and the checkup line after
    the first sampled steps, `warn` what went wrong with the measuring; `finish` takes the result when the script has
    ended, for whatever reason. Returns how the script ended.
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
    log.listen = Live(log, say=say, **judged)

    def conclude(ending: host.Ending) -> None:
        monitor.remove()
        construction.off()
        run = log.close(status=ending.status, reason=ending.reason)
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
