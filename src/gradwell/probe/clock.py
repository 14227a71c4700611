"""When a training step begins and ends, which steps are sampled, and what is hooked meanwhile.

A micro-step is a backward pass that writes gradients; a step is an optimizer step where an optimizer is seen, else
a micro-step. `torch.autograd.grad` is no step (PITFALLS P17). Layer hooks exist on sampled steps only. The sampler
takes the first steps, then steps at growing distance, then as many as the budget allows.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
import torch.autograd
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradwell.probe import sizes
from gradwell.probe.backward import Backward
from gradwell.probe.host import StopTraining
from gradwell.probe.losses import Losses, input_rms
from gradwell.probe.names import Names
from gradwell.probe.recorder import Recorder, Weights
from gradwell.probe.rescue import Rescue
from gradwell.probe.scope import Scope
from gradwell.probe.tape import Tape
from gradwell.records.run import Event, Step

PATCHED = (
    "torch.autograd._make_grads: replaced while watching; tells that a backward begins, and with which loss",
    "torch.nn.Module.__init__: replaced while a script runs; notes the line where a module is built",
    "torch.optim.Optimizer.__init__: replaced while watching; tells that steps are optimizer steps",
    "torch.amp.GradScaler.scale: replaced while watching; tells the loss scale",
    "global module hooks and a TorchFunctionMode: on sampled steps only",
    "global optimizer step hooks: count steps and measure updates",
    "torch.utils.checkpoint: replaced in the second pass of a checkup at level deep; its functions are only called",
)
"""All that is patched or hooked in the user's process."""

FIRST = 3
"""Steps at the start that are always sampled."""
PATIENCE = 256
"""Backward passes after which an optimizer that was found and has never stepped is taken for a forgotten one."""
OTHERS = 64
"""Backward passes of other models after which a tape that waits for its own model is taken off."""
ALLOWANCE = 1.0
"""Seconds that sampling may cost in any case, so that a short training is not judged by its first steps alone."""


