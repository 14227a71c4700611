"""Sentences that tutorials repeat, each checked with a number."""

from __future__ import annotations

import math

import numpy as np
import torch

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.experiments.clipping import by_norm
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION
from gradwell.report.lessons import Line, lines
from gradwell.theory import meanfield
from gradwell.theory.nonlinearity import nonlinearity

OPTIONS = ("depth", "seeds")


def claims(ask: Ask) -> Outcome:
    """Five sentences from tutorials, each with the number that shows it wrong.

    What you see:
        "Clipping keeps gradients from becoming too small": it multiplies by at most 1 and leaves a small gradient
        exactly as it was. "ReLU explodes less than tanh": with large weights ReLU grows without bound, tanh saturates
        and grows slowly. "Good initialisers set the weights close to 1": Xavier at width 64 has a typical weight of
        0.125, and weights near 1 explode. "Tanh ranges from 0 to -1": it ranges from -1 to 1. "Tanh saturates when
        its output is very small": it saturates when the output is near -1 or 1; at a small output its slope is 1.

    Why:
        Each sentence mixes up two things that a number keeps apart.

    Formula:
        Clip: g min(1, c / |g|). Gain a layer: sqrt(sigma_w2 / 2) for ReLU, sqrt(sigma_w2 D(q*)) for tanh, with D
        falling like 1 / sqrt q. Xavier: std 1 / sqrt(n). tanh' = 1 - y^2.

    Source:
        Sentences found in several tutorials; Pascanu et al. 2013, Glorot and Bengio 2010, Poole et al. 2016.
    """
    depth, seeds = ask.depth or 20, ask.seeds or ask.pick(10, 3)
    small = [torch.full((4,), 1e-9)]
    by_norm(0.25)(small)
    clipped = float(small[0][0])
    w2s = [2.0, 4.0, 8.0, 16.0]
    gains: dict[str, list[float]] = {"relu": [], "tanh": []}
    theory: dict[str, list[float]] = {"relu": [], "tanh": []}
    for activation in ("relu", "tanh"):
        for w2 in ask.track(w2s, activation):
            config = NetConfig(depth=depth, activation=activation, task="gaussian", dtype="float64")
            found = nets.measured(config, seeds, nets.draw(lambda n, w2=w2: math.sqrt(w2 / n)))  # type: ignore[misc]
            gains[activation].append(float(np.median([s.gain for s in found])))
            theory[activation].append(float(meanfield.log10_gain_by_layer(activation, depth, w2).sum()))
    typical = 64**-0.5
    near_one = nets.measured(NetConfig(depth=depth, task="gaussian", dtype="float64"), seeds, nets.draw(lambda _: 1.0))
    exploded = float(np.median([s.gain for s in near_one]))
    y = np.tanh(np.linspace(-20, 20, 4001))
    slope = {v: float(1 - v * v) for v in (0.0, 0.01, 0.5, 0.99, -0.99)}
    at_small = float(nonlinearity("tanh").slope(np.array([math.atanh(0.01)]))[0])
    rows = [
        [
            "clipping keeps gradients from becoming too small",
            "a gradient of 1e-9, clipped at .25",
            1e-9,
            clipped,
            "wrong",
        ],
        [
            "ReLU explodes less than tanh",
            f"decades of tanh minus ReLU, {depth} layers, sigma_w2 = 8",
            theory["tanh"][2] - theory["relu"][2],
            gains["tanh"][2] - gains["relu"][2],
            "wrong",
        ],
        ["good initialisers set the weights close to 1", "typical Xavier weight, width 64", typical, typical, "wrong"],
        [
            "(weights of size 1)",
            f"decades of a ReLU net of {depth} layers",
            depth / 2 * math.log10(32),
            exploded,
            "explodes",
        ],
        ["tanh ranges from 0 to -1", "largest output", 1.0, float(y.max()), "wrong"],
        ["", "smallest output", -1.0, float(y.min()), ""],
        ["tanh saturates when its output is very small", "slope at an output of .01", slope[0.01], at_small, "wrong"],
        [
            "",
            "slope at an output of .99",
            slope[0.99],
            float(nonlinearity("tanh").slope(np.array([math.atanh(0.99)]))[0]),
            "",
        ],
    ]
    figure = lines(
        [
            Line("ReLU", w2s, gains["relu"], color=VERMILLION, points=True),
            Line("tanh", w2s, gains["tanh"], color=BLUE, points=True),
            Line("predicted", w2s, theory["relu"], "dotted", "#6E7781"),
            Line(" ", w2s, theory["tanh"], "dotted", "#6E7781"),
        ],
        title=f"Who explodes more? {depth} layers of 64",
        x="sigma_w2 = fan_in Var W",
        y="log10 |delta_1| / |delta_out| (decades)",
        said=f"At sigma_w2 = 16: ReLU {gains['relu'][-1]:.1f}, tanh {gains['tanh'][-1]:.1f} decades.",
    )
    outputs = np.linspace(-0.999, 0.999, 201)
    bent = lines(
        [Line("tanh", list(outputs), list(1 - outputs**2), color=BLUE)],
        title="Tanh: slope against output",
        x="output y",
        y="slope 1 - y^2",
        said="The slope is largest where the output is small.",
        span=None,
    )
    return Outcome(
        tables=[Table("claims", ["sentence", "number", "predicted", "measured", "verdict"], [list(r) for r in rows])],
        figures={"explode": figure, "tanh": bent},
        lines=[f"{r[0]}: {r[4]}" for r in rows if r[0]],
        facts={
            "clipped": clipped,
            "relu": gains["relu"][2],
            "tanh": gains["tanh"][2],
            "typical": typical,
            "weights of 1": exploded,
            "largest": float(y.max()),
            "smallest": float(y.min()),
            "slope small": at_small,
            "worst": max(abs(a - b) for k in gains for a, b in zip(gains[k], theory[k], strict=True)),
        },
    )
