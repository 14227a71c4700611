"""A NetConfig as a training: its batches, its loss and its optimizer.

>>> model, batch, loss_fn, optimizer = setup(NetConfig(depth=2, task="gaussian"))
>>> loss = loss_fn(model, batch)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import UsageError
from gradwell.lab._ids import pick
from gradwell.lab.data import Batch, batch, batches, held_out, outputs, task
from gradwell.lab.nets import build
from gradwell.records.net import NetConfig

Loss = Callable[[nn.Module, Batch], Tensor]


def setup(config: NetConfig) -> tuple[nn.Module, Batch, Loss, torch.optim.Optimizer]:
    """Model, first batch, loss function and optimizer: what `gw.check` takes."""
    model = build(config)
    return model, batch(config), loss_fn(config), optimizer(config, model)


def loss_fn(config: NetConfig) -> Loss:
    """`loss(model, batch)`, a scalar: the mean over the batch; half precision is compared in float32.

    cross_entropy takes logits, or log-probabilities after output_activation="log_softmax" and probabilities after
    "softmax"; mse compares with one-hot classes; bce takes logits, or probabilities after "sigmoid".
    Raises `UsageError` when the task has no classes and the loss needs them.
    """
    if task(config).classes == 0 and config.loss != "mse":
        raise UsageError(f"The task {config.task!r} has real-valued targets; use loss='mse', not {config.loss!r}.")
    compare = pick(_LOSSES, config.loss, "loss")

    def loss(model: nn.Module, pair: Batch) -> Tensor:
        x, y = pair
        out = model(x)
        return compare(config, out.float() if out.dtype in {torch.float16, torch.bfloat16} else out, y)

    return loss


def _cross_entropy(config: NetConfig, out: Tensor, y: Tensor) -> Tensor:
    out, y = out.flatten(0, -2), y.flatten()
    if config.output_activation == "log_softmax":
        return nn.functional.nll_loss(out, y)
    if config.output_activation == "softmax":
        return nn.functional.nll_loss(out.clamp_min(torch.finfo(out.dtype).tiny).log(), y)
    return nn.functional.cross_entropy(out, y)


def _mse(config: NetConfig, out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(out, _as_numbers(config, y).to(out.dtype))


def _bce(config: NetConfig, out: Tensor, y: Tensor) -> Tensor:
    compare = (
        nn.functional.binary_cross_entropy
        if config.output_activation
        else nn.functional.binary_cross_entropy_with_logits
    )
    return compare(out, _as_numbers(config, y).to(out.dtype))


def _as_numbers(config: NetConfig, y: Tensor) -> Tensor:
    """Targets (B, M): one-hot classes, a yes/no as 0 or 1, real numbers as they are."""
    if y.is_floating_point():
        return y
    units = outputs(config)
    return nn.functional.one_hot(y, units) if units > 1 else y.unsqueeze(1)


_LOSSES: dict[str, Callable[[NetConfig, Tensor, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "bce": _bce,
}


def optimizer(config: NetConfig, model: nn.Module, *, lr: float | None = None) -> torch.optim.Optimizer:
    """The optimizer of a config over all of a model's parameters; `lr` overrides the config's rate.

    `momentum` is passed where the class takes one. Raises `UnknownId` for a class that `torch.optim` lacks.
    """
    make = pick(_optimizers(), config.optimizer, "optimizer")
    settings: dict[str, Any] = {"lr": config.lr if lr is None else lr}
    if "momentum" in inspect.signature(make).parameters:
        settings["momentum"] = config.momentum
    return make(model.parameters(), **settings)


def _optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    found = inspect.getmembers(torch.optim, inspect.isclass)
    base = torch.optim.Optimizer
    return {name: kind for name, kind in found if issubclass(kind, base) and kind is not base}


__all__ = ["Batch", "Loss", "batch", "batches", "held_out", "loss_fn", "optimizer", "setup"]
