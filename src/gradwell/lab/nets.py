"""`build(config)`: the torch module of a NetConfig, seeded, the global generator untouched.

Names read well in a report: `hidden.0`, `hidden.1`, ... for the layers of an MLP or CNN, `blocks.3.branch.1` for a
residual net, `blocks.3.attention` for a transformer, `cell` for a recurrent net, and `head` for the last layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradwell.errors import UsageError
from gradwell.lab._ids import pick
from gradwell.lab.data import outputs, task
from gradwell.lab.initialise import initialise
from gradwell.lab.modules import OUTPUTS, Detach, ResidualBlock, TransformerBlock, activation, fan_out, image_norm, norm
from gradwell.records.net import NetConfig


def build(config: NetConfig) -> nn.Module:
    """The net of a config, in training mode; the same config gives bit-equal weights.

    Raises `UnknownId` for an unknown kind, activation, init, norm, task or output activation, `UsageError` for parts
    that do not go together.
    """
    kind = pick(KINDS, config.kind, "kind of net")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = kind(config)
        initialise(model, config)
    return model.to(getattr(torch, config.dtype))


def _head(config: NetConfig, width: int) -> nn.Linear:
    return nn.Linear(width, outputs(config), bias=config.bias)


def _output(config: NetConfig) -> nn.Module:
    return pick(OUTPUTS, config.output_activation, "output activation")()


class MLP(nn.Module):
    """depth times (Linear -> norm? -> activation -> dropout?), then the head: (B, N) -> (B, M)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        units, parts = _features(config), list[nn.Module]()
        for number in range(1, config.depth + 1):
            wide = fan_out(config, config.width)
            parts.append(nn.Linear(units, wide, bias=config.bias))
            parts += [norm(config.norm, wide)] if config.norm else []
            parts.append(activation(config.activation))
            parts += [nn.Dropout(config.dropout)] if config.dropout else []
            parts += [Detach()] if number == config.detach else []
            units = config.width
        self.hidden = nn.Sequential(*parts)
        self.head = _head(config, units)
        self.output = _output(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.head(self.hidden(x)))
        return out


class CNN(nn.Module):
    """depth 3 x 3 convolutions of `width` channels at full size, mean over the image, head: (B, 1, H, W) -> (B, M)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        channels, parts = 1, list[nn.Module]()
        shape = task(config)
        for _ in range(config.depth):
            wide = fan_out(config, config.width)
            parts.append(nn.Conv2d(channels, wide, 3, padding=1, bias=config.bias))
            parts += [image_norm(config.norm, wide, shape.rows, shape.columns)] if config.norm else []
            parts.append(activation(config.activation))
            parts += [nn.Dropout2d(config.dropout)] if config.dropout else []
            channels = config.width
        self.hidden = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = _head(config, channels)
        self.output = _output(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.head(self.pool(self.hidden(x)).flatten(1)))
        return out


class ResidualNet(nn.Module):
    """A linear stem, depth blocks x + shortcut * F(x), a head: (B, N) -> (B, M)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.stem = nn.Linear(_features(config), config.width, bias=config.bias)
        self.blocks = nn.Sequential(*[ResidualBlock(config) for _ in range(config.depth)])
        self.head = _head(config, config.width)
        self.output = _output(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.head(self.blocks(self.stem(x))))
        return out


class Transformer(nn.Module):
    """An encoder over the rows of the input, read at the mean of its tokens: (B, T, N) -> (B, M)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        shape = task(config)
        self.embed = nn.Linear(shape.columns, config.width, bias=config.bias)
        self.position = nn.Parameter(0.02 * torch.randn(shape.rows, config.width))
        self.blocks = nn.Sequential(*[TransformerBlock(config) for _ in range(config.depth)])
        self.norm = norm(config.norm or "layer", config.width) if config.norm_place == "pre" else nn.Identity()
        self.head = _head(config, config.width)
        self.output = _output(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x) + self.position))
        out: Tensor = self.output(self.head(x.mean(1)))
        return out


class Recurrent(nn.Module):
    """`depth` fused recurrent layers over the rows, read at the last step: (B, T, N) -> (B, M).

    Where the task asks at every step, all are read: (B, T, M).
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.every_step = task(config).every_step
        self.cell = _cell(config)
        self.norm = norm(config.norm, config.width) if config.norm else nn.Identity()
        self.head = _head(config, config.width)
        self.output = _output(config)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.cell(x)
        out: Tensor = self.output(self.head(self.norm(steps if self.every_step else steps[:, -1])))
        return out


def _cell(config: NetConfig) -> nn.RNNBase:
    features = task(config).columns
    dropout = config.dropout if config.depth > 1 else 0.0  # torch warns about dropout after a single layer
    sizes = {"num_layers": config.depth, "bias": config.bias, "batch_first": True, "dropout": dropout}
    if config.kind == "lstm":
        return nn.LSTM(features, config.width, **sizes)
    if config.kind == "gru":
        return nn.GRU(features, config.width, **sizes)
    if config.activation not in {"tanh", "relu"}:
        raise UsageError(f"torch's RNN has activation 'tanh' or 'relu', not {config.activation!r}; choose one of them.")
    return nn.RNN(features, config.width, nonlinearity=config.activation, **sizes)


def _features(config: NetConfig) -> int:
    shape = task(config)
    return shape.rows * shape.columns


KINDS: dict[str, Callable[[NetConfig], nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "residual": ResidualNet,
    "transformer": Transformer,
    "rnn": Recurrent,
    "lstm": Recurrent,
    "gru": Recurrent,
}
