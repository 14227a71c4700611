"""A training loop over a `TrainSetup`, the way a user's own loop would run it.

One step: zero_grad, loss and its extra terms, backward (scaled where asked), unscale, edits of the gradients, clipping
by value and by norm, warm-up, optimizer step. A loop can go on where it stopped, and has random numbers of its own:
the same setup and seed give the same losses, whatever runs between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import UsageError
from gradwell.surgery.gradients import Edit, Named, norm_of, scale_to
from gradwell.surgery.optimizers import scaled_rates
from gradwell.surgery.setup import LossFn, TrainSetup, forked

EPOCH = 1_000_003
"""Seed of the next epoch minus this one's: far from the small seeds that callers count up."""

GROWTH_STEPS = 2000
"""Good steps in a row after which a dynamic loss scale doubles, as in torch's GradScaler."""


class Loop:
    """Trains the model of a setup in place; `run` may be called again to go on.

    `losses` holds the loss of each step before its update (extra terms left out), `skipped` the steps that were left
    out because a gradient was not finite.
    """

    def __init__(self, setup: TrainSetup, *, seed: int = 0) -> None:
        if setup.batches is None:
            raise UsageError("A setup without `batches` cannot be trained; give it a function seed -> batches.")
        self.setup = setup
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self.optimizer = setup.optimizer()
        self.scale = setup.loss_scale
        self._seed = seed
        self._good = 0
        self._edits: list[Edit] = [edit.start() for edit in setup.gradient_edits]
        self._batches = self._stream()
        with forked(seed):
            self._random = _random_state()

    def run(self, steps: int, *, stop_when_nonfinite: bool = True) -> list[float]:
        """The losses of the next `steps` steps; ends early at a loss that is not finite, which is its last entry.

        With `skip_nonfinite` or a loss scale such a step is left out and the training goes on.
        """
        found = []
        forgiving = self.setup.skip_nonfinite or self.scale is not None
        with forked():
            _set_random_state(self._random)
            for _ in range(steps):
                found.append(self._step())
                if stop_when_nonfinite and not forgiving and not math.isfinite(found[-1]):
                    break
            self._random = _random_state()
        return found

    def _step(self) -> float:
        batch = next(self._batches)
        setup, optimizer, step = self.setup, self.optimizer, len(self.losses)
        rate = setup.lr_scale * warmup_factor(setup.warmup_steps, step)
        if isinstance(optimizer, torch.optim.LBFGS):  # asks for the loss several times a step
            with scaled_rates(optimizer, rate):
                self.losses.append(float(optimizer.step(partial(self._measure, batch))))  # type: ignore[no-untyped-call]
            return self.losses[-1]
        self.losses.append(float(self._backward(batch)))
        if self._ready():
            with scaled_rates(optimizer, rate):
                optimizer.step()
        return self.losses[-1]

    def _measure(self, batch: Any) -> Tensor:
        """Loss and edited gradients, what an optimizer's closure gives."""
        loss = self._backward(batch)
        edit_gradients(self.setup, self._edits, with_gradient(self.setup.model))
        return loss

    def _backward(self, batch: Any) -> Tensor:
        setup = self.setup
        self.optimizer.zero_grad()
        loss, extra = losses_of(setup.model, batch, setup.loss_fn, setup)
        _check_loss(loss)
        total = loss if extra is None else loss + extra
        scaled = total if self.scale is None else total * self.scale
        scaled.backward()  # type: ignore[no-untyped-call]
        if not self.losses:
            _check_reached(setup.model)
        return loss.detach()

    def _ready(self) -> bool:
        """Prepare the gradients for the step; False where it is to be left out."""
        named = with_gradient(self.setup.model)
        if self.scale is not None:
            for _, p in named:
                if p.grad is not None:
                    p.grad.div_(self.scale)
        if self.setup.skip_nonfinite or self.scale is not None:
            norm, bound = float(norm_of(named)), self.setup.skip_from
            if not math.isfinite(norm) or (bound is not None and norm >= bound):
                self.skipped.append(len(self.losses) - 1)
                self._rescale(good=math.isfinite(norm))
                return False
        self._rescale(good=True)
        edit_gradients(self.setup, self._edits, named)
        return True

    def _rescale(self, *, good: bool) -> None:
        if self.scale is None:
            return
        self._good = self._good + 1 if good else 0
        if not good:
            self.scale /= 2
        elif self._good == GROWTH_STEPS:
            self.scale, self._good = self.scale * 2, 0

    def _stream(self) -> Iterator[Any]:
        """Batches without end: a new epoch under a new seed when they run out."""
        assert self.setup.batches is not None
        epoch = 0
        while True:
            empty = True
            for batch in self.setup.batches(self._seed + EPOCH * epoch):
                empty = False
                yield batch
            if empty:
                raise UsageError(f"batches({self._seed}) gave no batch at all; it must return an iterable of batches.")
            epoch += 1


def train(setup: TrainSetup, *, seed: int = 0, steps: int | None = None) -> list[float]:
    """Train the model of a setup in place and give its losses; `steps` None takes the setup's own.

    >>> from gradwell.surgery.setup import TrainSetup
    >>> net = nn.Linear(1, 1)
    >>> loss = lambda model, x: (model(x) - x).square().mean()
    >>> data = lambda seed: iter([torch.ones(4, 1)])
    >>> losses = train(TrainSetup(net, lambda params: torch.optim.SGD(params, lr=0.1), loss, data), steps=20)
    >>> losses[-1] < losses[0]
    True
    """
    length = steps if steps is not None else setup.steps
    if length is None:
        raise UsageError("How long? Give `steps` to train, or to the TrainSetup.")
    return Loop(setup, seed=seed).run(length)


def losses_of(model: nn.Module, batch: Any, loss_fn: LossFn, setup: TrainSetup) -> tuple[Tensor, Tensor | None]:
    """The loss of a batch, and the sum of what the setup adds to it (None for nothing)."""
    with ExitStack() as stack:
        terms = [stack.enter_context(term.watching(model, batch, loss_fn)) for term in setup.loss_terms]
        loss = loss_fn(model, batch)
        extra = [term(loss) for term in terms]
    return loss, sum(extra[1:], extra[0]) if extra else None


def edit_gradients(setup: TrainSetup, edits: Sequence[Edit], named: Named) -> None:
    """Everything a setup does to the gradients between backward and step, in the loop's order."""
    for edit in edits:
        edit(named)
    if setup.clip_value is not None:
        torch.nn.utils.clip_grad_value_([p for _, p in named], setup.clip_value)
    if setup.clip_norm is not None:
        scale_to(named, setup.clip_norm, norm_of(named))


def with_gradient(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and parameters that have a gradient."""
    return [(name, p) for name, p in model.named_parameters() if p.grad is not None]


def warmup_factor(warmup_steps: int, step: int) -> float:
    """Factor on the rate of a step (from 0): (step + 1) / warmup_steps, at most 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"loss_fn(model, batch) must return a scalar tensor with a gradient, found {found}.")


def _check_reached(model: nn.Module) -> None:
    if not with_gradient(model):
        raise UsageError(
            "The loss gave no gradient to any parameter of the model; loss_fn(model, batch) must use the model that "
            "it is given, because every trial has a copy of it."
        )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), gpus


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
