"""Activations side by side."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import binom

from gradwell.lab.data import batch
from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.modules import activation as module_of
from gradwell.lab.nets import build
from gradwell.lab.tasks import loss_fn
from gradwell.lab.train import steps_to
from gradwell.records.net import NetConfig
from gradwell.report.figures import Spec
from gradwell.report.lessons import Line, lines, predicted
from gradwell.shelf import shelf
from gradwell.theory import meanfield
from gradwell.theory.nonlinearity import nonlinearity

SHOWN = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu")
QUICK = ("sigmoid", "tanh", "relu", "gelu")
LEFT_OUT = ("exp", "maxout")
"""exp overflows at once; maxout is no elementwise function."""


def activations(ask: Ask) -> Outcome:
    """Curve, slope, saturation, sign of the gradients, speed and cost of each activation.

    What you see:
        The slope of a sigmoid is at most 1/4 and 4.5e-05 at an input of 10: a saturated unit learns nothing. Tanh is a
        sigmoid, stretched. Behind a sigmoid or a ReLU all weight gradients of a unit have one sign for one example,
        so it can only move all its weights up or all down; behind tanh they are half and half.

    Why:
        dL/dw_ij = delta_i x_j: the sign of x_j decides. A slope of zero stops the gradient, whatever the weights.

    Formula:
        sigma' = y (1 - y); tanh' = (1 + y)(1 - y) = sech^2 x; tanh x = 2 sigma(2x) - 1. Majority sign among n inputs of
        either sign: E max(k, n - k) / n, k ~ Bin(n, 1/2), 0.55 for n = 64; 1 where no input is negative. Leaky ReLU of
        slope a: chi = sigma_w2 (1 + a^2) / 2.

    Source:
        LeCun et al. 1998 (Efficient BackProp); Glorot and Bengio 2010; Maas et al. 2013.
    """
    names = [n for n in shelf("gradwell.theory.activations") if n not in LEFT_OUT]
    if ask.quick:
        names = [n for n in names if n in SHOWN]
    rows: list[list[object]] = []
    facts: dict[str, float] = {}
    for name in ask.track(names, "activations"):
        unit, entry = nonlinearity(name), shelf("gradwell.theory.activations")[name]
        predicted_sign, measured_sign = _one_sign(name)
        steps = _steps(name, quick=ask.quick) if not ask.quick or name in QUICK else None
        far = float(unit.slope(np.array([10.0]))[0])
        rows.append(
            [
                name,
                float(entry.fact("MAX_SLOPE")),
                far,
                float(unit.slope(np.array([-10.0]))[0]),
                meanfield.mean_value(unit, 1.0),
                predicted_sign,
                measured_sign,
                _cost(name, quick=ask.quick),
                steps,
            ]
        )
        facts[f"one sign: {name}"] = measured_sign
        facts[f"one sign predicted: {name}"] = predicted_sign
        if steps is not None:
            facts[f"steps: {name}"] = steps
    identities, leak = _identities(), _leaky(ask)
    facts |= {"sigmoid slope at 10": float(nonlinearity("sigmoid").slope(np.array([10.0]))[0]),
              "identity error": max(float(e) for _, e in identities),
              "leaky error": max(abs(float(str(r[1])) - float(str(r[2]))) for r in leak)}  # fmt: skip
    columns = ["activation", "largest slope", "slope at 10", "slope at -10", "mean output, z ~ N(0,1)",
               "one sign: predicted", "measured", "cost, ReLU = 1", "steps to loss .5"]  # fmt: skip
    return Outcome(
        tables=[Table("activations", columns, rows),
                Table("slope from the output", ["identity", "largest error"], [list(r) for r in identities]),
                Table("leaky ReLU, 20 layers of 64, He weights",
                      ["negative slope", "predicted decades", "measured decades", "steps to loss .5"], leak)],
        figures={"curve": _curves(), "slope": _slopes(), "saturation": _saturation(), "leak": _leak_figure(leak)},
        lines=[f"sigma'(10) = {facts['sigmoid slope at 10']:.6e}",
               f"tanh(x) = 2 sigma(2x) - 1 to {facts['identity error']:.1e}"],
        facts=facts,
    )  # fmt: skip


def _one_sign(name: str) -> tuple[float, float]:
    """Share of the majority sign among the weight gradients of a unit for one example: expected and measured."""
    config = NetConfig(depth=2, activation=name, init="lecun", task="gaussian", batch_size=24)
    model, (x, y), loss = build(config), batch(config), loss_fn(config)
    weight = model.get_submodule("head").get_parameter("weight")
    shares = []
    for i in range(len(x)):
        (grad,) = torch.autograd.grad(loss(model, (x[i : i + 1], y[i : i + 1])), weight)
        positive, negative = (grad > 0).sum(1), (grad < 0).sum(1)
        shares.append(float((torch.maximum(positive, negative) / (positive + negative).clamp_min(1)).mean()))
    unit = nonlinearity(name)
    if float(unit.phi(np.array([-1.0]))[0]) >= 0:
        return 1.0, float(np.mean(shares))
    k = np.arange(65)
    return float(binom.pmf(k, 64, 0.5) @ np.maximum(k, 64 - k)) / 64, float(np.mean(shares))


def _cost(name: str, *, quick: bool) -> float:
    """Time of forward and backward against ReLU's."""
    return _seconds(name, 5 if quick else 30) / _seconds("relu", 5 if quick else 30)


