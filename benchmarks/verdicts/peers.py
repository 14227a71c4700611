"""The rules of three other tools, written anew from their published thresholds, for the comparison only.

AutoTrainer (ICSE 2021): once an epoch, on the gradients of one batch and the accuracy. A torchmortem-like and a
SageMaker-Debugger-like set: every `LOOK` steps. Where a threshold leaves open what it is taken over, the reading is
said at the rule, and it is the one with fewer alarms. None of them knows a severity: a verdict is an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

from benchmarks.verdicts.families import Batch, Bench
from torch import Tensor, nn

LOOK = 5
"""Steps between two looks."""
SEEN = (nn.ReLU, nn.Tanh, nn.Sigmoid)


class Alarm(NamedTuple):
    """What a peer says, and at which step it says so first."""

    rule: str
    step: int


class Look(NamedTuple):
    """What the rules read at one step. Weight matrices in the order of the model; activations by kind."""

    step: int
    grad_norms: list[float]
    grad_means: list[float]
    grad_total: float
    zero_grads: float
    finite: bool
    ratios: list[float]
    relu_zero: list[float]
    relu_idle: list[float]
    tanh_flat: list[float]
    sigmoid_flat: list[float]
    tanh_in: list[float]
    sigmoid_in: list[float]


class Recorder:
    """Looks at a plain training as these tools do: hooks on modules, gradients after the backward pass."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.looks: list[Look] = []
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.held: list[float] = []
        self._right: list[float] = []
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        self._handles: list[Any] = []
        self._before: list[Tensor] = []
        self._weights: list[nn.Parameter] = []

    def begins(self, bench: Bench, step: int, batch: Batch) -> None:
        if bench.right is not None:
            self._right.append(accuracy(bench, batch) if self.looking(step) else math.nan)
        if not self.looking(step):
            return
        self._calls = []
        self._handles = [m.register_forward_hook(self._seen) for m in bench.model.modules() if isinstance(m, SEEN)]
        self._weights = [p for turn in bench.turns for p in turn.parameters if p.dim() >= 2]
        self._before = [p.detach().clone() for p in self._weights]

    def looking(self, step: int) -> bool:
        return step % LOOK == 0 or step % self.epoch == 0

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls.append((module, inputs[0].detach(), output.detach()))

    def backward(self, bench: Bench, step: int) -> None:  # noqa: ARG002
        for handle in self._handles:
            handle.remove()

    def ends(self, bench: Bench, step: int, loss: float) -> None:
        self.losses.append(loss)
        if self.looking(step):
            self.looks.append(self._look(bench, step))
        if (step + 1) % self.epoch == 0 and bench.right is not None and bench.held is not None:
            self.accuracies.append(fmean([value for value in self._right if not math.isnan(value)] or [0.0]))
            self._right = []
            self.held.append(accuracy(bench, bench.held))

    def _look(self, bench: Bench, step: int) -> Look:
        grads = [p.grad.detach() for p in self._weights if p.grad is not None]
        every = [p.grad.detach() for turn in bench.turns for p in turn.parameters if p.grad is not None]
        count = sum(g.numel() for g in every)
        moved = [
            float((p.detach() - before).norm() / before.norm().clamp_min(1e-12))
            for p, before in zip(self._weights, self._before, strict=True)
        ]
        of = {kind: [(x, y) for m, x, y in self._calls if isinstance(m, kind)] for kind in SEEN}
        norms = [float(g.double().norm()) for g in grads]
        return Look(
            step=step,
            grad_norms=norms,
            grad_means=[float(g.double().abs().mean()) for g in grads],
            grad_total=math.hypot(*(float(g.double().norm()) for g in every)),
            zero_grads=sum(int((g == 0).sum()) for g in every) / max(count, 1),
            finite=all(bool(t.isfinite().all()) for t in [*every, *self._weights]),
            ratios=moved,
            relu_zero=[share(y == 0) for _, y in of[nn.ReLU]],
            relu_idle=[idle(y) for _, y in of[nn.ReLU]],
            tanh_flat=[share(y.abs() > 0.99) for _, y in of[nn.Tanh]],
            sigmoid_flat=[share((y < 0.01) | (y > 0.99)) for _, y in of[nn.Sigmoid]],
            tanh_in=[share(x.abs() > 9.4999) for x, _ in of[nn.Tanh]],
            sigmoid_in=[share((x < -23) | (x > 17)) for x, _ in of[nn.Sigmoid]],
        )


def accuracy(bench: Bench, batch: Batch) -> float:
    """Share of right answers in evaluation mode: no random number is drawn and no statistics move."""
    assert bench.right is not None
    bench.model.eval()
    found = bench.right(batch)
    bench.model.train()
    return found


def share(mask: Tensor) -> float:
    return float(mask.double().mean())


def idle(outputs: Tensor) -> float:
    """Share of the units that are active for less than 1 % of the samples."""
    active = (outputs > 0).double().transpose(0, 1).flatten(1) if outputs.dim() > 1 else (outputs > 0).double()[None]
    return share(active.mean(1) < 0.01)


# ------------------------------------------------------------------ AutoTrainer

GATE = 0.7


