"""New parts on the outputs of old ones, without a new name for anything: hooks on modules and on functions.

A part with parameters becomes a child of the module it stands behind: `fc.weight` stays `fc.weight`, and
`fc.norm.weight` joins it. Every hook is an object or a function that names no module but the one it is given, so that
a copied or pickled model takes it along. Functional activations are reached through a TorchFunctionMode around the
forward of the module that calls them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from gradwell.errors import Refused
from gradwell.probe import kinds
from gradwell.surgery.observe import Call
from gradwell.surgery.replace import like
from gradwell.surgery.setup import TrainSetup

After = Callable[[nn.Module, Any, Any], Any]
"""A forward hook: (module, inputs, output) -> new output."""

MOST_PARTS = 1000
"""Names that are tried for a new part."""


def after(model: nn.Module, call: Call, hook: After) -> None:
    """Change the output of a call: of a module, or of one functional activation."""
    owner = model.get_submodule(call.name)
    if not call.function:
        owner.register_forward_hook(hook)
        return
    functions_of(owner).add(call.function, call.number, hook)


def add_part(setup: TrainSetup, owner: nn.Module, name: str, part: nn.Module) -> str:
    """Register a new part as a child, under `name` or `name_2`, ... where that is taken; gives the name."""
    return _register(owner, name, lambda free: owner.add_module(free, like(part, setup.model, near=owner)))


def add_parameter(owner: nn.Module, name: str, value: Tensor) -> str:
    """Register a new parameter under `name`, or `name_2`, ... where that is taken; gives the name."""
    return _register(owner, name, lambda free: owner.register_parameter(free, nn.Parameter(value)))


def grow(setup: TrainSetup, new: Iterable[Tensor], neighbour: Tensor | None = None) -> None:
    """Note that new parameters belong in the optimizer group of a neighbour (None: the model's first older one)."""
    mine = {id(p) for p in new}
    names = {id(p): name for name, p in setup.model.named_parameters()}
    older = [name for key, name in names.items() if key not in mine and name not in setup.grown]
    beside = names[id(neighbour)] if neighbour is not None else older[0]
    setup.grown.update({names[key]: beside for key in mine})


def _register(owner: nn.Module, name: str, put: Callable[[str], None]) -> str:
    names = [name, *(f"{name}_{number}" for number in range(2, MOST_PARTS))]
    free = next((free for free in names if not hasattr(owner, free)), "")
    if not free:  # a __getattr__ that answers to any name
        raise Refused(f"{type(owner).__name__} has an attribute of any name, so nothing can be added to it.")
    put(free)
    return free


def on_tensor(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` on a tensor, or on the first element of a tuple (attention, recurrent layers)."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (change(output[0]), *output[1:])
    raise Refused(f"The output is a {type(output).__name__}, not a tensor; nothing can be put behind it.")


# what may stand behind a call


@dataclass(frozen=True)
class Through:
    """Sends the output through a child of the module."""

    child: str

    def __call__(self, module: nn.Module, _: Any, out: Any) -> Any:
        return on_tensor(out, module.get_submodule(self.child))


@dataclass(frozen=True)
class Dropped:
    """Dropout on the output, in training only."""

    p: float

    def __call__(self, module: nn.Module, _: Any, out: Any) -> Any:
        return on_tensor(out, lambda t: nn.functional.dropout(t, self.p, module.training))


@dataclass(frozen=True)
class Scaled:
    """The output times a number, or times a parameter of the module."""

    factor: float | str

    def __call__(self, module: nn.Module, _: Any, out: Any) -> Any:
        factor = getattr(module, self.factor) if isinstance(self.factor, str) else self.factor
        return on_tensor(out, lambda t: factor * t)


class Shortcut:
    """x + scale F(x) around the modules from a first to a last one, x kept between the two.

    `scale` names a parameter of the first module where it is learned. With a `gate`, a child of the first module:
    F(x) T + x (1 - T), T = sigmoid(gate(x)) (highway).
    """

    def __init__(self, *, scale: float | str = 1.0, gate: str = "") -> None:
        self.scale, self.gate = scale, gate
        self._kept: tuple[Tensor, Any] | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the first module."""
        x = args[0]
        factor: Any = self.scale
        if self.gate:
            factor = module.get_submodule(self.gate)(x).sigmoid()
        elif isinstance(factor, str):
            factor = getattr(module, factor)
        self._kept = (x, factor)

    def __getstate__(self) -> dict[str, Any]:
        """Without x: a recomputation that ends early leaves it behind, and no copy may hold a computed tensor."""
        return {**vars(self), "_kept": None}

    def leave(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        """After the last module."""
        if self._kept is None:
            raise Refused("The last layer of a shortcut ran without its first one (checkpointing?); put it in by hand.")
        (x, factor), self._kept = self._kept, None
        total: Tensor = out * factor + x * (1 - factor) if self.gate else x + factor * out
        return total


# functional activations


class Around:
    """Stands as `forward` of one module, with hooks on the functional activations that this forward calls."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inner = module.__dict__.get("forward")  # a forward of the instance's own
        self.hooks: dict[tuple[str, int], list[After]] = {}
        self.swaps: dict[tuple[str, int], str] = {}

    def add(self, function: str, number: int, hook: After) -> None:
        """Put a hook behind the `number`-th call of a function."""
        self.hooks.setdefault((function, number), []).append(hook)

    def swap(self, function: str, number: int, child: str) -> None:
        """Call a child of the module instead of the function."""
        self.swaps[function, number] = child

    def changes(self, function: str, number: int) -> bool:
        """True when the `number`-th call of a function is not as it was."""
        return (function, number) in self.swaps or (function, number) in self.hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Mode(self):
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)

    def function(self, name: str, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        """One call of a functional activation, as changed."""
        child = self.swaps.get((name, number))
        out = func(*args, **kwargs) if child is None else self._instead(child, func, args, kwargs)
        for hook in self.hooks.get((name, number), []):
            out = hook(self.module, args, out)
        return out

    def _instead(self, child: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        x: Tensor = args[0] if args else kwargs["input"]
        in_place = kwargs.get("inplace") or getattr(func, "__name__", "").endswith("_")
        new: Tensor = self.module.get_submodule(child)(x.clone() if in_place else x)
        return x.copy_(new) if in_place else new


class _Mode(TorchFunctionMode):
    """Counts the functional activations of one run of a forward; those of modules called inside are theirs."""

    def __init__(self, around: Around) -> None:
        super().__init__()
        self._around = around
        self._seen: Counter[str] = Counter()
        self._known = kinds.functional_activations()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self._known.get(func)
        place = _called_from() if name is not None else ""
        if name is None or place == "child":
            return func(*args, **kwargs)
        number = self._seen[name]
        self._seen[name] += 1
        if place == "checkpoint" and self._around.changes(name, number):
            raise Refused(
                f"{name} is called inside a checkpoint, whose recomputation would call it unchanged; make it a module "
                f"of {type(self._around.module).__name__}, or checkpoint whole modules."
            )
        return self._around.function(name, number, func, args, kwargs)


_CALL = nn.Module._call_impl.__code__
_AROUND = Around.__call__.__code__


def _called_from() -> str:
    """What lies between the function and the forward that is watched: a `child`'s call, a `checkpoint`, or nothing."""
    place = ""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not _AROUND:
        if frame.f_code is _CALL:
            return "child"
        if frame.f_code.co_filename == checkpoint.__file__:
            place = "checkpoint"
        frame = frame.f_back
    return place


def functions_of(owner: nn.Module) -> Around:
    """The hooks on the functional activations of a module's forward, put there at first use."""
    found = owner.__dict__.get("forward")
    if not isinstance(found, Around):
        found = Around(owner)
        owner.__dict__["forward"] = found
    return found