def _seconds(name: str, repeats: int) -> float:
    unit, x = module_of(name), torch.linspace(-3, 3, 100_000, requires_grad=True)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        torch.autograd.grad(unit(x).sum(), x)
        best = min(best, time.perf_counter() - start)
    return best


def _steps(name: str, *, quick: bool) -> float | None:
    config = NetConfig(depth=4, activation=name, init="lecun", optimizer="Adam", lr=1e-3)
    if quick:
        return steps_to(config, target_loss=1.0, max_steps=80, lr_grid=(3.0,))
    return steps_to(config, max_steps=1000)


def _identities() -> list[tuple[str, float]]:
    x = torch.linspace(-8, 8, 401, dtype=torch.float64, requires_grad=True)
    s, t = torch.sigmoid(x), torch.tanh(x)
    (ds,) = torch.autograd.grad(s.sum(), x)
    (dt,) = torch.autograd.grad(t.sum(), x)
    s, t, z = s.detach(), t.detach(), x.detach()
    return [
        ("sigma' = y (1 - y)", float((ds - s * (1 - s)).abs().max())),
        ("tanh' = (1 + y)(1 - y)", float((dt - (1 + t) * (1 - t)).abs().max())),
        ("tanh' = sech^2 x", float((dt - 1 / torch.cosh(z) ** 2).abs().max())),
        ("tanh x = 2 sigma(2x) - 1", float((t - (2 * torch.sigmoid(2 * z) - 1)).abs().max())),
    ]


def _leaky(ask: Ask) -> list[list[object]]:
    """Gain over 20 layers and steps to the target, by the negative slope."""
    rows: list[list[object]] = []
    for slope in (0.0, 0.01, 0.1, 0.3, 1.0):
        unit = nonlinearity("leaky_relu", negative_slope=slope)
        gains = meanfield.log10_gain_by_layer(unit, 20, 2.0)
        config = NetConfig(depth=20, activation="leaky_relu", init="he", task="gaussian", dtype="float64")

        def change(model: torch.nn.Module, slope: float = slope) -> None:
            nets.draw(lambda n: (2 / n) ** 0.5)(model)
            for module in model.modules():
                if isinstance(module, torch.nn.LeakyReLU):
                    module.negative_slope = slope

        found = [s.gain for s in nets.measured(config, ask.pick(12, 4), change)]
        digits = NetConfig(depth=8, activation="leaky_relu", lr=0.02)
        losses = nets.smooth(nets.course(digits, ask.pick(300, 40), change=change))
        below = next((k for k, v in enumerate(losses, start=1) if v < (0.5 if not ask.quick else 1.5)), None)
        rows.append([slope, float(gains.sum()), float(np.mean(found)), below])
    return rows


def _curves() -> Spec:
    x = np.linspace(-4, 4, 161)
    curves = [Line(n, list(x), list(nonlinearity(n).phi(x))) for n in SHOWN]
    return lines(curves, title="Activations", x="input", y="output", said="Sigmoid and tanh are flat on both sides.",
                 domain=(-1.3, 3.0))  # fmt: skip


def _slopes() -> Spec:
    x = np.linspace(-4, 4, 161)
    curves = [Line(n, list(x), list(nonlinearity(n).slope(x))) for n in SHOWN]
    return lines(curves, title="Slopes", x="input", y="slope", domain=(-0.2, 1.2),
                 said="The sigmoid's slope is at most 1/4; that of ReLU is 0 or 1.")  # fmt: skip


def _saturation() -> Spec:
    x = np.linspace(0, 12, 121)
    with np.errstate(divide="ignore"):
        curves = [
            Line(n, list(x), list(np.log10(nonlinearity(n).slope(-x)))) for n in ("sigmoid", "tanh", "softsign", "elu")
        ]
    bound = predicted("exp(x), the tail of a sigmoid", list(x), list(x * -math.log10(math.e)))
    said = f"At -10 the sigmoid's slope is {math.log10(float(expit(10.0) * expit(-10.0))):.1f} decades."
    return lines([*curves, bound], title="Saturation: the slope at negative inputs", x="input, times -1",
                 y="slope, decades (log10)", said=said)  # fmt: skip


def _leak_figure(rows: list[list[object]]) -> Spec:
    x = [float(str(r[0])) for r in rows]
    y = [[float(str(r[k])) for r in rows] for k in (1, 2)]
    return lines([Line("measured", x, y[1], points=True), predicted("predicted", x, y[0])],
                 title="Leaky ReLU, 20 layers with He weights", x="negative slope",
                 y="gradient of layer 1 against the output's, decades",
                 said=f"From {y[1][0]:.1f} decades at slope 0 to {y[1][-1]:.1f} at slope 1, a linear net.")  # fmt: skip
