"""One plain training of a case: the loop as people write it, and the faults that come while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from benchmarks.verdicts.cases import Case
from benchmarks.verdicts.families import FAMILIES, Batch, Bench, Turn
from torch import nn

SMOOTHING = 0.9
"""Weight of the past in the running mean that is compared with the target."""


class Observer(Protocol):
    """Looks at a training from outside: before the forward pass, after the backward pass, after the step."""

    def begins(self, bench: Bench, step: int, batch: Batch, /) -> None: ...
    def backward(self, bench: Bench, step: int, /) -> None: ...
    def ends(self, bench: Bench, step: int, loss: float, /) -> None: ...


class Trained(NamedTuple):
    """`values`: what is compared with the target, the loss where a family has no other measure. `reached`: steps until
    their running mean was below the target, None if never; `last`: the running mean at the end.
    """

    losses: list[float]
    values: list[float]
    reached: int | None
    last: float
    bench: Bench


def built(case: Case, seed: int) -> Bench:
    """The network of a case, drawn from its seed."""
    torch.manual_seed(seed)
    return FAMILIES[case.family](case.knobs, seed)


def train(
    case: Case, seed: int, *, times: float = 1.0, steps: int | None = None, until_target: bool = False,
    hopeless: Callable[[int, float], bool] = lambda _step, _smooth: False, observer: Observer | None = None,
) -> Trained:  # fmt: skip
    """Train the network of a case. `times` multiplies the learning rate; `until_target` stops when it is reached;
    `hopeless`, asked with the number of steps and the running mean, when it says so.
    """
    bench = built(case, seed)
    optimizers = [optimizer(case, turn.parameters, times) for turn in bench.turns]
    torch.manual_seed(seed)
    losses: list[float] = []
    values: list[float] = []
    mean = smooth = 0.0
    reached = None
    for step, batch in enumerate(islice(faulty(case, bench.batches), steps or case.steps)):
        if case.fault == "rate_jump" and step == case.at:
            for stepper in optimizers:
                stepper.param_groups[0]["lr"] *= case.size
        if observer is not None:
            observer.begins(bench, step, batch)
        after_backward = partial(observer.backward, bench, step) if observer is not None else lambda: None
        turns = zip(bench.turns, optimizers, strict=True)
        losses.append(sum([one_step(turn, stepper, batch, case.clip, after_backward) for turn, stepper in turns]))
        if observer is not None:
            observer.ends(bench, step, losses[-1])
        values.append(bench.measure() if bench.measure is not None else losses[-1])
        mean = SMOOTHING * mean + (1 - SMOOTHING) * values[-1]
        smooth = mean / (1 - SMOOTHING ** (step + 1))
        if reached is None and smooth < bench.target and step >= bench.settled:
            reached = step + 1
        if until_target and (reached is not None or not math.isfinite(losses[-1]) or hopeless(step + 1, smooth)):
            break
    return Trained(losses, values, reached, smooth, bench)


def one_step(
    turn: Turn, stepper: torch.optim.Optimizer, batch: Batch, clip: float, after_backward: Callable[[], object]
) -> float:
    """Backward pass and optimizer step of one turn."""

    def closure() -> float:
        stepper.zero_grad()
        value = turn.loss(batch)
        value.backward()
        return value.item()

    if isinstance(stepper, torch.optim.LBFGS):
        loss = float(stepper.step(closure))  # type: ignore[arg-type]
        after_backward()
        return loss
    loss = closure()
    if clip:
        nn.utils.clip_grad_norm_(turn.parameters, clip)
    after_backward()
    stepper.step()
    return loss


def optimizer(case: Case, parameters: list[nn.Parameter], times: float) -> torch.optim.Optimizer:
    """The optimizer of a case over the parameters of one turn."""
    rate = case.lr * times
    if case.optimizer == "lbfgs":
        return torch.optim.LBFGS(parameters, lr=rate, max_iter=4, line_search_fn="strong_wolfe")
    if case.optimizer in ("sgd", "momentum"):
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9 if case.optimizer == "momentum" else 0.0)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
    }  # fmt: skip
    settings = {"betas": (0.5, 0.999)} if case.family == "gan" and case.optimizer == "adam" else {}
    return kinds[case.optimizer](parameters, lr=rate, **settings)


def faulty(case: Case, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, with what is wrong with one of them or with all from a step on."""
    for step, (x, y) in enumerate(batches):
        if case.fault == "nan_batch" and step == case.at:
            spoilt = x.clone()
            spoilt[0] = math.nan
            yield spoilt, y
        elif case.fault == "bad_batch" and step == case.at:
            yield x * case.size, y
        else:
            yield x, y
