"""One module for another, in place: every name, list and hook that refers to it sees the change."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from gradwell.errors import Refused

_WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "OptimizedModule"}


def require_editable(model: nn.Module) -> None:
    """Raise `Refused` for a compiled, scripted, wrapped or sharded model, which must be edited before."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _WRAPPERS or type(module).__module__.startswith("torch.distributed."):
            raise Refused(
                f"{_place(name, model)} is wrapped in {kind}, which has taken hold of its parameters already; "
                "make the change before wrapping or compiling the model."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused(f"{_place(name, model)} is a scripted module, which cannot be edited; use the Python module.")
        if type(module).__name__.startswith("FSDP"):
            raise Refused(f"{_place(name, model)} is sharded by FSDP; make the change before `fully_shard`.")


def _place(name: str, model: nn.Module) -> str:
    return f"The module {name!r}" if name else f"The model {type(model).__name__}"


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def become(old: nn.Module, new: nn.Module) -> None:
    """Turn a module into another one: the object stays, with its mode and the user's hooks.

    A replacement by name would miss a module that a plain list or another module holds too.
    """
    hooks = {name: getattr(old, name) for name in _HOOKS}
    training = old.training
    old.__class__ = type(new)
    old.__dict__ = {**vars(new), **hooks, "training": training}
    for child in new.children():
        child.train(training)


def like(new: nn.Module, model: nn.Module, near: nn.Module | None = None) -> nn.Module:
    """`new` on the device and in the floating dtype of the parameters nearby, else of the model's first."""
    for part in (near, model):
        for p in part.parameters() if part is not None else ():
            if p.is_floating_point():
                return new.to(p.device, p.dtype)
    return new


def without_nesting(model: nn.Module) -> None:
    """Keep edited encoders from nested tensors, which torch takes in evaluation for masked batches.

    Only the layers' fused path computes with them, and a hook or a swapped function turns that path off.
    """
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(_edited(part) for part in encoder.modules()):
            encoder.use_nested_tensor = False


def _edited(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def tied(model: nn.Module, among: set[int]) -> Iterator[tuple[str, str]]:
    """Pairs of names of one parameter that two different modules own, for the parameters with these `id`s."""
    first: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            whole = f"{prefix}.{name}" if prefix else name
            if id(p) in first and id(p) in among:
                yield first[id(p)], whole
            first.setdefault(id(p), whole)
