"""Batch norm beside layer norm on the same sick nets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION, Spec
from gradwell.report.lessons import GREEN, PURPLE, Line, lines, predicted
from gradwell.theory import meanfield, norms
from gradwell.theory.quadrature import Floats

OPTIONS = ("depth", "seeds")
B = 128


def normalization(ask: Ask) -> Outcome:
    """Batch norm cures a deep sigmoid net and layer norm does not; both cure ReLU with too small weights.

    What you see:
        With batch norm the sigmoid net's gradient keeps its size over 20 layers; with layer norm it still falls by 0.4
        decades a layer. ReLU with PyTorch's default weights is critical behind layer norm (chi = 1) and grows by a
        factor 1.2 a layer behind batch norm.

    Why:
        Both divide by the spread of the pre-activations, so the scale of the weights no longer counts. A sigmoid's
        trouble is its mean of 1/2: batch norm subtracts it for each unit over the batch; layer norm subtracts the mean
        over the units, and what one example has in common with all others stays.

    Formula:
        Squared gain a layer: batch norm E phi'^2 / Var phi >= 1 (finite batch: larger), layer norm and RMS norm
        E phi'^2 / E phi^2 at z ~ N(0, 1): sigmoid 1.034 and 0.153, ReLU 1.467 and 1, tanh 1.178 and 1.178.

    Source:
        Yang et al. 2019; Ba, Kiros and Hinton 2016; Ioffe and Szegedy 2015.
    """
    depth, seeds, steps = ask.depth or 20, ask.seeds or ask.pick(8, 2), ask.pick(400, 30)
    rates = ask.pick((0.002, 0.01, 0.05), (0.01, 0.05))
    rows: list[list[object]] = []
    checks, figures = [], dict[str, Spec]()
    facts: dict[str, float] = {}
    colors = {"": VERMILLION, "batch": GREEN, "layer": BLUE, "rms": PURPLE}
    cases = [(a, n) for a in ("sigmoid", "relu", "tanh") for n in ("", "batch", "layer", "rms")]
    curves: dict[str, list[Line]] = {}
    for activation, norm in ask.track(cases, "nets"):
        config = NetConfig(
            depth=depth, activation=activation, norm=norm, task="gaussian", batch_size=B, dtype="float64"
        )
        found = nets.measured(config, seeds)
        low, mid, high = nets.median_profile(found)
        theory = _predict(activation, norm, depth)
        loss, rate = _best(NetConfig(depth=depth, activation=activation, norm=norm, batch_size=B), rates, steps)
        name = f"{norm} norm" if norm else "no norm"
        rows.append([activation, name, float(theory[0]), float(mid[0]), loss, rate])
        facts |= {f"{activation}, {name}": float(mid[0]), f"{activation}, {name}: loss": loss}
        checks.append((f"{activation}, {name}", float(theory[0]), float(mid[0])))
        x = list(range(1, depth + 2))
        part = curves.setdefault(activation, [])
        part.append(Line(name, x, list(mid), "solid" if norm else "dashed", colors[norm], (list(low), list(high))))
        part.append(predicted("predicted" if not norm else " " * len(part), x, list(theory)))
    for activation, part in curves.items():
        shown = part[0::2] + part[1::2]
        said = "; ".join(f"{c.name} {c.y[0]:.1f}" for c in part[0::2])
        figures[activation] = lines(shown, title=f"{activation}, {depth} layers of 64, PyTorch's default weights",
                                    x="layer, counted from the input", y="log10 |delta| / |delta_out| (decades)",
                                    said=f"Decades at layer 1: {said}.")  # fmt: skip
    return Outcome(
        tables=[Table(f"{depth} layers; digits, {steps} steps of SGD with momentum .9, each at its best rate",
                      ["activation", "norm", "predicted decades", "measured decades", "last loss", "best rate"], rows)],
        figures=figures,
        lines=[f"{a}, {n}: {m:+.1f} decades, loss {loss:.2f}" for a, n, _, m, loss, _ in rows],
        deviations=disagreements(checks, within=0.05 * depth),
        facts={**facts, "worst": max(abs(a - b) for _, a, b in checks) / depth},
    )  # fmt: skip


def _best(config: NetConfig, rates: Sequence[float], steps: int) -> tuple[float, float]:
    """The lowest last loss over learning rates, and its rate: what needs small steps must not look sick."""
    found = [(nets.smooth(nets.course(config, steps, lr=rate))[-1], rate) for rate in rates]
    return min(found, key=lambda pair: pair[0] if math.isfinite(pair[0]) else math.inf)


def _predict(activation: str, norm: str, depth: int) -> Floats:
    if not norm:
        return nets.predicted_profile(activation, depth, 1 / 3, 1 / 192)
    slope = meanfield.squared_slope(activation, 1.0)
    if norm == "batch":
        # the first layer sees data of variance 1, not phi of variance Var phi
        rate, first = norms.batchnorm_rate(activation, B), slope
    else:
        rate = norms.layernorm_rate(activation, sigma_w2=1 / 3, sigma_b2=1 / 192)
        first = slope / 3 / (1 / 3 + 1 / 192)
    gains = np.full(depth, 0.5 * math.log10(rate))
    gains[0] = 0.5 * math.log10(first)
    return np.concatenate([np.cumsum(gains[::-1])[::-1], [0.0]])
