"""When a training step begins and ends, which steps are sampled, and what is hooked meanwhile.

A micro-step is a backward pass that writes gradients; a step is an optimizer step where an optimizer is seen, else
a micro-step. `torch.autograd.grad` is no step (PITFALLS P17). Layer hooks exist on sampled steps only. The sampler
takes the first steps, then steps at growing distance, then as many as the budget allows.
"""

from __future__ import annotations

import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
import torch.autograd
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradwell.probe.backward import Backward
from gradwell.probe.host import StopTraining
from gradwell.probe.names import Names
from gradwell.probe.recorder import Recorder, Weights
from gradwell.probe.tape import Tape
from gradwell.records.run import Event, Step

PATCHED = (
    "torch.autograd._make_grads: replaced while a script runs; tells that a backward begins, and with which loss",
    "torch.nn.Module.__init__: replaced while a script runs; notes the line where a module is built",
    "torch.optim.Optimizer.__init__: replaced while a script runs; tells that steps are optimizer steps",
    "torch.amp.GradScaler.scale: replaced while a script runs; tells the loss scale",
    "global module hooks and a TorchFunctionMode: on sampled steps only",
    "global optimizer step hooks: count steps and measure updates",
)
"""All that is patched or hooked in the user's process."""

FIRST = 3
"""Steps at the start that are always sampled."""
ALLOWANCE = 1.0
"""Seconds that sampling may cost in any case, so that a short training is not judged by its first steps alone."""


