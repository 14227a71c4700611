"""Layers without an activation between them."""

from __future__ import annotations

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _xor as xor
from gradwell.lab.replicas import XOR_INPUTS, XOR_TARGETS, Replicas, Shape, draw
from gradwell.report.figures import VERMILLION
from gradwell.report.lessons import GREEN, lines
from gradwell.theory.quadrature import Floats

OPTIONS = ("depth", "seeds", "epochs")


def linear_is_not_enough(ask: Ask) -> Outcome:
    """However many linear layers there are, together they are one linear map, and XOR fails.

    What you see:
        The linear net comes to a loss of 0.5 (0.501, as online steps jitter), an output of 1/2 for all four points,
        whatever its depth. The product of its matrices gives the same outputs to the last digits. With tanh between the
        layers the same net solves XOR.

    Why:
        W3 (W2 (W1 x + b1) + b2) + b3 = A x + c. No line parts (0,1) and (1,0) from (0,0) and (1,1); the best that any
        linear map can do is the mean of the targets.

    Formula:
        A = W_L ... W_1, c = sum of W_L ... W_(l+1) b_l. Least squares on XOR: A = 0, c = 1/2, loss 4 (1/2)^2 / 2 = 0.5.

    Source:
        Minsky and Papert 1969.
    """
    seeds, epochs = ask.seeds or 10, ask.epochs or ask.pick(10_000, 4_000)
    depths = [ask.depth] if ask.depth else ask.pick([0, 1, 2, 4, 8], [0, 2, 4])
    rows: list[list[object]] = []
    linear = []
    worst = 0.0
    for depth in depths:
        shape = Shape(hidden=depth, activation="identity", output="identity")
        trial = xor.Trial(name=f"linear, {depth + 2} layers", shape=shape, init="xavier_uniform",
                          settings={"lr": 3e-3})  # fmt: skip
        trained = xor.train(ask, trial, seeds=seeds, epochs=epochs)
        linear.append(trained)
        difference = _difference(shape, seeds)
        worst = max(worst, difference)
        rows.append([trial.name, 0.5, float(np.median(trained.run.losses)), difference])
    bent = xor.Trial(name="tanh between the layers", shape=Shape(hidden=2, activation="tanh"), init="xavier_uniform",
                     settings={"lr": 3e-3})  # fmt: skip
    tanh = xor.train(ask, bent, seeds=seeds, epochs=epochs)
    rows.append([bent.name, None, float(np.median(tanh.run.losses)), None])
    curves = [
        xor.course_line(linear[-1], linear[-1].trial.name, color=VERMILLION, stroke="dashed"),
        xor.course_line(tanh, bent.name, color=GREEN),
    ]
    said = f"The linear net ends at {rows[-2][2]:.3g}, the net with tanh at {rows[-1][2]:.1g} (medians)."
    figure = lines(curves, title="XOR without and with an activation", x="epoch", y="epoch loss, decades (log10)",
                   said=said, marks={"0.5: the best linear map": float(np.log10(0.5))})  # fmt: skip
    columns = ["net", "predicted loss", "measured loss", "largest |net(x) - (A x + c)|"]
    losses = [float(np.median(t.run.losses)) for t in linear]
    return Outcome(
        tables=[Table("one linear map", columns, rows)],
        figures={"loss": figure},
        lines=[*xor.truth_lines(linear[-1].run), f"the best linear map by least squares: loss {_least_squares():.3g}"],
        facts={"linear": max(losses), "linear_least": min(losses), "tanh": float(np.median(tanh.run.losses)),
               "difference": worst, "least_squares": _least_squares()},
    )  # fmt: skip


def _difference(shape: Shape, seeds: int) -> float:
    """Largest difference between the nets and the products of their matrices, at their start."""
    nets = Replicas(shape, seeds, batch=4)
    draw(nets, "xavier_uniform", range(seeds))
    for bias in nets.biases:
        bias[...] = 0.3
    out = nets.forward(XOR_INPUTS)
    worst = 0.0
    for r in range(seeds):
        a, c = np.eye(2), np.zeros(2)
        for w, b in zip(nets.weights, nets.biases, strict=True):
            a, c = w[r] @ a, w[r] @ c + b[r]
        worst = max(worst, float(np.abs(out[r] - (XOR_INPUTS @ a.T + c)).max()))
    return worst


def _least_squares() -> float:
    x: Floats = np.hstack([XOR_INPUTS, np.ones((4, 1))])
    best = np.linalg.lstsq(x, XOR_TARGETS, rcond=None)[0]
    return float(0.5 * np.square(x @ best - XOR_TARGETS).sum())
