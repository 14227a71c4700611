"""Which backward passes and which optimizers belong to one model, by the identity of its parameters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OPAQUE = ("CheckpointFunctionBackward",)
"""Nodes that hide a graph of their own: a reentrant checkpoint reaches its parameters in its recomputation."""


class Scope:
    """One model, held weakly; parameters that it gets later are found when they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._known: dict[int, weakref.ref[Tensor]] = {}
        self._look()

    @property
    def model(self) -> nn.Module | None:
        """The model, None when it is gone."""
        return self._model()

    def owns(self, tensor: Any) -> bool:
        """True for a parameter that the model had when it was last looked at."""
        known = self._known.get(id(tensor))
        return known is not None and known() is tensor

    def _look(self) -> None:
        model = self._model()
        parameters = [] if model is None else list(model.parameters())
        self._known = {id(p): weakref.ref(p) for p in parameters}

    def reached_by(self, outputs: Sequence[Any]) -> bool:
        """Whether a backward from `outputs` reaches one of the model's parameters.

        The walk ends at the first one, which lies a few nodes below the model's own loss.
        """
        foreign: list[Tensor] = []
        for leaf in _leaves(outputs):
            if leaf is None or self.owns(leaf):
                return True
            foreign.append(leaf)
        return self._adopted(foreign)

    def steps_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer holds one of the model's parameters."""
        held = (p for group in optimizer.param_groups for p in group["params"])
        return any(map(self.owns, held)) or self._adopted([p for g in optimizer.param_groups for p in g["params"]])

    def _adopted(self, tensors: Sequence[Any]) -> bool:
        """Whether the model has taken one of these on since it was last looked at."""
        if self._model() is None:
            return False
        self._look()
        return any(map(self.owns, tensors))

    def is_compiled(self) -> bool:
        """True when torch.compile has the model, a part of it or what it is wrapped in."""
        model = self._model()
        return model is not None and any(
            type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
            for module in model.modules()
        )

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of this process that hold one of the model's parameters, the oldest first."""
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.optim.Optimizer)]
        return [optimizer for optimizer in found if hasattr(optimizer, "param_groups") and self.steps_by(optimizer)]


def _leaves(outputs: Sequence[Any]) -> Iterator[Tensor | None]:
    """The tensors that a backward writes gradients to, from the loss on; None for a node that hides some."""
    stack = [t.grad_fn for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = type(node).__name__
        if name == "AccumulateGrad":
            yield getattr(node, "variable")  # noqa: B009  # torch declares it nowhere
        elif name in _OPAQUE:
            yield None
        else:
            stack += [target for target, _ in node.next_functions if target is not None]