class Monitor:
    """Watches a training from `install` to `remove` and hands finished steps and events to `sink`.

    `budget`: share of the training's time that sampling may cost. `every`: sample each so many steps instead.
    `max_steps`: raise `StopTraining` in the script after so many steps.
    """

    def __init__(
        self,
        names: Names,
        *,
        sink: Callable[[Step | Event], None],
        budget: float = 0.01,
        every: int | None = None,
        max_steps: int | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.names = names
        self.recorder = Recorder(names)
        self.tape = Tape(names, on_failure=self._fail)
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
        self._weights: Weights | None = None
        self._original: Callable[..., Any] | None = None
        self._optimizer_init: Callable[..., Any] | None = None
        self._scaler_scale: Callable[..., Any] | None = None
        self._scaler: weakref.ref[Any] | None = None
        self._handles: list[Any] = []
        self._told_nonfinite = False
        self._broken = False

    # ------------------------------------------------------------------ on and off

    def install(self) -> Monitor:
        """Start watching; the first step is sampled."""
        self._original = torch.autograd._make_grads
        torch.autograd._make_grads = _stand_in(weakref.ref(self))
        self._watch_optimizers()
        self._watch_scaler()
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self.tape.start()
        return self

    def remove(self) -> None:
        """Take everything off and hand over the step in flight."""
        if self._original is not None:
            torch.autograd._make_grads = self._original
            self._original = None
        if self._scaler_scale is not None:
            torch.amp.GradScaler.scale = self._scaler_scale  # type: ignore[method-assign]
            self._scaler_scale = None
        if self._optimizer_init is not None:
            torch.optim.Optimizer.__init__ = self._optimizer_init  # type: ignore[method-assign]
            self._optimizer_init = None
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.tape.stop()
        if self._backward is not None:
            self._backward.close()
            self._backward = None
        self._flush()

    def _watch_optimizers(self) -> None:
        """Know every optimizer from its construction on: micro-steps before its first step are no steps."""
        original = torch.optim.Optimizer.__init__
        monitor = self

        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (stands in)
            original(optimizer, *args, **kwargs)
            monitor.recorder.add_optimizer(optimizer)

        self._optimizer_init = original
        torch.optim.Optimizer.__init__ = __init__  # type: ignore[method-assign,assignment]

    def _watch_scaler(self) -> None:
        """Know the scaler that has multiplied the loss of this step."""
        original = torch.amp.GradScaler.scale
        monitor = weakref.ref(self)

        def scale(scaler: Any, outputs: Any) -> Any:
            alive = monitor()
            if alive is not None:
                alive._scaler = weakref.ref(scaler)
            return original(scaler, outputs)

        self._scaler_scale = original
        torch.amp.GradScaler.scale = scale  # type: ignore[method-assign,assignment]

    def _take_scale(self) -> float | None:
        """The scale of the loss in flight, None for one that was not scaled."""
        scaler, self._scaler = self._scaler() if self._scaler is not None else None, None
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None

    @property
    def overhead(self) -> float | None:
        """Share of the training's time that went into measuring, None before the first backward."""
        if self._began is None:
            return None
        return self.spent / max(time.perf_counter() - self._began, 1e-9)

    def _fail(self, problem: BaseException) -> None:
        """The instrument never harms the patient: report once, measure no more, only count on."""
        self._broken = True
        self._pending = self._weights = None
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

    def _make_grads(self, outputs: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Stands in for torch's own; it is called, and has returned, before the engine runs."""
        made = _original_make_grads(outputs, *args, **kwargs)  # first: it raises where there is no scalar
        caller = sys._getframe(2).f_code.co_name
        if caller == "backward" and os.getpid() == self._owner and torch._C._current_graph_task_id() == -1:
            start = time.perf_counter()
            try:
                self._backward_begins(outputs)
            except Exception as problem:
                self._fail(problem)
            self.spent += time.perf_counter() - start
        return made

    def _backward_begins(self, outputs: Sequence[Tensor]) -> None:
        if self._began is None:
            self._began = time.perf_counter()
        if not self.recorder.has_optimizer:
            self._flush()
            if self.micro_steps:
                self._step_done()
        self.micro_steps += 1
        self._in_step += 1
        loss = _loss_of(outputs)
        if loss is not None and not math.isfinite(loss) and not self._told_nonfinite:
            self._told_nonfinite = True
            self._hand_over(Event("nonfinite_loss", self.steps, {"loss": loss}))
            self._trigger()
        if self._broken or not self.tape.running or self._pending is not None:
            return
        roots = [t for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None]
        if not roots:
            return
        self.tape.stop()
        scale = self._take_scale()
        if self._backward is not None:  # the one before has raised on its way
            self._backward.close()
        backward = Backward(self.tape, roots)
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
        if not self.recorder.has_optimizer:
            self._weights = Weights(self.recorder.tensors)

    # ------------------------------------------------------------------ step

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if os.getpid() != self._owner:
            return
        self.recorder.add_optimizer(optimizer)
        if self._pending is not None or self.tape.running:
            self._timed(self._copy_weights)

    def _copy_weights(self) -> None:
        stepped = [p for o in self.recorder.optimizers for g in o.param_groups for p in g["params"]]
        self.recorder.add_parameters([p for p in stepped if isinstance(p, Tensor)])
        self._weights = Weights(self.recorder.tensors)

    def _after_step(self, _optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if os.getpid() != self._owner:
            return
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
        self._hand_over(msgspec.structs.replace(step, micro_steps=max(self._in_step, 1)))

    def _step_done(self) -> None:
        self.steps += 1
        self._in_step = 0
        if self._original is None:
            return
        wanted = self._wanted()
        self.tape.turn_over()
        if wanted and not self.tape.running:
            self.tape.start()
        elif not wanted:
            self.tape.stop()
            self.tape.clear()
        if self._max_steps is not None and self.steps >= self._max_steps:
            raise StopTraining

    def _wanted(self) -> bool:
        """Whether the step that begins now is sampled. Two optimizers (a GAN) get two steps in a row."""
        if self._broken:
            return False
        if self._burst > 0:
            self._burst -= 1
            return True
        if self._every is not None:
            wanted = self.steps % self._every == 0
        elif self.steps < FIRST * max(len(self.recorder.optimizers), 1):
            wanted = True
        elif self.steps < self._next:
            return False
        else:
            cost = self.spent / max(self.sampled, 1)
            elapsed = time.perf_counter() - (self._began or self._since)
            wanted = self.spent + cost < max(self._budget * elapsed, ALLOWANCE)
            if self.spent + cost > self._budget * elapsed:
                self._gap = max(self._gap + 1, int(self._gap * 1.6))
            self._next = self.steps + self._gap
        if wanted:
            self._burst = max(len(self.recorder.optimizers), 1) - 1
        return wanted

    def _trigger(self) -> None:
        """Sample the next steps whatever they cost."""
        self._burst = max(self._burst, 2)


def _stand_in(monitor: weakref.ref[Monitor]) -> Callable[..., Any]:
    """Stands in for torch's own. torch._dynamo keeps what it finds in torch's namespace for ever, so the monitor is
    held weakly.
    """

    def _make_grads(outputs: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        alive = monitor()
        if alive is None:
            return _original_make_grads(outputs, *args, **kwargs)
        return alive._make_grads(outputs, *args, **kwargs)

    return _make_grads


_original_make_grads = torch.autograd._make_grads


def _loss_of(outputs: Sequence[Tensor]) -> float | None:
    """The loss as a number; not read from an accelerator, where that would wait for it."""
    first = outputs[0] if len(outputs) else None
    if isinstance(first, Tensor) and first.numel() == 1 and not first.is_complex() and first.device.type == "cpu":
        return float(first.detach().item())
    return None
