"""What part a module, a function or an autograd node plays: weight, activation, norm, source, loss or other.

The activations and their names come from the shelf in `theory.activations`; nothing is listed twice.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gradwell.shelf import shelf


def weak_cache(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A cache by class that does not keep the class: one that was made at run time (a parametrised layer, a class in
    a function) holds what its closures hold, often the model itself.
    """
    known: dict[int, tuple[weakref.ref[Any], Any]] = {}  # WeakKeyDictionary is ten times slower to ask

    def cached(kind: Any) -> Any:
        key = id(kind)
        entry = known.get(key)
        if entry is None or entry[0]() is not kind:
            entry = known[key] = (weakref.ref(kind, lambda _: known.pop(key, None)), function(kind))
        return entry[1]

    return cached


WEIGHT_NODES = {f"{name}Backward0" for name in ("Addmm", "Mm", "Convolution", "Bmm", "Mv", "Addmv")}
"""Autograd nodes that multiply with a weight, when one of their inputs is a leaf tensor."""


@cache
def activation_names() -> dict[str, tuple[str, float]]:
    """(id, largest slope) by every name of an activation: module class, function, in-place twin, autograd node."""
    names: dict[str, tuple[str, float]] = {}
    for entry in shelf("gradwell.theory.activations").values():
        fact = (entry.id, float(entry.fact("MAX_SLOPE", 1.0)))
        for name in (*entry.fact("TORCH", ()), *entry.fact("AUTOGRAD", ())):
            names.setdefault(name, fact)
    return names


@cache
def functional_activations() -> dict[Callable[..., Any], str]:
    """The functions through which scripts call an activation, and the name to show: `F.relu`, `torch.tanh`, `x.tanh()`.

    Only what can be nothing but an activation: `exp`, `sin`, `erf`, `mul` and `clamp` have other uses and stay out.
    """
    found: dict[Callable[..., Any], str] = {}
    for name, (activation, _) in activation_names().items():
        if activation in AMBIGUOUS or not name.islower():
            continue
        for home in (functional, torch, torch.Tensor):
            for variant in (name, f"{name}_"):
                function = getattr(home, variant, None)
                if callable(function):
                    found[function] = name
    return found


AMBIGUOUS = {"exp", "sin", "erf", "identity", "maxout"}


_FAMILIES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.modules.loss._Loss,), "loss"),
    ((nn.Embedding, nn.EmbeddingBag), "source"),
    ((nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Identity), "other"),
)


@weak_cache
def _class_part(kind: Any) -> tuple[str, str]:
    """(name, role) of a class; the role is "" where it hangs on the parameters of the module."""
    for family, role in _FAMILIES:
        if issubclass(kind, family):
            return kind.__name__, role
    if kind.__name__ in activation_names():
        return kind.__name__, "activation"
    if issubclass(kind, (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)):
        return kind.__name__, "weight"  # also where parametrised: then the weight is no parameter of its own
    return kind.__name__, "norm" if "Norm" in kind.__name__ else ""


def is_closed(module: nn.Module) -> bool:
    """True for a leaf of torch's own library: what it calls inside is its own business."""
    return not module._modules and _is_torchs(type(module))


@weak_cache
def _is_torchs(kind: Any) -> bool:
    return bool(kind.__module__.startswith("torch.nn."))


_CALL_CHILDREN_ONLY = {nn.Sequential, nn.ModuleList, nn.ModuleDict}
_FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def is_open(module: nn.Module) -> bool:
    """True where functional activations inside a module are looked for: a graph is built, and torch does not leave
    its fast path for evaluation, which gives other bits, because of a TorchFunctionMode.
    """
    kind = type(module)
    if kind in _CALL_CHILDREN_ONLY or (not module._modules and _is_torchs(kind)) or not torch.is_grad_enabled():
        return False
    return not isinstance(module, _FAST_PATHS) or any(p.requires_grad for p in module.parameters())


def part_of(module: nn.Module) -> tuple[str, str]:
    """The class of a module, that of the layer where it is parametrised, and the part that it plays as a leaf."""
    kind: Any = type(module)
    name, role = _class_part(kind)
    if "parametrizations" in module._modules:
        name = kind.__bases__[0].__name__
    return name, role or ("other" if weight_of(module) is None else "weight")


def weight_of(module: nn.Module) -> torch.Tensor | None:
    """The first parameter of a module with two axes or more."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.dim() >= 2:
            return parameter
    return None


@cache
def can_die(kind: str) -> bool:
    """True for an activation that is exactly 0, slope and all, on a half line (ReLU and its kin)."""
    known = activation_names().get(kind)
    return known is not None and bool(shelf("gradwell.theory.activations")[known[0]].fact("CAN_DIE", False))


def largest_slope(kind: str) -> float:
    """sup |phi'| of an activation by its class, function or node name; 1 for one that is not on the shelf."""
    return activation_names().get(kind, ("", 1.0))[1]


def isotropic_weight(weight: torch.Tensor, norm: float, kind: str, out_shape: tuple[int, ...]) -> float | None:
    """log10 of the gain of a random cotangent through a linear map: 1/2 log10(|W|_F^2 / n_out).

    Convolutions: |J|_F^2 = positions * |W|_F^2 and n_out = channels * positions, so n_out counts channels
    (borders neglected). Transposed convolutions have weight (in, out, ...) and more positions out than in.
    """
    if norm <= 0 or not math.isfinite(norm) or weight.dim() < 2:
        return None
    if "ConvTranspose" in kind:
        return None
    units = out_shape[-1] if weight.dim() == 2 and out_shape else weight.shape[0]
    return math.log10(norm) - 0.5 * math.log10(max(units, 1))
