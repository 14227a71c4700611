"""The adding problem."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _memory as memory
from gradwell.report.figures import BLUE, VERMILLION
from gradwell.report.lessons import GREEN, Line, lines

OPTIONS = ("seeds", "epochs")
BASELINE = 1 / 6


def adding(ask: Ask) -> Outcome:
    """Add the two marked numbers of a long sequence: an LSTM learns it, a tanh RNN stays at the baseline.

    What you see:
        The RNN's error stays at 1/6, which is what answering 1 every time costs. The LSTM's falls to the thousandths.
        The table tells it before training: the RNN's gradient at the first step is 19 decades smaller than at the last;
        the LSTM with forget bias 1 starts with 8 and opens its gates as it learns.

    Why:
        The first mark lies up to T steps back; the gradient that would tell the weights about it is a product of T
        factors.

    Formula:
        Inputs (u_t, m_t), u ~ U(0, 1), m marks one step in each half; target u_i + u_j, variance 2/12 = 1/6. Full form:
        T = 100, 32 units, batch 32, Adam .01, clip 1. Quick form: T = 30.

    Source:
        Hochreiter and Schmidhuber 1997, experiment 4; Le et al. 2015 for U(0, 1). Reference: LSTM .0002, tanh .162.
    """
    steps, T = ask.epochs or ask.pick(3000, 500), ask.pick(100, 30)
    seeds = ask.seeds or ask.pick(2, 1)
    rows: list[list[object]] = []
    curves: list[Line] = []
    facts: dict[str, float] = {}
    for name, color in (("tanh RNN", VERMILLION), ("LSTM", GREEN)):
        for seed in range(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                course = _run(ask, name, T, steps)
            reference = None if ask.quick else {"tanh RNN": 0.162, "LSTM": 0.0002}[name]
            rows.append(
                [
                    name,
                    seed,
                    course.start_decades,
                    BASELINE,
                    reference,
                    course.values[-1],
                    next((s for s, v in zip(course.steps, course.values, strict=True) if v < 0.05), None),
                ]
            )
            facts |= {name: course.values[-1], f"{name} decades": course.start_decades}
            label = name if seed == 0 else f"{name}, seed {seed}"
            stroke = "dashed" if name == "tanh RNN" else "solid"
            y = [math.log10(v) for v in course.values]
            curves.append(Line(label, course.steps, y, stroke, color if seed == 0 else BLUE))
    columns = [
        "net",
        "seed",
        "decades, first step against last",
        "baseline",
        "reference error",
        "mean squared error",
        "step below .05",
    ]
    figure = lines(
        curves,
        title=f"The adding problem, T = {T}",
        x="step of Adam",
        y="mean squared error, decades (log10)",
        said="; ".join(f"{r[0]} ends at {r[5]:.2g}" for r in rows) + ".",
        span=3.0,
        marks={"1/6: always answering 1": math.log10(BASELINE)},
    )
    return Outcome(
        tables=[Table(f"adding, T = {T}, {steps} steps", columns, rows)],
        figures={"error": figure},
        lines=[f"{r[0]}, seed {r[1]}: {r[5]:.4f} (baseline {BASELINE:.4f})" for r in rows],
        deviations=[
            f"{r[0]}, seed {r[1]}: reference {r[4]}, measured {r[5]:.3g}"
            for r in rows
            if r[4] is not None and (float(str(r[5])) < 0.05) != (float(str(r[4])) < 0.05)
        ],
        facts=facts,
    )


def _batch(size: int, T: int) -> memory.Batch:
    values = torch.rand(size, T)
    marks = torch.zeros(size, T)
    rows = torch.arange(size)
    first, second = torch.randint(0, T // 2, (size,)), torch.randint(T // 2, T, (size,))
    marks[rows, first] = 1
    marks[rows, second] = 1
    target = values[rows, first] + values[rows, second]
    return torch.stack([values, marks], dim=2), target[:, None]


def _run(ask: Ask, name: str, T: int, steps: int) -> memory.Course:
    kind: Callable[..., nn.RNNBase] = nn.LSTM if name == "LSTM" else nn.RNN
    model = memory.Reader(kind(2, 32, batch_first=True), 1)
    if name == "LSTM":
        memory.forget_bias(model.cell, 1.0)
    held = _batch(500, T)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(out, y)

    def measure() -> float:
        with torch.no_grad():
            return float(loss(model(held[0]), held[1]))

    return memory.train(
        model,
        lambda: _batch(32, T),
        loss,
        measure,
        steps=steps,
        lr=0.01,
        every=max(10, steps // 25),
        tick=ask.bar(f"adding, {name}", steps),
    )
