"""Uniform and normal weights of the same variance."""

from __future__ import annotations

import math

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION, Spec
from gradwell.report.lessons import Line, lines, predicted

OPTIONS = ("depth", "seeds")
CASES = (("relu", 2.0), ("tanh", 1.0), ("sigmoid", 1.0))


def uniform_vs_normal(ask: Ask) -> Outcome:
    """Uniform or normal: with the same variance the gradient's profile is the same.

    What you see:
        Two densities that look quite different and two profiles that lie on each other and on the theory's line.

    Why:
        A pre-activation is a sum of many weights times inputs; by the central limit theorem only the variance of the
        weights is left. What differs is of order 1 / width.

    Formula:
        U(-a, a) has variance a^2 / 3: a = sqrt(3 sigma_w2 / fan_in). Xavier uniform a = sqrt(6 / (fan_in + fan_out))
        and Xavier normal std = sqrt(2 / (fan_in + fan_out)) are one init.

    Source:
        Glorot and Bengio 2010.
    """
    depth, seeds = ask.depth or 20, ask.seeds or ask.pick(20, 6)
    rows: list[list[object]] = []
    checks, figures, apart = [], {"densities": _densities()}, 0.0
    for activation, w2 in ask.track(CASES, "activations"):
        config = NetConfig(depth=depth, activation=activation, task="gaussian", dtype="float64")
        curves, ends = [], []
        for uniform, color in ((False, BLUE), (True, VERMILLION)):
            found = nets.measured(config, seeds, nets.draw(lambda n, w2=w2: math.sqrt(w2 / n), uniform=uniform))  # type: ignore[misc]
            low, mid, high = nets.median_profile(found)
            ends.append(float(np.mean([s.gain for s in found])))
            name = "uniform" if uniform else "normal"
            curves.append(
                Line(
                    name,
                    list(range(1, depth + 2)),
                    list(mid),
                    color=color,
                    band=(list(low), list(high)),
                    stroke="dashed" if uniform else "solid",
                )
            )
        theory = nets.predicted_profile(activation, depth, w2)
        rows.append([activation, w2, float(theory[0]), *ends])
        apart = max(apart, abs(ends[0] - ends[1]) / depth)
        checks += [
            (f"{activation}, {n}", float(theory[0]), e) for n, e in zip(("normal", "uniform"), ends, strict=True)
        ]
        figures[f"profile {activation}"] = lines(
            [*curves, predicted("predicted", list(range(1, depth + 2)), list(theory))],
            title=f"{activation}, sigma_w2 = {w2:g}, {depth} layers of 64",
            x="layer, counted from the input",
            y="log10 |delta| / |delta_out| (decades)",
            said=f"Layer 1: normal {ends[0]:.2f}, uniform {ends[1]:.2f}, predicted {theory[0]:.2f} decades.",
        )
    return Outcome(
        tables=[
            Table(
                "decades at layer 1, mean over seeds",
                ["activation", "sigma_w2", "predicted", "normal", "uniform"],
                rows,
            )
        ],
        figures=figures,
        lines=[f"normal and uniform differ by at most {apart:.3f} decades a layer"],
        deviations=disagreements(checks, within=0.05 * depth),
        facts={"apart": apart, "worst": max(abs(a - b) for _, a, b in checks) / depth},
    )


def _densities() -> Spec:
    std = 64**-0.5
    x = np.linspace(-4 * std, 4 * std, 401)
    normal = np.exp(-0.5 * (x / std) ** 2) / (std * math.sqrt(2 * math.pi))
    bound = math.sqrt(3) * std
    uniform = np.where(np.abs(x) <= bound, 1 / (2 * bound), 0.0)
    curves = [
        Line("normal", list(x), list(normal), color=BLUE),
        Line("uniform", list(x), list(uniform), "dashed", VERMILLION),
    ]
    return lines(
        curves,
        title="Two densities of standard deviation 0.125 (Xavier, width 64)",
        x="weight",
        y="density",
        said=f"The uniform one ends at {bound:.3f}.",
        span=None,
    )
