"""Norms, shortcuts and scales where they may stand: behind hidden layers, around blocks, at the ends of branches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import Refused
from gradwell.surgery.attach import Scaled, Shortcut, Through, add_parameter, add_part, after, grow
from gradwell.surgery.observe import Call, Pass, observe
from gradwell.surgery.reinit import WEIGHTED
from gradwell.surgery.setup import TrainSetup

HIGHWAY_BIAS = -2.0
"""Start of the transform gate's bias (Srivastava et al., 2015): the gate opens 12 %."""


def layer_of(setup: TrainSetup, call: Call) -> Any:
    """The linear or convolution layer of a call, None for anything else."""
    module = setup.model.get_submodule(call.name)
    return module if not call.function and isinstance(module, WEIGHTED) else None


def hidden_layers(setup: TrainSetup, seen: Pass) -> list[tuple[Call, nn.Module]]:
    """Linear and convolution layers but the last ones, each once, in the order of their calls."""
    found: dict[int, tuple[Call, nn.Module]] = {}
    for call in seen.hidden_weights:
        layer = layer_of(setup, call)
        if layer is not None:
            found.setdefault(id(layer), (call, layer))
    return list(found.values())


# norms


def add_norms(setup: TrainSetup, norm: str) -> None:
    """A norm of its own behind each hidden weight layer that has none; refused where none may stand."""
    seen = observe(setup)
    done = 0
    for call, layer in hidden_layers(setup, seen):
        behind = seen.calls[seen.calls.index(call) + 1]
        if behind.role == "norm":
            continue
        name = add_part(setup, layer, "norm", _norm(norm, layer, call.out_shape))
        layer.register_forward_hook(Through(name))
        grow(setup, layer.get_submodule(name).parameters(), next(layer.parameters()))
        done += 1
    if not done:
        raise Refused("No hidden linear or convolution layer is without a norm; there is nothing to add.")


def _norm(norm: str, layer: Any, shape: tuple[int, ...]) -> nn.Module:
    units = layer.weight.shape[0]
    image = not isinstance(layer, nn.Linear)
    if norm == "batch":
        return _batch_norm(layer, units, shape)
    if norm == "group" and len(shape) < 2:
        raise Refused("A group norm wants a batch axis, and here is none; take a layer norm.")
    if norm == "group" or (norm == "layer" and image):
        if not image and len(shape) > 2:
            raise Refused("A group norm wants channels on the second axis, and here are tokens; take a layer norm.")
        return nn.GroupNorm(groups(units) if norm == "group" else 1, units)
    if norm == "layer":
        return nn.LayerNorm(units)
    if norm == "rms" and not image:
        return nn.RMSNorm(units)
    if norm == "rms":
        raise Refused("An RMS norm of an image needs the image's size, which a convolution does not have; take group.")
    raise Refused(f"There is no norm {norm!r} to add; take batch, layer, rms or group.")


def _batch_norm(layer: nn.Module, units: int, shape: tuple[int, ...]) -> nn.Module:
    if shape[0] < 4:
        raise Refused(f"Batch norm needs more than 3 samples in a batch and this one has {shape[0]}; take layer norm.")
    if isinstance(layer, nn.Linear) and len(shape) > 2:
        raise Refused("Batch norm wants units on the second axis, and here are tokens; take a layer norm.")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if len(shape) not in kinds:
        raise Refused("Batch norm wants a batch axis, and here is none; take a layer norm.")
    return kinds[len(shape)](units)


