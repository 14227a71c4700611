"""`gw.watch`: a model's training under the monitor, from inside the user's own code."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradwell.errors import NotMeasurable, UsageError
from gradwell.journeys.diagnose import diagnose
from gradwell.journeys.live import Live
from gradwell.journeys.log import Item, Log
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Names
from gradwell.probe.rescue import can_guard
from gradwell.probe.scope import Scope
from gradwell.records.run import Event, Run
from gradwell.records.verdict import Diagnosis, Finding
from gradwell.report import notebook

Sink = Callable[[Any], object]
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


def watch(
    model: nn.Module,
    optimizer: Optimizers = None,
    *,
    budget: float = 0.01,
    every: int | None = None,
    log: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    rescue: bool = False,
) -> Watch:
    """Watch a model's training until `stop()` or the end of the `with` block; each new finding is a line on stderr.

    `optimizer`: one or a sequence; left out, those of this process that hold the model's parameters are found, and
    later ones are noticed. Other models in the process are left alone; several watches may be on at once. The losses
    of the training are bit for bit those without a watch. A compiled model (torch.compile) is watched by its
    parameters only: hooks inside would break its graph.

    `budget`: share of the training's time that measuring may cost; `every`: sample each so many steps instead.
    `log`: a folder for `run.jsonl` while the training runs, `diagnosis.json` and `report.html` at its end. `sinks`:
    each is called with every sampled `Step`, every `Event` and every new `Finding`; one that raises is told once and
    dropped. Memory keeps up to 1,000 sampled steps, older ones thinned; the file holds all.

    `rescue=True` protects the training: an optimizer's step with a NaN or an infinity in a gradient becomes no step
    (weights and the optimizer's own state stay as they are, an `Event("rescue", ...)` is recorded). It looks at all
    gradients before every step. What the forward pass has spoiled itself, such as the running statistics of a batch
    norm, it does not mend; a learning rate schedule goes on counting. It cannot guard LBFGS.

    Raises `UsageError` for options that cannot be meant, `NotMeasurable` for a model without parameters.
    """
    given = _optimizers(optimizer)
    _refuse_options(budget, every, rescue=rescue)
    scope = _scope(model, given)
    found = [] if given else scope.optimizers()
    if rescue:
        _refuse_unguarded(given or found)
    settings: dict[str, Any] = {"budget": budget, "every": every, "rescue": rescue, "expecting": bool(found)}
    return Watch(scope, given, folder=_folder(log), sinks=_sinks(sinks), **settings)


class Watch:
    """A training that is being watched. `print(watch.diagnose())` at any time; in a notebook it shows itself."""

    def __init__(
        self,
        scope: Scope,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        budget: float,
        every: int | None,
        folder: Path | None,
        sinks: Sequence[Sink],
        rescue: bool,
        expecting: bool,
    ) -> None:
        names = Names()
        for module in _inner_first(scope.model):
            names.root(module, "")
        self._owner = os.getpid()
        self._log = Log(folder, argv=sys.argv, say=_say)
        self._sinks = list(sinks)
        self._live = Live(self._log, say=_say, found=self._send)
        self._ended: Run | None = None
        self._monitor = Monitor(
            names,
            sink=self._log,
            budget=budget,
            every=every,
            scope=scope,
            rescue=rescue,
            on_failure=lambda text: _say(f"stopped measuring ({text}); the training goes on."),
        )
        self._log.monitor = self._monitor
        self._log.listen = self._hear
        for optimizer in optimizers:
            self._monitor.knows(optimizer)
        if expecting:
            self._monitor.expects_optimizer()
        self._monitor.install()
        atexit.register(self.stop)

    @property
    def run(self) -> Run:
        """The record as it stands."""
        return self._ended or self._log.run()

    def diagnose(self, **options: Any) -> Diagnosis:
        """The diagnosis as of now; `ignore` and `thresholds` as in `Run.diagnose`."""
        return diagnose(self.run, **options)

    def stop(self) -> None:
        """End the watch and complete the record; nothing of ours stays. May be called again."""
        self._stop("stopped")

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._stop("finished" if kind is None else "interrupted" if interrupted else "exception")

    def _stop(self, reason: str) -> None:
        if self._ended is not None or os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        try:
            self._monitor.remove()
            self._live.end()
            self._ended = self._log.close(status=int(reason == "exception"), reason=reason)
            if self._log.folder is not None:
                self._write(self._log.folder)
        except Exception as problem:  # a fault of ours never changes how the training ends
            self._ended = self._ended or self._log.run()
            record = f"; `gradwell report {self._log.folder}` reads the record" if self._log.folder is not None else ""
            _say(f"the end of the watch failed ({type(problem).__name__}: {problem}){record}.")

    def _write(self, folder: Path) -> None:
        from gradwell.journeys import report

        report.write_results(self.diagnose(), folder, run=self.run, say=_say)

    def _hear(self, item: Item) -> None:
        if isinstance(item, Event) and item.event == "not_rescued":
            _say(item.detail["reason"])
        self._send(item)
        self._live(item)

    def _send(self, item: Item | Finding) -> None:
        """To every sink; one that raises is told once and gets nothing more."""
        for sink in tuple(self._sinks):
            try:
                sink(item)
            except Exception as problem:
                self._sinks.remove(sink)
                name = getattr(sink, "__name__", type(sink).__name__)
                _say(f"the sink {name} raised {type(problem).__name__}: {problem}; it gets nothing more.")

    def __str__(self) -> str:
        return str(self.diagnose())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return notebook.run_mimebundle(self.run)


# What was asked for.


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    several = [] if given is None else [given] if not isinstance(given, (list, tuple)) else list(given)
    for item in several:
        if not isinstance(item, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer must be a torch.optim.Optimizer or a sequence of them, found {type(item).__name__}; "
                "leave it out to have it noticed at its first step."
            )
    return several


def _scope(model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> Scope:
    if not isinstance(model, nn.Module):
        raise UsageError(f"watch needs a torch.nn.Module, found {type(model).__name__}; pass the model itself.")
    if next(model.parameters(), None) is None:
        raise NotMeasurable(
            f"{type(model).__name__} has no parameters: there is nothing to watch; build its layers before watching."
        )
    scope = Scope(model)
    for optimizer in optimizers:
        if not scope.steps_by(optimizer):
            raise UsageError(
                f"This {type(optimizer).__name__} holds no parameter of the {type(model).__name__} to be watched; "
                "pass the optimizer that was built from model.parameters()."
            )
    return scope


def _refuse_options(budget: Any, every: Any, *, rescue: Any) -> None:
    if not _is_number(budget) or not 0 < budget <= 1:
        raise UsageError(f"budget is a share of the training's time, above 0 and at most 1, found {budget!r}.")
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise UsageError(f"every is a whole number of steps, at least 1, found {every!r}; leave it out for a budget.")
    if not isinstance(rescue, bool):
        raise UsageError(f"rescue is True or False, found {rescue!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_unguarded(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        if not can_guard(optimizer, closure=False):
            raise UsageError(
                f"rescue=True cannot guard {type(optimizer).__name__}: its step runs many backward passes of its own; "
                "leave rescue out or use another optimizer."
            )


def _sinks(given: Any) -> list[Sink]:
    several = [given] if callable(given) else list(given)
    for sink in several:
        if not callable(sink):
            raise UsageError(
                f"A sink is called with every Step, Event and Finding; {type(sink).__name__} is no callable."
            )
    return several


def _folder(log: str | Path | None) -> Path | None:
    if log is None:
        return None
    from gradwell.journeys.report import new_folder

    if Path(log).exists() and not Path(log).is_dir():
        raise UsageError(f"log must be a folder, found the file {log}; name a folder.")
    try:
        return new_folder("watch", str(log), say=_say)
    except UsageError:
        raise UsageError(f"Cannot make the folder {log}; name another one as log.") from None


def _inner_first(model: nn.Module | None) -> list[nn.Module]:
    """A model and what it is wrapped in (DataParallel, DDP, torch.compile), the innermost first: names of layers do
    not begin with `module.` or `_orig_mod.`.
    """
    chain: list[nn.Module] = []
    while isinstance(model, nn.Module) and len(chain) < 8:
        chain.insert(0, model)
        wrapped = type(model).__module__.startswith("torch.") and type(model).__name__ in _WRAPPERS
        model = model._modules.get("_orig_mod", model._modules.get("module")) if wrapped else None
    return chain


_WRAPPERS = {"DataParallel", "DistributedDataParallel", "OptimizedModule", "FullyShardedDataParallel"}


def _say(text: str) -> None:
    """A line to the person at the terminal; a stream that is closed or full takes nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"gradwell: {text}", file=sys.stderr, flush=True)
