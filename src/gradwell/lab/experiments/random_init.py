"""The same deep net started in eleven ways."""

from __future__ import annotations

import math

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.records.net import NetConfig
from gradwell.report.lessons import PALETTE, Line, lines

OPTIONS = ("depth", "seeds")

STARTS: dict[str, tuple[nets.Step, float]] = {
    "zeros": (nets.draw(lambda _: 0.0), 0.0),
    "normal .01": (nets.draw(lambda _: 0.01), 64 * 1e-4),
    "normal .1": (nets.draw(lambda _: 0.1), 0.64),
    "normal 1": (nets.draw(lambda _: 1.0), 64.0),
    "uniform +-.05": (nets.draw(lambda _: 0.05 / math.sqrt(3), uniform=True), 64 * 0.05**2 / 3),
    "uniform +-.5": (nets.draw(lambda _: 0.5 / math.sqrt(3), uniform=True), 64 * 0.25 / 3),
    "uniform 0 to 1": (nets.draw(lambda _: 12**-0.5, uniform=True, mean=0.5), math.nan),
    "Xavier uniform": (nets.draw(lambda n: n**-0.5, uniform=True), 1.0),
    "Xavier normal": (nets.draw(lambda n: n**-0.5), 1.0),
    "He normal": (nets.draw(lambda n: (2 / n) ** 0.5), 2.0),
    "PyTorch's default": (lambda _: None, 1 / 3),
}
"""Every start: how it is drawn, and its sigma_w2 at width 64."""


def random_init(ask: Ask) -> Outcome:
    """Zeros, uniform and normal at several scales, Xavier, He: who learns, vanishes, overflows, saturates.

    What you see:
        Zeros pass no gradient at all. Small random weights lose it (normal .01: eleven decades and more in ten layers),
        large ones explode or saturate. Xavier fits tanh, He fits ReLU; both are a choice of one number, sigma_w2, and
        uniform or normal makes no difference. Weights from 0 to 1 all have one sign: every unit does the same.

    Why:
        Each layer multiplies the squared gradient by chi = sigma_w2 E[phi'^2]; ten layers take it to the tenth power.

    Formula:
        log10 gain = 1/2 sum_l log10(sigma_w2 D(q_l)), q' = sigma_w2 V(q); sigma_w2 = fan_in Var W. Width 64, the first
        layer and the head drawn in the same way.

    Source:
        Glorot and Bengio 2010; He et al. 2015; Schoenholz et al. 2017.
    """
    depth, seeds, steps = ask.depth or 10, ask.seeds or ask.pick(10, 3), ask.pick(600, 80)
    rows: list[list[object]] = []
    checks: list[tuple[str, float, float]] = []
    facts: dict[str, float] = {}
    curves: list[Line] = []
    for activation in ask.track(("relu", "tanh"), "activations"):
        for name, (change, w2) in STARTS.items():
            config = NetConfig(depth=depth, activation=activation, task="gaussian", batch_size=128, dtype="float64")
            found = nets.measured(config, seeds, change)
            gain = float(np.median([s.gain for s in found]))
            guess = _predict(activation, depth, w2, name)
            saturated = float(np.mean([s.saturated for s in found])) if activation == "tanh" else None
            digits = NetConfig(depth=depth, activation=activation, lr=0.05)
            losses = nets.course(digits, steps, change=change)
            last = nets.smooth(losses)[-1]
            rows.append([activation, name, w2, guess, gain, saturated, last, _word(gain, last, saturated)])
            facts[f"{activation}: {name}"] = gain
            facts[f"{activation}: {name}: loss"] = last
            if guess is not None and math.isfinite(guess) and math.isfinite(gain):
                checks.append((f"{activation}, {name}", guess, gain))
            if activation == "relu" and name in ("normal .01", "normal 1", "Xavier normal", "He normal", "zeros"):
                low, mid, high = nets.median_profile(found)
                layers = list(range(1, depth + 2))
                curves.append(
                    Line(name, layers, list(mid), color=PALETTE[len(curves)], points=True, band=(list(low), list(high)))
                )
    figure = lines(
        curves,
        title=f"ReLU, {depth} layers of 64: the gradient at the start",
        x="layer, counted from the input",
        y="log10 |delta| / |delta_out| (decades)",
        said="; ".join(f"{c.name}: {c.y[0]:.1f} decades at layer 1" for c in curves) + ".",
    )
    table = Table(
        f"{depth} layers of 64 units; digits, {steps} steps of SGD .05",
        ["activation", "start", "sigma_w2", "predicted decades", "measured decades", "beyond +-4", "last loss", "word"],
        rows,
    )
    # one net of this width scatters by sqrt(5 L / n) / (2 ln 10) decades
    room = 3 * math.sqrt(5 * depth / 64) / (2 * math.log(10)) / math.sqrt(seeds) + 0.2
    return Outcome(
        tables=[table],
        figures={"profile": figure},
        lines=[f"{a} {n}: {w}" for a, n, *_, w in rows],
        deviations=disagreements(checks, within=room),
        facts={**facts, "worst": max(abs(a - b) for _, a, b in checks)},
    )


def _predict(activation: str, depth: int, w2: float, name: str) -> float | None:
    if math.isnan(w2):
        return None
    if w2 == 0:
        return -math.inf
    b2 = 1 / (3 * 64) if name.startswith("PyTorch") else 0.0
    profile = nets.predicted_profile(activation, depth, w2, b2)
    return float(profile[0])


def _word(gain: float, loss: float, saturated: float | None) -> str:
    if not math.isfinite(loss):
        return "overflows"
    if gain == -math.inf:
        return "no gradient"
    word = "vanishes" if gain < -2 else "explodes" if gain > 2 else "keeps its gradient"
    if saturated is not None and saturated > 0.3:
        word = "saturates"
    return f"{word}, {'learns' if loss < 2.2 else 'does not learn'}"
