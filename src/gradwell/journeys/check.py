"""`gradwell check`: a checkup of a model on one batch that leaves no trace."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import NotMeasurable, UsageError
from gradwell.journeys.deep import deepen
from gradwell.journeys.diagnose import diagnose
from gradwell.probe.backward import Backward
from gradwell.probe.modules import modules_of, parameters_of
from gradwell.probe.names import Construction, Names
from gradwell.probe.preserve import preserved, set_aside
from gradwell.probe.recorder import Recorder, Weights
from gradwell.probe.tape import Tape
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Diagnosis

LossFn = Callable[[Any, Any], Tensor]
LEVELS = ("flow", "deep")


def check(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer | None = None,
    level: str = "flow",
    *,
    construction: Construction | None = None,
    ignore: Sequence[str] = (),
    thresholds: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Diagnose a model from one forward and backward pass on one batch.

    `loss_fn(model, batch)` returns a scalar tensor. With an `optimizer` (over the model's parameters) its step on a
    copy gives the update ratio, and severities are those of that optimizer. Afterwards `.grad`, modes, buffers,
    hooks and random numbers are as before. Raises `NotMeasurable` when there is no gradient to measure; an
    exception in the model is the model's own and passes through.

    Level "deep" runs the model some more times and adds what `journeys.deep` measures: who shrinks the gradient on any
    graph, gains of random gradients, signal to noise, rank. What it cannot measure is in `not_checked`.

    When not to use it: symptoms that need time (a learning rate too high, a plateau) show only in `gradwell run`.
    """
    run = measure(model, batch, loss_fn, optimizer, level=level, construction=construction)
    return diagnose(run, ignore=ignore, thresholds=thresholds or {})


def measure(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    level: str = "flow",
    construction: Construction | None = None,
) -> Run:
    """The record of one pass, a run of one step that lives in memory."""
    if level not in LEVELS:
        raise UsageError(f"level must be 'flow' or 'deep', found {level!r}.")
    names = Names(construction)
    names.root(model, "")
    recorder = Recorder(names)
    if optimizer is not None:
        recorder.add_optimizer(optimizer)
    with preserved(model):
        started = time.perf_counter()
        step = _one_pass(model, batch, loss_fn, optimizer, names, recorder, started)
    header = recorder.header(argv=sys.argv, started=time.strftime("%Y-%m-%dT%H:%M:%S"))
    run = Run(header, [step], overhead=None)
    return deepen(run, recorder, model, batch, loss_fn) if level == "deep" else run


def _one_pass(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer | None,
    names: Names,
    recorder: Recorder,
    started: float,
) -> Step:
    tape = Tape(names)
    with torch.enable_grad():
        tape.start()
        try:
            loss = loss_fn(model, batch)
        finally:
            tape.stop()
        _require_scalar(loss)
        backward = Backward(tape, [loss])
        with set_aside(backward.leaves):
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            finally:
                backward.close()
            backward.finish()
            trained = [p for p in parameters_of(modules_of(model)) if p.requires_grad]
            stepped = [p for g in (optimizer.param_groups if optimizer is not None else ()) for p in g["params"]]
            recorder.add_parameters([*trained, *backward.parameters, *stepped])
            seconds = round(time.perf_counter() - started, 6)
            step = recorder.step(backward, 0, loss=loss.item(), time_s=seconds)
            return _with_update(step, optimizer, recorder)


def _require_scalar(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise NotMeasurable(
            f"loss_fn must return a scalar tensor, found {type(loss).__name__}; "
            "return the loss itself, not `loss.item()`."
        )
    if loss.numel() != 1:
        raise NotMeasurable(
            f"loss_fn must return a scalar tensor, found shape {tuple(loss.shape)}; reduce it with .mean() or .sum()."
        )
    if not loss.requires_grad:
        raise NotMeasurable(
            "The loss needs no gradient: no parameter with requires_grad=True leads to it; "
            "check for torch.no_grad(), .detach() and frozen parameters."
        )


def _with_update(step: Step, optimizer: torch.optim.Optimizer | None, recorder: Recorder) -> Step:
    """Add the update of one optimizer step, taken on a copy that reuses the gradients."""
    if optimizer is None or isinstance(optimizer, torch.optim.LBFGS):
        return step
    memo: dict[int, Any] = {}
    try:
        twin = copy.deepcopy(optimizer, memo)
    except Exception:  # an optimizer of the user's own that cannot be copied: no update ratio
        return step
    tensors = [tensor for tensor in recorder.tensors if tensor is not None]
    copies = [memo.get(id(p), p) for p in tensors]
    for parameter, mirror in zip(tensors, copies, strict=True):
        if mirror is not parameter:
            mirror.grad = parameter.grad
    before = Weights([])
    before.parameters, before.before = list(copies), [p.detach() for p in tensors]
    try:
        twin.step()
    except Exception:  # SAM and its kin keep parts that a copy loses, or want a closure
        return step
    return recorder.with_updates(step, before.update_norms())
