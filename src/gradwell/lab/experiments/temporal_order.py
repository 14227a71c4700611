"""The temporal order problem with three symbols."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _memory as memory
from gradwell.report.figures import BLUE, VERMILLION
from gradwell.report.lessons import GREEN, Line, lines

OPTIONS = ("seeds", "epochs")
CHANCE = 1 / 8


def temporal_order(ask: Ask) -> Outcome:
    """In which order did three marked symbols come? An LSTM of four units learns it, a tanh RNN does not.

    What you see:
        The LSTM answers all eight classes right; the RNN gets to know the last symbol and hardly more: 0.23 to 0.29
        right, a little above one in eight.

    Why:
        The first symbol stands in the first fifth of the sequence; the RNN's gradient does not reach back to it.

    Formula:
        T steps of four noise symbols, X or Y at three places, in the first, third and fourth fifth; class one of 2^3.
        Full form: T = 50; quick form: T = 20, two places, four classes. 4 units, Adam .02, clip 1, batch 32, weights
        N(0, .1^2), input-gate bias -1, forget bias 3.

    Source:
        Hochreiter and Schmidhuber 1997, experiment 6; settings of cybertronai/schmidhuber-problems (public domain).
        Reference: LSTM 1.000 in 5 of 5 seeds, RNN .23 to .29.
    """
    steps, T, bits = ask.epochs or ask.pick(1500, 400), ask.pick(50, 20), ask.pick(3, 2)
    seeds = ask.seeds or ask.pick(3, 1)
    rows: list[list[object]] = []
    curves: list[Line] = []
    facts: dict[str, float] = {}
    for name, color in (("tanh RNN", VERMILLION), ("LSTM", GREEN)):
        best = []
        for seed in range(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                course = _run(ask, name, T, bits, steps)
            reference = None if ask.quick else {"tanh RNN": 0.26, "LSTM": 1.0}[name]
            rows.append(
                [
                    name,
                    seed,
                    course.start_decades,
                    2.0**-bits,
                    reference,
                    course.values[-1],
                    next((s for s, v in zip(course.steps, course.values, strict=True) if v > 0.95), None),
                ]
            )
            best.append(course.values[-1])
            label = name if seed == 0 else f"{name}, seed {seed}"
            curves.append(
                Line(
                    label,
                    course.steps,
                    [100 * v for v in course.values],
                    "dashed" if name == "tanh RNN" else "solid",
                    color if seed == 0 else BLUE,
                )
            )
        facts |= {name: sum(best) / len(best), f"{name} decades": float(str(rows[-1][2]))}
    columns = [
        "net",
        "seed",
        "decades, first step against last",
        "chance",
        "reference",
        "share right",
        "step above .95",
    ]
    figure = lines(
        curves,
        title=f"Temporal order, {2**bits} classes, T = {T}",
        x="step of Adam",
        y="percent right",
        said="; ".join(f"{r[0]}: {100 * float(str(r[5])):.0f} %" for r in rows) + ".",
        domain=(0.0, 104.0),
        marks={"chance": 100 * 2.0**-bits},
    )
    return Outcome(
        tables=[Table(f"temporal order, T = {T}, {steps} steps", columns, rows)],
        figures={"right": figure},
        lines=[f"{r[0]}, seed {r[1]}: {float(str(r[5])):.3f} right (chance {2.0**-bits:.3f})" for r in rows],
        deviations=[
            f"{r[0]}, seed {r[1]}: reference {r[4]}, measured {float(str(r[5])):.3f}"
            for r in rows
            if r[4] is not None and abs(float(str(r[4])) - float(str(r[5]))) > 0.15
        ],
        facts={**facts, "chance": 2.0**-bits},
    )


def _batch(size: int, T: int, bits: int) -> memory.Batch:
    """One-hot inputs (B, T, 6): four noise symbols, X and Y; classes (B,)."""
    symbols = torch.randint(0, 4, (size, T))
    starts = [T // 10, T // 3, 2 * T // 3][:bits] if bits == 3 else [T // 10, T // 2]
    label = torch.zeros(size, dtype=torch.long)
    for start in starts:
        place = start + torch.randint(0, max(T // 10, 1), (size,))
        which = torch.randint(0, 2, (size,))
        symbols[torch.arange(size), place] = 4 + which
        label = 2 * label + which
    return torch.nn.functional.one_hot(symbols, 6).float(), label


def _run(ask: Ask, name: str, T: int, bits: int, steps: int) -> memory.Course:
    kind: Callable[..., nn.RNNBase] = nn.LSTM if name == "LSTM" else nn.RNN
    model = memory.Reader(kind(6, 4, batch_first=True), 2**bits)
    for parameter in model.cell.parameters():
        nn.init.normal_(parameter, std=0.1)
    if name == "LSTM":
        memory.forget_bias(model.cell, 3.0, -1.0)
    held = _batch(500, T, bits)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(out, y)

    def measure() -> float:
        with torch.no_grad():
            return float((model(held[0]).argmax(1) == held[1]).float().mean())

    return memory.train(
        model,
        lambda: _batch(32, T, bits),
        loss,
        measure,
        steps=steps,
        lr=0.02,
        every=max(10, steps // 25),
        tick=ask.bar(f"order, {name}", steps),
    )
