"""Short trainings of lab nets: the losses, and how many steps they take to a target.

Used to calibrate severity (design: severity means training, not decades): the same net, sick and cured, each at its
own best learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch

from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn, optimizer
from gradwell.records.net import NetConfig

SMOOTHING = 0.9
"""Weight of the past in the running mean of the loss."""


def train(config: NetConfig, *, steps: int, lr: float | None = None) -> list[float]:
    """The loss of each step, before its update; ends early at a loss that is not finite, which is its last entry.

    Deterministic: dropout draws from a generator of its own seed; the global one is untouched.
    """
    with torch.random.fork_rng(devices=[]):
        return list(islice(_losses(config, lr), steps))


def steps_to(
    config: NetConfig,
    *,
    target_loss: float = 0.5,
    max_steps: int = 1000,
    lr_grid: tuple[float, ...] = (0.3, 1, 3, 10),
) -> float | None:
    """Steps until the smoothed loss is below a target, at the best of `lr_grid` times the config's rate.

    None when no rate gets there in `max_steps`. Compare two nets by the ratio of their steps.
    """
    best: int | None = None
    for factor in lr_grid:
        limit = max_steps if best is None else best - 1
        with torch.random.fork_rng(devices=[]):
            found = _first_below(islice(_losses(config, factor * config.lr), limit), target_loss)
        best = found or best
    return None if best is None else float(best)


def _losses(config: NetConfig, lr: float | None) -> Iterator[float]:
    """Train for ever, or until the loss is not finite; reseeds the global generator, so call it in a fork."""
    model, loss = build(config), loss_fn(config)
    step = optimizer(config, model, lr=lr)
    torch.manual_seed(config.seed)
    for pair in batches(config):
        step.zero_grad()
        value = loss(model, pair)
        torch.autograd.backward(value)
        step.step()
        yield value.item()
        if not math.isfinite(value.item()):
            return


def _first_below(losses: Iterator[float], target: float) -> int | None:
    """The first step (from 1) at which the running mean, corrected for its start at zero, is below the target."""
    mean = 0.0
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        if mean / (1 - SMOOTHING**step) < target:
            return step
    return None
