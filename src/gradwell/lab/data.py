"""The lab's tasks as endless, seeded batches: digits, xor, gaussian, regression, and four that need a memory.

Every input is rows x columns numbers, so that each kind of net can read it: an MLP or a residual net sees
(B, rows * columns), a CNN (B, 1, rows, columns), a transformer or recurrent net (B, T=rows, N=columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradwell.errors import UsageError
from gradwell.lab._ids import pick
from gradwell.records.net import NetConfig

Batch = tuple[Tensor, Tensor]

Draw = Callable[[int, torch.Generator], Batch]

_TRAIN = 1400  # of 1797 digits; the other 397 are held out
_TEACHER_SEED = 7919
_HELD_OUT_SEED = 104729
_HELD_OUT_SIZE = 512


class Task(NamedTuple):
    """A task: the shape of one input, the number of classes (0: a real number), its batches and its held batch.

    `stream` and `held_out` give inputs of shape (B, rows, columns) in float32, and targets: class numbers (B,),
    (B, rows) where `every_step` is asked, or real numbers (B, 1).
    """

    rows: int
    columns: int
    classes: int
    stream: Callable[[NetConfig], Iterator[Batch]]
    held_out: Callable[[NetConfig], Batch]
    every_step: bool = False


def batches(config: NetConfig) -> Iterator[Batch]:
    """Endless batches of the config's task, in the shape its kind of net reads; the same for the same seed.

    Inputs carry `input_scale`, `input_shift` and `dtype`. Raises `UnknownId` for an unknown task, `UsageError` when
    scikit-learn is needed and missing.
    """
    for x, y in task(config).stream(config):
        yield _view(config, x), y


def batch(config: NetConfig) -> Batch:
    """The first of `batches`."""
    return next(batches(config))


def held_out(config: NetConfig) -> Batch:
    """One fixed batch that `batches` never draws from (the 397 test digits; all four points for xor)."""
    x, y = task(config).held_out(config)
    return _view(config, x), y


def task(config: NetConfig) -> Task:
    """The task of a config; raises `UnknownId`."""
    return pick(TASKS, config.task, "task")


def outputs(config: NetConfig) -> int:
    """Units of the last layer: one for each class, one for a real number or a yes/no without cross-entropy."""
    classes = task(config).classes
    yes_no = classes == 2 and config.loss != "cross_entropy"
    return 1 if classes == 0 or yes_no else classes


def _view(config: NetConfig, x: Tensor) -> Tensor:
    x = (x * config.input_scale + config.input_shift).to(getattr(torch, config.dtype))
    if config.kind in {"mlp", "residual"}:
        return x.flatten(1)
    return x.unsqueeze(1) if config.kind == "cnn" else x


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# digits: 1797 real handwritten digits, 8 x 8, grey values 0 to 1


@cache
def load_digits() -> Batch:
    """scikit-learn's digits / 16, (1797, 8, 8), and their classes (1797,), in one fixed shuffled order."""
    try:
        from sklearn.datasets import load_digits as read
    except ImportError:
        raise UsageError(
            "The task 'digits' needs scikit-learn, which is not installed; "
            "`pip install gradwell[lab]`, or use task='gaussian'."
        ) from None
    found = read()
    order = torch.randperm(len(found.target), generator=_generator(0))
    return torch.tensor(found.images / 16, dtype=torch.float32)[order], torch.tensor(found.target)[order].long()


def _digits(config: NetConfig) -> Iterator[Batch]:
    x, y = (part[:_TRAIN] for part in load_digits())
    generator = _generator(config.seed)
    size = min(config.batch_size, _TRAIN)
    while True:
        order = torch.randperm(_TRAIN, generator=generator)
        for chunk in torch.split(order[: _TRAIN - _TRAIN % size], size):
            yield x[chunk], y[chunk]


def _digits_held_out(_: NetConfig) -> Batch:
    x, y = load_digits()
    return x[_TRAIN:], y[_TRAIN:]


# xor: the four points in the fixed order 00, 01, 10, 11


def _xor_points(_: NetConfig) -> Batch:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).unsqueeze(1)
    return x, torch.tensor([0, 1, 1, 0])