def autotrainer(seen: Recorder) -> list[Alarm]:
    """Vanishing, exploding, dying ReLU, oscillating loss, slow convergence, NaN loss, with the default thresholds.

    NaN and a loss of 1000 or more alarm at once; the rest needs an accuracy below 0.7 and is first said at 30 % of the
    epochs. Tasks without an accuracy only have the first two.
    """
    alarms = [Alarm("exploding", step) for step in first(look.step for look in seen.looks if not look.finite)]
    alarms += [Alarm("NaN loss", n) for n in first(n for n, x in enumerate(seen.losses) if not abs(x) < 1e3)]
    if not seen.accuracies:
        return alarms
    begin = math.ceil(0.3 * len(seen.accuracies))
    at_start = {look.step: look for look in seen.looks}
    for epoch in range(max(begin, 1), len(seen.accuracies) + 1):
        accuracies, look = seen.accuracies[:epoch], at_start[(epoch - 1) * seen.epoch]
        step = epoch * seen.epoch - 1
        alarms += [Alarm(rule, step) for rule in at_epoch(accuracies, seen.held[:epoch], look)]
    return alarms


def at_epoch(accuracies: Sequence[float], held: Sequence[float], look: Look) -> list[str]:
    found: list[str] = []
    if max(accuracies) < GATE and look.grad_norms:
        near, far = look.grad_norms[0], look.grad_norms[-1]
        r = near / far if far else math.nan
        found += ["vanishing"] if (r < 1e-3 and near < 1e-4) or near == far == 0 else []
        found += ["exploding"] if r > 70 else []
        found += ["dying ReLU"] if look.zero_grads >= 0.7 else []
        found += ["slow convergence"] if len(held) > 1 and max(rise(accuracies), rise(held)) < 0.01 else []
    swinging = len(accuracies) > 2 and swings(accuracies) >= 0.2 * len(accuracies)
    return found or (["oscillating loss"] if swinging else [])


def rise(values: Sequence[float]) -> float:
    return max(b - a for a, b in pairwise(values))


def swings(accuracies: Sequence[float]) -> int:
    """Neighbouring local maxima and minima of the accuracy that are 0.03 or more apart."""
    around = zip(accuracies, accuracies[1:], accuracies[2:], strict=False)
    turns = [here for before, here, after in around if (here - before) * (after - here) < 0]
    return sum(abs(b - a) >= 0.03 for a, b in zip(turns[::2], turns[1::2], strict=False))


def first(steps: Iterable[int]) -> list[int]:
    return list(steps)[:1]


# ------------------------------------------------------------------ torchmortem-like


def torchmortem(seen: Recorder) -> list[Alarm]:
    """Gradient norms 100 times apart between first and last weight; a norm above 1000; half of a ReLU layer's outputs
    0, or half of a tanh or sigmoid layer's at its ends, at half of the looks; updates outside 1e-5 ... 0.1 (median over
    the weights) at half of the looks; a loss that moves less than 1e-5 in 20 steps.
    """
    alarms: list[Alarm] = []
    counts = {"dead": 0, "saturated": 0, "update": 0}
    for n, look in enumerate(seen.looks, start=1):
        if look.grad_norms and look.grad_norms[0] * 100 < look.grad_norms[-1]:
            alarms.append(Alarm("vanishing", look.step))
        if look.grad_total > 1e3 or not look.finite:
            alarms.append(Alarm("exploding", look.step))
        counts["dead"] += any(value > 0.5 for value in look.relu_zero)
        counts["saturated"] += any(value > 0.5 for value in [*look.tanh_flat, *look.sigmoid_flat])
        counts["update"] += not 1e-5 <= median(look.ratios) <= 0.1
        alarms += [Alarm(rule, look.step) for rule, count in counts.items() if n >= 4 and count >= n / 2]
    flat = (
        n for n in range(20, len(seen.losses)) if max(seen.losses[n - 20 : n]) - min(seen.losses[n - 20 : n]) < 1e-5
    )
    return alarms + [Alarm("plateau", n) for n in first(flat)]


# ------------------------------------------------------------------ SageMaker-Debugger-like


def sagemaker(seen: Recorder) -> list[Alarm]:
    """A weight's gradient below 1e-7 on average; NaN or infinity; half of a ReLU layer active for less than 1 % of the
    samples; half of a tanh layer's inputs beyond 9.4999 or of a sigmoid's outside -23 ... 17; an update outside
    1e-8 ... 10 (median over the weights); a loss that has not come down by 0.1 % (ten steps against the ten before).
    """
    alarms: list[Alarm] = []
    for look in seen.looks:
        if any(value < 1e-7 for value in look.grad_means):
            alarms.append(Alarm("vanishing", look.step))
        if not look.finite:
            alarms.append(Alarm("exploding", look.step))
        if any(value > 0.5 for value in look.relu_idle):
            alarms.append(Alarm("dead ReLU", look.step))
        if any(value > 0.5 for value in [*look.tanh_in, *look.sigmoid_in]):
            alarms.append(Alarm("saturated", look.step))
        if not 1e-8 <= median(look.ratios) <= 10:
            alarms.append(Alarm("update", look.step))
    means = [fmean(seen.losses[n : n + 10]) for n in range(0, len(seen.losses) - 9, 10)]
    stuck = (10 * n + 9 for n in range(1, len(means)) if not means[n] < 0.999 * means[n - 1])
    return alarms + [Alarm("loss not decreasing", n) for n in first(stuck)]


PEERS = {"AutoTrainer": autotrainer, "torchmortem-like": torchmortem, "SageMaker-like": sagemaker}
