"""The building blocks of the lab's nets: activations, norms and blocks, by id.

Axis letters: B batch, T time (tokens), N units in, M units out, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gradwell.errors import UsageError
from gradwell.lab._ids import pick
from gradwell.records.net import NetConfig
from gradwell.surgery.activations import ACTIVATIONS


class Detach(nn.Module):
    """x without its history: the gradient ends here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    **ACTIVATIONS,
    "": nn.Identity,
    "softmax": lambda: nn.Softmax(dim=-1),
    "log_softmax": lambda: nn.LogSoftmax(dim=-1),
}
"""What may stand after the last layer."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
}


def activation(key: str) -> nn.Module:
    """The activation of an id; raises `UnknownId`."""
    return pick(ACTIVATIONS, key, "activation")()


def norm(key: str, features: int) -> nn.Module:
    """The norm of an id over the last axis, (..., features); raises `UnknownId`."""
    return pick(NORMS, key, "norm")(features)


def image_norm(key: str, channels: int, height: int, width: int) -> nn.Module:
    """The norm of an id for images (B, C, H, W): per channel (batch) or over C, H and W (layer, rms)."""
    if key == "batch":
        return nn.BatchNorm2d(channels)
    if key == "layer":
        return nn.GroupNorm(1, channels)
    whole: Callable[[tuple[int, ...]], nn.Module] = nn.RMSNorm
    return whole((channels, height, width)) if key == "rms" else norm(key, channels)


def fan_out(config: NetConfig, width: int) -> int:
    """Units of the linear layer in front of the activation: twice the width before a maxout."""
    return 2 * width if config.activation == "maxout" else width


class ResidualBlock(nn.Module):
    """x + shortcut * F(x) with F = norm? -> Linear -> activation -> Linear -> dropout?, on (B, N)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.scale = config.shortcut
        parts: list[nn.Module] = [norm(config.norm, config.width)] if config.norm else []
        parts += [
            nn.Linear(config.width, fan_out(config, config.width), bias=config.bias),
            activation(config.activation),
            nn.Linear(config.width, config.width, bias=config.bias),
        ]
        parts += [nn.Dropout(config.dropout)] if config.dropout else []
        self.branch = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.scale * self.branch(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward net four times as wide, pre- or post-norm, on (B, T, N).

    `config.norm`: "layer" or "rms" ("" is "layer"). `config.shortcut` scales both branches.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        if config.norm == "batch":
            raise UsageError("A transformer of the lab has norm='layer' or 'rms', not 'batch'; change one of them.")
        width, wide = config.width, 4 * config.width
        self.pre = config.norm_place == "pre"
        self.scale = config.shortcut
        self.attention = nn.MultiheadAttention(
            width, heads(width), dropout=config.dropout, bias=config.bias, batch_first=True
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, fan_out(config, wide), bias=config.bias),
            activation(config.activation),
            nn.Linear(wide, width, bias=config.bias),
            nn.Dropout(config.dropout),
        )
        self.norm1 = norm(config.norm or "layer", width)
        self.norm2 = norm(config.norm or "layer", width)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of (B, T, N), without its weights."""
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.scale * self.attend(self.norm1(x))
            x = x + self.scale * self.mlp(self.norm2(x))
        else:
            x = self.norm1(x + self.scale * self.attend(x))
            x = self.norm2(x + self.scale * self.mlp(x))
        return x


def heads(width: int) -> int:
    """Number of attention heads: the largest of 4, 2, 1 that divides the width."""
    return next(n for n in (4, 2, 1) if width % n == 0)