def _xor(config: NetConfig) -> Iterator[Batch]:
    x, y = _xor_points(config)
    while True:
        yield from zip(torch.split(x, config.batch_size), torch.split(y, config.batch_size), strict=True)


# gaussian: noise in, the loudest of ten linear teachers out; regression: one linear teacher, bent


@cache
def _teacher(units: int) -> Tensor:
    """Fixed linear teacher (64, units), unit variance at its output."""
    return torch.randn(64, units, generator=_generator(_TEACHER_SEED)) / math.sqrt(64)


def _noise(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, 8, 8, generator=generator)


def _gaussian(config: NetConfig) -> Iterator[Batch]:
    generator = _generator(config.seed)
    while True:
        yield _classify(_noise(config.batch_size, generator))


def _gaussian_held_out(_: NetConfig) -> Batch:
    return _classify(_noise(_HELD_OUT_SIZE, _generator(_HELD_OUT_SEED)))


def _classify(x: Tensor) -> Batch:
    return x, (x.flatten(1) @ _teacher(10)).argmax(1)


def _regression(config: NetConfig) -> Iterator[Batch]:
    generator = _generator(config.seed)
    while True:
        yield _regress(_noise(config.batch_size, generator))


def _regression_held_out(_: NetConfig) -> Batch:
    return _regress(_noise(_HELD_OUT_SIZE, _generator(_HELD_OUT_SEED)))


def _regress(x: Tensor) -> Batch:
    return x, torch.sin(x.flatten(1) @ _teacher(1))


# What needs a memory: `draw(size, generator)` makes inputs (B, T, N) and targets.


def _drawn(rows: int, columns: int, classes: int, draw: Draw, *, every_step: bool = False) -> Task:
    def stream(config: NetConfig) -> Iterator[Batch]:
        generator = _generator(config.seed)
        while True:
            yield draw(config.batch_size, generator)

    def held(_: NetConfig) -> Batch:
        return draw(_HELD_OUT_SIZE, _generator(_HELD_OUT_SEED))

    return Task(rows, columns, classes, stream, held, every_step)


def recall(steps: int, lag: int) -> Task:
    """Which of four symbols stood `lag` steps before the last of `steps`? The rest is noise of size 0.1."""

    def draw(size: int, generator: torch.Generator) -> Batch:
        y = torch.randint(4, (size,), generator=generator)
        x = 0.1 * torch.randn(size, steps, 4, generator=generator)
        x[torch.arange(size), steps - 1 - lag, y] += 1
        return x, y

    return _drawn(steps, 4, 4, draw)


def echo(steps: int, lag: int) -> Task:
    """At every step: which of four symbols stood `lag` steps before? (0 where the sequence had not begun.)"""

    def draw(size: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(4, (size, steps), generator=generator)
        noise = 0.1 * torch.randn(size, steps, 4, generator=generator)
        heard = torch.cat([torch.zeros_like(symbols[:, :lag]), symbols[:, : steps - lag]], dim=1)
        return torch.nn.functional.one_hot(symbols, 4) + noise, heard

    return _drawn(steps, 4, 4, draw, every_step=True)


def adding(steps: int) -> Task:
    """The sum of the two numbers of U(0, 1) that are marked, one in each half (Hochreiter and Schmidhuber 1997)."""

    def draw(size: int, generator: torch.Generator) -> Batch:
        x = torch.stack([torch.rand(size, steps, generator=generator), torch.zeros(size, steps)], dim=2)
        rows, half = torch.arange(size), steps // 2
        places = [torch.randint(low, high, (size,), generator=generator) for low, high in ((0, half), (half, steps))]
        for place in places:
            x[rows, place, 1] = 1
        return x, x[rows, places[0], :1] + x[rows, places[1], :1]

    return _drawn(steps, 2, 0, draw)


TASKS: dict[str, Task] = {
    "digits": Task(8, 8, 10, _digits, _digits_held_out),
    "gaussian": Task(8, 8, 10, _gaussian, _gaussian_held_out),
    "regression": Task(8, 8, 0, _regression, _regression_held_out),
    "sequence": recall(20, 19),
    "memory": recall(50, 49),
    "recent": recall(50, 3),
    "echo": echo(50, 3),
    "xor": Task(1, 2, 2, _xor, _xor_points),
}