def groups(units: int) -> int:
    """Groups of a group norm: the largest number up to 32 that leaves at least two units in each."""
    return next(n for n in range(min(32, max(units // 2, 1)), 0, -1) if units % n == 0)


# shortcuts


@dataclass
class Block:
    """Calls from a weight layer to the one before the next: what a shortcut goes around."""

    first: Call
    last: Call
    layer: nn.Module


def chain_blocks(setup: TrainSetup, seen: Pass, over: int = 1) -> list[Block]:
    """Blocks of `over` weight layers that keep the shape, the head left out; they do not overlap."""
    calls, found = seen.calls, []
    starts = [i for i, call in enumerate(calls) if call.role == "weight"]
    number = 0
    while number + over < len(starts):
        first, last = calls[starts[number]], calls[starts[number + over] - 1]
        layer = layer_of(setup, first)
        inside = calls[starts[number] : starts[number + over]]
        plain = all(call.role in {"weight", "norm", "activation"} or "Dropout" in call.kind for call in inside)
        bends = any(call.role == "activation" for call in inside)
        if layer is not None and plain and bends and first.in_shape == last.out_shape:
            found.append(Block(first, last, layer))
            number += over
        else:
            number += 1
    return found


def add_shortcuts(setup: TrainSetup, form: str, over: int) -> None:
    """A shortcut around each block of a plain chain: identity, scaled, rezero or highway."""
    seen = observe(setup)
    if seen.branches():
        raise Refused("This net has shortcuts already; scale_residual sets their branches right.")
    blocks = chain_blocks(setup, seen, over)
    if not blocks:
        raise Refused(
            f"No {over} weight layer{'s' * (over > 1)} with an activation keep the shape of their input; "
            "a shortcut needs the same shape at both ends."
        )
    places = Counter(call.place for call in seen.calls)
    again = next((call for block in blocks for call in (block.first, block.last) if places[call.place] > 1), None)
    if again is not None:
        raise Refused(
            f"{again.name or again.function!r} is used several times in one pass; give each use a module of its own, "
            "or put the shortcut into the forward by hand."
        )
    for block in blocks:
        shortcut = _shortcut(setup, form, block, len(blocks))
        block.layer.register_forward_pre_hook(shortcut.enter)
        after(setup.model, block.last, shortcut.leave)


def _shortcut(setup: TrainSetup, form: str, block: Block, blocks: int) -> Shortcut:
    layer = block.layer
    if form == "identity":
        return Shortcut()
    if form == "scaled":
        return Shortcut(scale=blocks**-0.5)
    if form == "rezero":
        return Shortcut(scale=_scalar(setup, layer, "shortcut_scale", 0.0, next(layer.parameters())))
    if form == "highway":
        name = add_part(setup, layer, "gate", _gate(layer))
        grow(setup, layer.get_submodule(name).parameters(), next(layer.parameters()))
        return Shortcut(gate=name)
    raise Refused(f"There is no shortcut of the form {form!r}; take identity, scaled, rezero or highway.")


def _gate(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise Refused("Highway gates are made for linear and two-dimensional convolution layers; take identity.")
    units = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # of all groups
    gate: nn.Module = nn.Linear(units, units) if isinstance(layer, nn.Linear) else nn.Conv2d(units, units, 1)
    nn.init.constant_(gate.get_parameter("bias"), HIGHWAY_BIAS)
    return gate


def _scalar(setup: TrainSetup, owner: nn.Module, name: str, value: float, near: Tensor) -> str:
    made = add_parameter(owner, name, near.new_tensor(value))
    grow(setup, [owner.get_parameter(made)], near)
    return made


def scale_branches(setup: TrainSetup, scale: float | None, *, learned: bool) -> None:
    """Each branch beside a shortcut times `scale` (None: 1 / sqrt(L)), or times a parameter that starts there."""
    branches = observe(setup).branches()
    if not branches:
        raise Refused("This net has no shortcuts, so there is no branch to scale; add_shortcut comes first.")
    factor = scale if scale is not None else len(branches) ** -0.5
    done: set[tuple[str, str, int]] = set()
    for branch in branches:
        if branch.end.place in done:
            continue  # a block that is used again is scaled each time
        done.add(branch.end.place)
        owner = setup.model.get_submodule(branch.end.name)
        working = [setup.model.get_submodule(call.name) for call in branch.calls if call.role == "weight"]
        near = next(p for module in [*working[::-1], owner, setup.model] for p in module.parameters())
        hook = Scaled(_scalar(setup, owner, "branch_scale", factor, near) if learned else factor)
        after(setup.model, branch.end, hook)


# inputs


class Standardized:
    """(x - mean) / std on the first input of a model, with its buffers `input_mean` and `input_std`."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] - module.get_buffer("input_mean")) / module.get_buffer("input_std"), *args[1:]


STATISTICS_BATCHES = 50
"""Batches that give the mean and the deviation of the input."""


class _Seen(Exception):
    """The model's input has been seen; nothing more of this pass is needed."""


def standardize(setup: TrainSetup, per: str) -> None:
    """Mean 0 and deviation 1 for each feature (each channel of an image), or one deviation for all."""
    inputs = _inputs(setup)
    image = inputs[0].dim() >= 4
    rows = torch.cat([(x.movedim(1, -1) if image else x).flatten(0, -2) if x.dim() > 1 else x[:, None] for x in inputs])
    mean = rows.mean(0)
    std = rows.std(0) if per == "feature" else (rows - mean).std()
    if image:  # per channel: (C, 1, 1) against (B, C, H, W)
        ones = [1] * (inputs[0].dim() - 2)
        mean, std = mean.view(-1, *ones), std.view(-1, *ones) if std.dim() else std
    setup.model.register_buffer("input_mean", mean)
    setup.model.register_buffer("input_std", std.clamp_min(1e-6))
    setup.model.register_forward_pre_hook(Standardized())


def _inputs(setup: TrainSetup) -> list[Tensor]:
    if setup.batches is None:
        raise Refused("Mean and deviation of the input need data, and the setup has none; give it `batches`.")
    found: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.extend(arg.detach() for arg in args[:1] if isinstance(arg, Tensor) and arg.is_floating_point())
        raise _Seen

    if "input_mean" in setup.model._buffers:
        raise Refused("The input is standardized already; there is nothing to change.")
    handle = setup.model.register_forward_pre_hook(look, prepend=True)
    try:
        for _, batch in zip(range(STATISTICS_BATCHES), setup.batches(0), strict=False):
            try:
                setup.loss_fn(setup.model, batch)
            except _Seen:
                continue
            raise Refused("loss_fn does not call the model itself, so its input cannot be changed on the way in.")
    finally:
        handle.remove()
    if not found:
        raise Refused("The first argument of the model is no tensor of real numbers; there is nothing to scale.")
    return found