class Monitor:
    """Watches a training from `install` to `remove` and hands finished steps and events to `sink`.

    `budget`: share of the training's time that sampling may cost. `every`: sample each so many steps instead.
    `max_steps`: raise `StopTraining` in the script after so many steps (`SystemExit` in a thread of its own). `scope`:
    count only the backward passes and optimizers of one model. `rescue`: turn an optimizer's step with non-finite
    gradients into no step.
    """

    def __init__(
        self,
        names: Names,
        *,
        sink: Callable[[Step | Event], None],
        budget: float = 0.01,
        every: int | None = None,
        max_steps: int | None = None,
        scope: Scope | None = None,
        rescue: bool = False,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.names = names
        self.recorder = Recorder(names)
        self.tape = Tape(names, on_failure=self._fail)
        self._losses = Losses()
        self._stranger: dict[str, Any] | None = None
        self._quiet_until = 0
        self._strangers = 0
        self.steps = 0
        self.micro_steps = 0
        self.sampled = 0
        self.spent = 0.0
        self._sink: Callable[[Step | Event], None] | None = sink
        self._on_failure = on_failure
        self._budget, self._every, self._max_steps = budget, every, max_steps
        self._owner = os.getpid()
        self._since = time.perf_counter()
        self._began: float | None = None
        self._in_step = 0
        self._next = 0
        self._gap = 1
        self._burst = 0
        self._backward: Backward | None = None
        self._pending: Step | None = None
        self._void = False  # the optimizer that stepped had nothing to step on, so that the pending step goes on
        self._weights: Weights | None = None
        self._scope = scope
        self._expecting = False
        self._others = 0  # backward passes outside the scope since the last one inside
        self._rescue = Rescue(told=self._rescued, refused=self._not_rescued) if rescue else None
        self.sampling = False
        self._sampled_since: tuple[int, int] | None = None  # the thread and its next autograd node
        self._scaler: weakref.ref[Any] | None = None
        self._handles: list[Any] = []
        self._told_nonfinite = False
        self._broken = False

    # ------------------------------------------------------------------ on and off

    def install(self) -> Monitor:
        """Start watching; the first step is sampled."""
        _switch(self, on=True)
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._sample()
        return self

    def remove(self) -> None:
        """Take everything off and hand over the step in flight."""
        _switch(self, on=False)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._leave_alone()
        if self._rescue is not None:
            self._rescue.restore()
        if self._backward is not None:
            self._backward.close()
            self._backward = None
        self._flush()
        self._timed(self._end_losses)

    def _sample(self) -> None:
        """The step that begins is sampled; the layers of a compiled model are not: hooks would break its graph."""
        if not self.sampling:
            self._sampled_since = threading.get_ident(), torch._C._autograd._get_sequence_nr()
        self.sampling = True
        if not self.tape.running and not (self._scope is not None and self._scope.is_compiled()):
            self.tape.start()

    def _leave_alone(self) -> None:
        self.sampling = False
        self.tape.stop()
        self.tape.clear()

    def knows(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps are this optimizer's steps from now on; an optimizer outside the scope is none of ours."""
        if os.getpid() == self._owner and self._is_ours(optimizer):
            self._timed(lambda: self.recorder.add_optimizer(optimizer))

    def expects_optimizer(self) -> None:
        """There is an optimizer that has not stepped yet: micro-steps before its first step are no steps."""
        self._expecting = True

    @property
    def _has_optimizer(self) -> bool:
        return self.recorder.has_optimizer or (self._expecting and self.micro_steps < PATIENCE)

    def scales(self, scaler: Any, loss: Any, scaled: Any) -> None:
        """The loss in flight is multiplied by this scaler."""
        self._scaler = weakref.ref(scaler)
        self._losses.scaled(loss, scaled)

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        try:
            return self._scope is None or self._scope.steps_by(optimizer)
        except Exception as problem:  # an optimizer of the user's own that has no groups like torch's
            self._fail(problem)
            return False

    def _take_scale(self) -> float | None:
        """The scale of the loss in flight, None for one that was not scaled."""
        scaler, self._scaler = self._scaler() if self._scaler is not None else None, None
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None

    @property
    def overhead(self) -> float | None:
        """Share of the training's time that went into measuring, None before the first backward."""
        if self._began is None:
            return None
        guarded = self._rescue.spent if self._rescue is not None else 0.0
        return (self.spent + guarded) / max(time.perf_counter() - self._began, 1e-9)

    def _fail(self, problem: BaseException) -> None:
        """The instrument never harms the patient: report once, measure no more, only count on."""
        self._broken = True
        self._pending = self._weights = None
        self.sampling = False
        self.tape.stop()
        backward, self._backward = self._backward, None
        if backward is not None:
            backward.close()
        text = f"{type(problem).__name__}: {problem}"
        if self._on_failure is not None:
            self._on_failure(text)
        self._hand_over(Event("instrument_failed", self.steps, {"problem": text}))

    def _hand_over(self, item: Step | Event) -> None:
        """To the sink; one that raises is told once and gets nothing more."""
        sink, self._sink = self._sink, None
        try:
            if sink is not None:
                sink(item)
                self._sink = sink
        except Exception as problem:
            self._fail(problem)

    # ------------------------------------------------------------------ backward

    def begins(self, outputs: Sequence[Tensor], caller: str = "backward") -> None:
        """A backward begins, not one inside another; the engine runs after this has returned."""
        if os.getpid() != self._owner:
            return
        start = time.perf_counter()
        try:
            if caller == "grad":  # no step (P17), but the loss of a step that has no backward
                self._losses.note_gradient(outputs)
            elif self._scope is None or self._scope.reached_by(outputs):
                self._others = 0
                self._backward_begins(outputs)
            else:
                self._another_model()
        except Exception as problem:
            self._fail(problem)
        self.spent += time.perf_counter() - start

    def _another_model(self) -> None:
        """Another model trains; a tape is not kept on for it for ever."""
        self._scaler = None
        self._others += 1
        if self._others == OTHERS and self.tape.running:
            self._leave_alone()
            self.trigger()

    def _backward_begins(self, outputs: Sequence[Tensor]) -> None:
        if self._began is None:
            self._began = time.perf_counter()
        if not self._has_optimizer:
            if self.micro_steps:
                self._losses.done(self.steps)
            self._flush()
            if self.micro_steps:
                self._step_done()
        elif self._void:
            self._void = False
            self._flush()
        self.micro_steps += 1
        self._in_step += 1
        loss = _loss_of(outputs)
        self._losses.note(outputs, loss)
        self._look_at_loss(outputs, loss)
        roots = [t for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None]
        ready = self.sampling and not self._broken and self._pending is None and bool(roots)
        if not (ready and self._measure(roots, loss)) and not self._has_optimizer:
            self._plan(self.steps + 1)

    def _measure(self, roots: Sequence[Tensor], loss: float | None) -> bool:
        """Hook this backward and take its record when it ends; False for one that the next is better than."""
        self.tape.stop()
        scale = self._take_scale()
        if self._backward is not None:  # the one before has raised on its way
            self._backward.close()
        backward = Backward(self.tape, roots)
        if self._came_late(backward):
            backward.close()
            self._burst += 1
            self._sample()
            return False
        self._backward = backward
        engine = torch.autograd.Variable._execution_engine

        def ends() -> None:
            # Re-queued once: the first callback may run before DDP has averaged the gradients (PITFALLS P10).
            engine.queue_callback(lambda: self._timed(lambda: self._backward_ends(backward, loss, scale)))

        node: Any = roots[0].grad_fn

        def begins(*_: Any) -> None:
            handle.remove()
            engine.queue_callback(ends)

        # Taken off with the others where this backward never runs: a hook that holds its own graph is a leak (P4).
        handle = backward.keep(node.register_prehook(begins))
        return True

    def _came_late(self, backward: Backward) -> bool:
        """Whether sampling began in the middle of this forward pass: a GAN's fake is made before the judge's step."""
        since, self._sampled_since = self._sampled_since, None
        if since is None or since[0] != threading.get_ident():  # each thread counts its own nodes
            return False
        return min(backward.graph.nodes) < since[1]

    def _look_at_loss(self, outputs: Sequence[Tensor], loss: float | None) -> None:
        """What this batch was, where its loss is not finite or stands far out; the next steps are sampled."""
        if loss is not None and not math.isfinite(loss):
            self._tell_nonfinite(self.steps, {"loss": loss}, outputs)
        elif self.steps >= self._quiet_until and (usual := self._losses.usual_if_far()) is not None:
            self._stranger = {"loss": self._losses.last, "usual": usual, "input_rms": input_rms(outputs)}
            self._quiet_until = self.steps + 10 * 2**self._strangers
            self._strangers += 1
            self.trigger()
            self._next, self._gap = 0, 1  # what it has done shows within some steps: sampling begins again

    def _tell_nonfinite(self, step: int, detail: dict[str, Any], outputs: Sequence[Tensor] = ()) -> None:
        told, self._told_nonfinite = self._told_nonfinite, True
        if not told:
            self._hand_over(Event("nonfinite_loss", step, {**detail, "input_rms": input_rms(outputs)}))
            self.trigger()

    def _hand_over_losses(self) -> None:
        losses = self._losses.take()
        if losses is None or self._broken:
            return
        self._hand_over(losses)
        for step, loss in enumerate(losses.detail["values"], start=losses.step):
            if loss is not None and not math.isfinite(loss):  # on an accelerator it is known now
                self._tell_nonfinite(step, {"loss": loss})
                break

    def _end_losses(self) -> None:
        if os.getpid() != self._owner:
            return
        if self._losses.in_flight and len(self.recorder.optimizers) < 2:
            self._losses.done(self.steps)
        self._hand_over_losses()

    def _timed(self, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        try:
            work()
        except Exception as problem:
            self._fail(problem)
        self.spent += time.perf_counter() - start

    def _backward_ends(self, backward: Backward, loss: float | None, scale: float | None) -> None:
        if self._backward is not backward:
            return
        self._backward = None
        backward.finish()
        reached = {id(p) for p in backward.parameters}
        stepped = [p for o in self.recorder.optimizers for g in o.param_groups for p in g["params"]]
        named = [p for p in self.names.parameters() if id(p) in reached]
        self.recorder.add_parameters([*named, *backward.parameters, *stepped])
        elapsed = time.perf_counter() - self._since
        self._pending = self.recorder.step(backward, self.steps, loss=loss, loss_scale=scale, time_s=round(elapsed, 6))
        if not self._has_optimizer:
            self._weights = Weights(self.recorder.tensors)
            self._plan(self.steps + 1)

    # ------------------------------------------------------------------ step

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if os.getpid() != self._owner or not self._is_ours(optimizer):
            return None
        self.recorder.add_optimizer(optimizer)
        self._losses.optimizer_begins()
        if self._stranger is not None:
            self._timed(lambda: self._measure_stranger(optimizer))
        if self._pending is not None or self.sampling:
            self._timed(self._copy_weights)
        return self._rescue.before(optimizer, args, kwargs) if self._rescue is not None else None

    def _rescued(self, parameters: Sequence[Tensor]) -> None:
        names = [self.names.parameter(parameter)[0] for parameter in parameters]
        self._hand_over(Event("rescue", self.steps, {"skipped": "optimizer step", "parameters": names}))

    def _not_rescued(self, reason: str) -> None:
        self._hand_over(Event("not_rescued", self.steps, {"reason": reason}))

    def _measure_stranger(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad.detach() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if self._stranger is not None:
            self._stranger["grad_norm"] = math.hypot(*sizes.l2_all(grads)) if grads else None

    def _copy_weights(self) -> None:
        stepped = [p for o in self.recorder.optimizers for g in o.param_groups for p in g["params"]]
        self.recorder.add_parameters([p for p in stepped if isinstance(p, Tensor)])
        self._weights = Weights(self.recorder.tensors)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if os.getpid() != self._owner or not self._is_ours(optimizer):
            return
        if self._rescue is not None:
            self._rescue.after(optimizer)
        self._losses.done(self.steps, self.recorder.number_of(optimizer))
        self._void = self._pending is not None and len(self.recorder.optimizers) > 1 and not _has_gradients(optimizer)
        if not self._void:  # another one may step on the gradients of this backward
            self._timed(self._flush)
        self._step_done()

    def _flush(self) -> None:
        """Complete the step in flight with its updates and hand it over."""
        step, self._pending = self._pending, None
        weights, self._weights = self._weights, None
        if step is None:
            return
        if weights is not None:
            step = self.recorder.with_updates(step, weights.update_norms())
        self.sampled += 1
        self._hand_over_losses()  # first: whoever looks at the step knows all losses up to it
        self._hand_over(msgspec.structs.replace(step, micro_steps=max(self._in_step, 1)))

    def _step_done(self) -> None:
        stranger, self._stranger = self._stranger, None
        if stranger is not None and not self._broken:
            self._hand_over(Event("unusual_loss", self.steps, stranger))
        if self._losses.full:
            self._timed(self._hand_over_losses)
        self.steps += 1
        self._in_step = 0
        if not self._handles:
            return
        if self._has_optimizer:
            self._plan(self.steps)
        if self._max_steps is not None and self.steps >= self._max_steps:
            _stop()

    def _plan(self, step: int) -> None:
        """Decide whether a step is sampled, before its forward pass.

        Without an optimizer a step ends when the next backward begins, and that one's forward pass has gone by: the
        next step is planned as soon as the backward of this one is known.
        """
        if not self._handles:
            return
        wanted = self._wanted(step)
        self.tape.turn_over()
        if wanted:
            self._sample()
        else:
            self._leave_alone()

    def _wanted(self, step: int) -> bool:
        """Whether the step that begins is sampled. Two optimizers (a GAN) get two steps in a row."""
        if self._broken:
            return False
        if self._burst > 0:
            self._burst -= 1
            return True
        if self._every is not None:
            wanted = step % self._every == 0
        elif step < FIRST * max(len(self.recorder.optimizers), 1):
            wanted = True
        elif step < self._next:
            return False
        else:
            cost = self.spent / max(self.sampled, 1)
            elapsed = time.perf_counter() - (self._began or self._since)
            wanted = self.spent + cost < max(self._budget * elapsed, ALLOWANCE)
            if self.spent + cost > self._budget * elapsed:
                self._gap = max(self._gap + 1, int(self._gap * 1.6))
            self._next = step + self._gap
        if wanted:
            self._burst = max(len(self.recorder.optimizers), 1) - 1
        return wanted

    def trigger(self) -> None:
        """Sample the next steps whatever they cost."""
        self._burst = max(self._burst, 2)


class _Patch:
    """One function of torch's and what stands in for it while a monitor is on.

    torch._dynamo keeps what it finds in torch's namespace for ever, so nothing that stands in holds a monitor.
    """

    def __init__(self, owner: Any, name: str, stand_in: Callable[..., Any]) -> None:
        self.owner, self.name, self.stand_in = owner, name, stand_in
        self.original: Callable[..., Any] = getattr(owner, name)
        self._on = False

    def put_on(self) -> None:
        if not self._on:
            self.original, self._on = getattr(self.owner, self.name), True
            setattr(self.owner, self.name, self.stand_in)

    def take_off(self) -> None:
        """Where somebody has put a patch of theirs over ours, both stay and ours only passes on."""
        if self._on and getattr(self.owner, self.name) is self.stand_in:
            setattr(self.owner, self.name, self.original)
            self._on = False


_MONITORS: list[Monitor] = []
"""The monitors that are on."""


def _switch(monitor: Monitor, *, on: bool) -> None:
    """The first monitor puts the patches on, the last takes them off."""
    others = [other for other in _MONITORS if other is not monitor]
    _MONITORS[:] = [*others, monitor] if on else others
    for patch in (_MAKE_GRADS, _OPTIMIZER, _SCALER):
        patch.put_on() if _MONITORS else patch.take_off()


def _make_grads(outputs: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
    """Stands in for torch's own; it is called, and has returned, before the engine runs."""
    made = _MAKE_GRADS.original(outputs, *args, **kwargs)  # first: it raises where there is no scalar
    caller = sys._getframe(1).f_code.co_name
    if caller in ("backward", "grad") and torch._C._current_graph_task_id() == -1:
        for monitor in tuple(_MONITORS):
            monitor.begins(outputs, caller)
    return made


def _optimizer_init(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
    """Know every optimizer from its construction on: micro-steps before its first step are no steps."""
    _OPTIMIZER.original(optimizer, *args, **kwargs)
    for monitor in tuple(_MONITORS):
        monitor.knows(optimizer)


def _scale(scaler: Any, outputs: Any) -> Any:
    """Know the scaler that has multiplied the loss of this step."""
    scaled = _SCALER.original(scaler, outputs)
    for monitor in tuple(_MONITORS):
        monitor.scales(scaler, outputs, scaled)
    return scaled


_MAKE_GRADS = _Patch(torch.autograd, "_make_grads", _make_grads)
_OPTIMIZER = _Patch(torch.optim.Optimizer, "__init__", _optimizer_init)
_SCALER = _Patch(torch.amp.GradScaler, "scale", _scale)


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has anything to step on; gradients may have been set to None by its step's hooks."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _stop() -> None:
    """End the training in this thread; any other than the main one as `sys.exit` would, without a traceback."""
    if threading.current_thread() is threading.main_thread():
        raise StopTraining
    raise SystemExit from StopTraining()


def _loss_of(outputs: Sequence[Tensor]) -> float | None:
    """The loss as a number; not read from an accelerator, where that would wait for it."""
    first = outputs[0] if len(outputs) else None
    if isinstance(first, Tensor) and first.numel() == 1 and not first.is_complex() and first.device.type == "cpu":
        return float(first.detach().item())
    return None
