"""The loss of every step, of sampled steps and of those between.

A loss on the CPU is read when its backward begins. Reading one from an accelerator would wait for it, so that copies
stay there until the next sampled step, or until there are `MOST`, and come over in one transfer.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwell.probe import sizes
from gradwell.probe.backward import saved
from gradwell.probe.graph import Graph
from gradwell.records.run import Event

MOST = 256
"""Steps, and losses left on an accelerator, after which a line is written though no step was sampled."""
FAR = 10.0
"""Usual distances from the running mean at which a loss stands out."""
KNOWN = 10
"""Losses of an optimizer from which on its usual distance is believed."""
MEMORY = 0.1
"""Weight of the newest loss in the running mean."""

Part = float | Tensor


class Losses:
    """Collects the losses of each step until they are asked for.

    A step's loss is the mean over its backward passes; of those that an optimizer asks for within its step (LBFGS) the
    first one counts, since it belongs to the weights before the step.
    """

    def __init__(self) -> None:
        self._parts: list[Part | None] = []
        self._steps: list[list[Part | None]] = []
        self._optimizers: list[int] = []
        self._first = 0
        self._waiting = 0
        self._before: int | None = None
        self._gradient: Tensor | None = None
        self._scaled: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._watches: dict[int, Watch] = {}

    # ------------------------------------------------------------------ within a step

    def scaled(self, loss: Any, scaled: Any) -> None:
        """A loss scaler has made `scaled` from `loss`: the loss is recorded without the scale."""
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor):
            self._scaled = weakref.ref(scaled), loss.detach()

    def note(self, outputs: Sequence[Tensor], value: float | None) -> None:
        """A backward from these outputs begins; `value`: the first of them, None where reading it would wait."""
        part: Part | None = value
        if self._scaled is not None:
            made, unscaled = self._scaled
            # a sum of scaled losses: nobody knows its size
            part = _read(unscaled) if len(outputs) and made() is outputs[0] else None
        elif value is None and len(outputs):
            part = _read(outputs[0])
        self._waiting += isinstance(part, Tensor)
        self._parts.append(part)

    def note_gradient(self, outputs: Sequence[Tensor]) -> None:
        """`torch.autograd.grad` is asked for a scalar: the loss of a step that has no backward."""
        first = outputs[0] if len(outputs) else None
        plain = type(first) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(first)
        if first is not None and plain and first.numel() == 1 and not self._parts:
            self._gradient = first.detach()

    def optimizer_begins(self) -> None:
        """Backward passes from now until the step is done are the optimizer's own."""
        self._before = len(self._parts)

    @property
    def last(self) -> float | None:
        """The newest loss, None where it has not been read."""
        part = self._parts[-1] if self._parts else None
        return part if isinstance(part, float) else None

    def usual_if_far(self) -> float | None:
        """The usual loss where the newest one is far above that of each optimizer, else None."""
        last = self.last
        if last is None or not self._watches or not all(watch.is_far(last) for watch in self._watches.values()):
            return None
        return max(watch.mean for watch in self._watches.values())

    # ------------------------------------------------------------------ between steps

    def done(self, step: int, optimizer: int = 0) -> None:
        """The step is over; `optimizer` has taken it."""
        if not self._parts and self._gradient is not None:
            self._parts.append(_read(self._gradient))
        if not self._steps:
            self._first = step
        own = [] if self._before is None else self._parts[self._before : self._before + 1]
        parts = own or self._parts
        self._steps.append(parts)
        self._optimizers.append(optimizer)
        self._parts, self._before, self._gradient, self._scaled = [], None, None, None
        if len(parts) == 1 and isinstance(parts[0], float):
            self._watches.setdefault(optimizer, Watch()).add(parts[0])

    @property
    def in_flight(self) -> bool:
        """True where a backward was seen and its step is not over."""
        return bool(self._parts)

    @property
    def full(self) -> bool:
        """True when it is time to write a line."""
        return len(self._steps) >= MOST or self._waiting >= MOST

    def take(self) -> Event | None:
        """All steps since the last time as an event, None where there was none."""
        if not self._steps:
            return None
        here = _transfer([part for parts in self._steps for part in parts])
        values = [_mean([here.get(id(part)) if isinstance(part, Tensor) else part for part in p]) for p in self._steps]
        detail: dict[str, Any] = {"values": values}
        if any(self._optimizers):
            detail["optimizers"] = self._optimizers
        self._steps, self._optimizers, self._waiting = [], [], sum(isinstance(part, Tensor) for part in self._parts)
        return Event("losses", self._first, detail)


class Watch:
    """Running mean of a series of losses and of the distances from it."""

    def __init__(self) -> None:
        self.mean = self.distance = 0.0
        self.count = 0

    def is_far(self, loss: float) -> bool:
        """True for a loss far above the mean, once the usual distance is known."""
        return self.count >= KNOWN and loss - self.mean > FAR * self.distance

    def add(self, loss: float) -> None:
        """Take in a loss; one that is far away counts as just far."""
        if not math.isfinite(loss):
            return
        if self.is_far(loss):
            loss = self.mean + FAR * self.distance
        self.count += 1
        weight = max(MEMORY, 1 / self.count)
        change = loss - self.mean
        self.mean += weight * change
        self.distance += weight * (abs(change) - self.distance) if self.count > 1 else 0.0


def _read(loss: Any) -> Part | None:
    """A scalar loss as a number; from an accelerator a copy, since the memory may be used again (CUDA graphs)."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        return None
    if loss.device.type == "cpu":
        return float(loss.detach().item())
    return loss.detach().reshape(()).to(torch.float32, copy=True)


def _transfer(parts: Iterable[Part | None]) -> dict[int, float]:
    """Values of the tensors by id, one transfer for each device."""
    devices: dict[torch.device, list[Tensor]] = {}
    for part in parts:
        if isinstance(part, Tensor):
            devices.setdefault(part.device, []).append(part)
    stacked = [(tensors, torch.stack(tensors).tolist()) for tensors in devices.values()]
    return {id(tensor): value for tensors, values in stacked for tensor, value in zip(tensors, values, strict=True)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# What went in where a loss stands out.

_INPUTS = {
    "AddmmBackward0": (1, "_saved_mat1"),
    "MmBackward0": (0, "_saved_self"),
    "LinearBackward0": (0, "_saved_input"),
    "ConvolutionBackward0": (0, "_saved_input"),
    "CudnnConvolutionBackward0": (0, "_saved_self"),
    "MkldnnConvolutionBackward0": (0, "_saved_self"),
}
"""Node: which of its edges leads to the input, and what it has saved of it."""


def input_rms(outputs: Sequence[Tensor]) -> float | None:
    """RMS of the data that the first weight layer has saved for this backward, None where none has."""
    graph = Graph([t.grad_fn for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None])
    for seq in graph.order:
        edge, name = _INPUTS.get(graph.name(seq), (0, ""))
        if not name or graph.edges[seq][edge] is not None or any(j == edge for j, _ in graph.leaves.get(seq, ())):
            continue
        data = saved(graph.nodes[seq], name)
        if isinstance(data, Tensor) and data.numel() and data.is_floating_point():
            return float(sizes.l2(data.detach())) / math.sqrt(data.numel())
    return None
