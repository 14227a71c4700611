"""The rank of what modules give out and take in, during one forward pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradwell.measure.spectrum import participation_ratio
from gradwell.probe import sizes
from gradwell.probe.names import Names

ROWS, UNITS = 256, 512
"""Samples (with their positions) and units that are looked at, at most."""


class Ranks:
    """Inside `with`, notes `rank[name]` of the outputs of the named modules, call by call; None where there is none.

    `hidden`: rank of what the last call of the module `output` takes in, and the largest that it could be; `problem`:
    what went wrong with the measuring, if anything did.
    """

    def __init__(self, names: Names, wanted: Collection[str], output: str) -> None:
        self.rank: dict[str, list[float | None]] = {}
        self.hidden: tuple[float, int] | None = None
        self.problem: Exception | None = None
        self._names, self._wanted, self._output = names, wanted, output
        self._handle: Any = None

    def __enter__(self) -> Ranks:
        self._handle = register_module_forward_hook(self._leave)
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch._C._functorch.maybe_current_level() is not None:  # inside vmap there is no batch to see
            return
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                self._note(self._names.module(module)[0], args, output)
        except Exception as problem:
            self.problem = problem

    def _note(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        if name in self._wanted:
            self.rank.setdefault(name, []).append(_rank(output)[0])
        if name == self._output and args:
            rank, most = _rank(args[0])
            self.hidden = None if rank is None else (rank, most)


def _rank(value: Any) -> tuple[float | None, int]:
    """Participation ratio over samples and positions, and the largest possible; None for what is no floating tensor."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_sparse or value.dim() < 2 or not value.numel():
        return None, 0
    if not (value.is_floating_point() or value.is_complex()):
        return None, 0
    rows = value.detach().movedim(1, -1) if value.dim() >= 4 else value.detach()
    rows = rows.reshape(-1, rows.shape[-1])
    thin = rows[:: -(-len(rows) // ROWS), :: -(-rows.shape[1] // UNITS)]
    return participation_ratio(sizes.as_array(thin.resolve_neg())), min(len(thin) - 1, thin.shape[1])
