"""What the XOR lessons share: training with a progress bar, and the lesson's own way of printing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gradwell.lab.experiment import Ask
from gradwell.lab.replicas import (
    OPTIMIZERS,
    XOR_INPUTS,
    XOR_TARGETS,
    Replicas,
    Shape,
    XorRun,
    draw,
    train_xor,
)
from gradwell.report.figures import VERMILLION
from gradwell.report.lessons import Line
from gradwell.theory.quadrature import Floats


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train XOR, and how many of 20 seeds it should solve (None: no reference)."""

    name: str
    shape: Shape = Shape()
    init: str = "uniform01"
    optimizer: str = "adam"
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    full_batch: bool = False
    clip_norm: float | None = None
    reference: tuple[int, int] | None = None
    """fewest and most of 20 seeds"""
    median: float | None = None


class Trained(msgspec.Struct, frozen=True):
    """A trial that has run, with the sizes of the gradients at its start (layers, seeds)."""

    trial: Trial
    run: XorRun
    deltas: Floats
    weight_grads: Floats
    seeds: int


def train(ask: Ask, trial: Trial, *, seeds: int, epochs: int) -> Trained:
    """Train all seeds of a trial at once."""
    nets = Replicas(trial.shape, seeds, batch=4 if trial.full_batch else 1)
    draw(nets, trial.init, range(seeds))
    deltas, grads = start_sizes(trial, seeds)
    update = OPTIMIZERS[trial.optimizer](nets.parameters.size, **trial.settings)
    bar = ask.bar(trial.name, epochs)
    seen = [0]

    def tick(epoch: int, losses: Floats) -> None:
        del losses
        bar(epoch - seen[0])
        seen[0] = epoch

    run = train_xor(
        nets, update, epochs=epochs, full_batch=trial.full_batch, clip_norm=trial.clip_norm, tick=tick,
        report=min(1000, max(1, epochs // 20)),
    )  # fmt: skip
    bar(epochs - seen[0])
    return Trained(trial, run, deltas, grads, seeds)


def start_sizes(trial: Trial, seeds: int) -> tuple[Floats, Floats]:
    """|delta_l| and |dLoss/dW_l| at the start for x = (0, 1): (layers, seeds); with batch norm, of the whole batch."""
    batch = slice(0, 4) if trial.shape.norm else slice(1, 2)
    nets = Replicas(trial.shape, seeds, batch=len(XOR_INPUTS[batch]))
    draw(nets, trial.init, range(seeds))
    nets.forward(XOR_INPUTS[batch])
    nets.backward(XOR_TARGETS[batch])
    return nets.profile(), nets.weight_gradient_norms()


def decades(values: Floats) -> Floats:
    """log10, minus infinity for zero."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log10(values))


def layer_lines(shape: Shape) -> list[str]:
    """The layer table as the lesson prints it."""
    rule = "-" * 46
    rows = [f"{name:<22}{out:>10}{count:>14}" for name, out, count in shape.layer_table()]
    head = f"{'layer':<22}{'output':>10}{'parameters':>14}"
    return [rule, head, rule, *rows, rule, f"Total params: {shape.parameters}", rule]


def loss_lines(run: XorRun, *, most: int = 20) -> list[str]:
    """The epoch loss (median over seeds) as the lesson prints it."""
    step = math.ceil(len(run.course) / most)
    kept = [*run.course[:-1:step], run.course[-1]]
    return [f"epoch {epoch:>7,}  loss {np.median(losses):.7f}" for epoch, losses in kept]


def truth_lines(run: XorRun, seed: int = 0) -> list[str]:
    """The truth table of one seed."""
    rows = [f"  {int(a)} xor {int(b)} = {y:.6f}" for (a, b), y in zip(XOR_INPUTS, run.truth[seed], strict=True)]
    return [f"truth table, seed {seed}", *rows]


def row(trained: Trained) -> list[object]:
    """Name, reference, solved, learnt, stuck, median epochs to .01 and to 1e-7."""
    run, trial = trained.run, trained.trial
    learnt = run.learnt[np.isfinite(run.learnt)]
    return [
        trial.name, _expected(trial), int(np.isfinite(run.solved).sum()), int(learnt.size), run.stuck, trained.seeds,
        float(np.median(learnt)) if learnt.size else None,
        trial.median, run.median_epochs if np.isfinite(run.solved).any() else None,
    ]  # fmt: skip


COLUMNS = ["net", "reference: solved of 20", "solved", "loss <= .01", "stuck at 1/2", "seeds", "median epochs to .01",
           "reference: median to 1e-7", "median epochs to 1e-7"]  # fmt: skip


def _expected(trial: Trial) -> str | None:
    if trial.reference is None:
        return None
    low, high = trial.reference
    return f"{low}" if low == high else f"{low} to {high}"


def deviations(trained: Sequence[Trained], *, full: bool) -> list[str]:
    """Where the share solved lies outside what 20 other seeds would give; only after a full training."""
    return [text for t in trained if full and t.trial.reference is not None for text in _deviation(t)]


def _deviation(t: Trained) -> list[str]:
    assert t.trial.reference is not None
    low, high = (k / 20 for k in t.trial.reference)
    found = t.run.share_solved
    middle = min(max((low + high) / 2, 1 / 22), 21 / 22)
    # two standard deviations of the difference of two shares, each of their own seeds
    room = 2 * math.sqrt(middle * (1 - middle) * (1 / 20 + 1 / t.seeds))
    if low - room <= found <= high + room:
        return []
    return [
        f"{t.trial.name}: the reference solves {_expected(t.trial)} of 20, here {round(found * t.seeds)} of {t.seeds}"
    ]


def course_line(trained: Trained, name: str, *, color: str = VERMILLION, stroke: str = "solid") -> Line:
    """Median epoch loss over epochs, band from the 10th to the 90th percentile, in decades."""
    epochs = [epoch for epoch, _ in trained.run.course]
    losses = decades(np.array([values for _, values in trained.run.course]))
    low, mid, high = np.percentile(losses, [10, 50, 90], axis=1, method="nearest")
    return Line(name, epochs, list(mid), stroke, color, (list(low), list(high)))


def profile_line(trained: Trained, name: str, *, weights: bool = False, color: str = "", stroke: str = "solid") -> Line:
    """The size at the start of delta (or of the weight gradient) by layer, in decades: median and range over seeds."""
    values = decades(trained.weight_grads if weights else trained.deltas)
    layers = list(range(1, len(values) + 1))
    low, mid, high = np.percentile(values, [10, 50, 90], axis=1, method="nearest")
    return Line(name, layers, list(mid), stroke, color, (list(low), list(high)), points=True)
