"""Every activation of the shelf as a torch module, by id."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gradwell.errors import Refused
from gradwell.shelf import shelf


class Sine(nn.Module):
    """sin(x), element by element."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Erf(nn.Module):
    """erf(x), element by element."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


class Exp(nn.Module):
    """exp(x), element by element; overflows float32 above 88."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class LecunTanh(nn.Module):
    """1.7159 tanh(2x / 3), element by element (LeCun et al., 1998)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Maxout(nn.Module):
    """The larger of two linear units: (..., 2 M) -> (..., M); the layer before must be twice as wide.

    For images the channels are halved: (B, 2 C, H, W) -> (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if x.dim() == 4 else -1
        first, second = x.chunk(2, dim=axis)
        return torch.maximum(first, second)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "erf": Erf,
    "sin": Sine,
    "exp": Exp,
    "relu6": nn.ReLU6,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "lecun_tanh": LecunTanh,
    "maxout": Maxout,
}
"""Every activation id of the contract as a torch module."""


def elementwise(key: str) -> nn.Module:
    """The activation of an id, ready to stand where another one stood; raises `UnknownId`, `Refused` for maxout."""
    shelf("gradwell.theory.activations")[key]
    if key == "maxout":
        raise Refused("maxout halves the units, so it cannot stand where another activation stood; widen the layers.")
    return ACTIVATIONS[key]()
