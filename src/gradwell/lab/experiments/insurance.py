"""A net of eight weights that decides who buys an insurance."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.report.lessons import GREEN, Line, lines, predicted
from gradwell.theory.quadrature import Floats

OPTIONS = ("epochs",)
NAMES = ("age", "education", "income", "savings")
START = {
    "w1": 0.4,
    "w2": 0.3,
    "w3": -0.2,
    "w4": 0.1,
    "b1": 0.0,
    "w5": -0.1,
    "w6": 0.2,
    "w7": 0.5,
    "w8": 0.3,
    "b2": 0.0,
    "w9": 0.6,
    "w10": 0.7,
    "b3": -0.5,
}
"""w1 to w4 lead to awareness, w5 to w8 to affordability, w9 and w10 to the output."""


def insurance(ask: Ask) -> Outcome:
    """Age, education, income and savings decide through "awareness" who buys; an early weight's gradient is a product.

    What you see:
        Every number of one update: w8 <- w8 - lr dL/dw8. The early weight w1 gets dL/da times da/d(awareness) times
        d(awareness)/dw1: small factors multiply, .03 x .05 = .0015 for one layer between, 0.1^5 x .03 = 3e-7 for five.

    Why:
        The chain rule multiplies one factor a layer. Whatever the factors are, below 1 their product dies with depth.

    Formula:
        awareness = sigma(w1 age + w2 education + w3 income + w4 savings + b1), affordability = sigma(w5 age + ... +
        b2), buys = sigma(w9 awareness + w10 affordability + b3), L = -t ln y - (1 - t) ln(1 - y); dL/dw8 = (y - t)
        w10 f (1 - f) savings, dL/dw1 = (y - t) w9 a (1 - a) age. The data follow a stated rule: somebody buys when
        0.6 age + 0.8 education + 0.3 income + 0.3 savings > 1, all four uniform in 0 to 1.

    Source:
        The example of introductory courses; data made here.
    """
    x, t = _people(400)
    one = (np.array([0.6, 0.8, 0.5, 0.4]), 1.0)
    values = _forward(START, one[0])
    ours = _gradient(START, *one)
    auto = _autograd(START, *one)
    lr = 0.5
    new = START["w8"] - lr * ours["w8"]
    lines_ = [
        f"age {one[0][0]}, education {one[0][1]}, income {one[0][2]}, savings {one[0][3]}: buys",
        f"awareness {values[0]:.4f}, affordability {values[1]:.4f}, y {values[2]:.4f}, loss {-math.log(values[2]):.4f}",
        f"dL/dw8 = (y - t) w10 f (1 - f) savings = {values[2] - 1:.4f} x {START['w10']} x "
        f"{values[1] * (1 - values[1]):.4f} x {one[0][3]} = {ours['w8']:.6f}",
        f"w8 <- w8 - lr dL/dw8 = {START['w8']} - {lr} x {ours['w8']:.6f} = {new:.6f}",
        f"dL/dw1 = {values[2] - 1:.4f} x {START['w9']} x {values[0] * (1 - values[0]):.4f} x {one[0][0]} "
        f"= {ours['w1']:.6f}",
        f".03 x .05 = {0.03 * 0.05:.4f};  0.1^5 x .03 = {0.1**5 * 0.03:.1e}",
    ]
    epochs = ask.epochs or ask.pick(400, 60)
    weights, losses, accuracy = _train(x, t, epochs, lr)
    depths = list(range(1, 11))
    measured = [_through(d) for d in depths]
    products = [math.log10(0.03) - d for d in range(11)]
    table: list[list[object]] = [
        [name, START[name], ours[name], auto[name], START[name] - lr * ours[name], weights[name]] for name in START
    ]
    figure = lines(
        [
            Line("measured: sigmoid layers between, w = 1", depths, measured, points=True),
            predicted("0.1 a layer x .03", list(range(11)), products),
        ],
        title="The gradient of an early weight, by layers between it and the loss",
        x="layers between",
        y="|dL/dw1|, decades (log10)",
        said=f"Five layers: {measured[4]:.1f} decades measured, {products[5]:.1f} with 0.1 a layer.",
    )
    course = lines(
        [Line("loss", list(range(1, epochs + 1)), losses, color=GREEN)],
        title="Loss of the eight-weight net",
        x="epoch",
        y="cross-entropy",
        said=f"From {losses[0]:.2f} to {losses[-1]:.2f}.",
        span=None,
        marks={"ln 2: chance": math.log(2)},
    )
    checks = [(name, ours[name], auto[name]) for name in START]
    return Outcome(
        tables=[
            Table(
                "one update, lr .5",
                [
                    "weight",
                    "start",
                    "chain rule (predicted)",
                    "autograd (measured)",
                    "after the update",
                    f"after {epochs} epochs",
                ],
                table,
            )
        ],
        figures={"product": figure, "loss": course},
        lines=[*lines_, f"after {epochs} epochs: loss {losses[-1]:.3f}, {accuracy:.0%} of {len(t)} people right"],
        deviations=disagreements(checks, within=1e-12, unit=""),
        facts={
            "w8": ours["w8"],
            "autograd": auto["w8"],
            "new": new,
            "accuracy": accuracy,
            "loss": losses[-1],
            "first_loss": losses[0],
            "slope": (measured[-1] - measured[0]) / 9,
        },
    )


def _people(count: int) -> tuple[Floats, Floats]:
    x = np.random.default_rng(0).random((count, 4))
    return x, (x @ np.array([0.6, 0.8, 0.3, 0.3]) > 1).astype(float)


def _sigma(z: Floats | float) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.asarray(z))))


def _forward(w: dict[str, float], x: Floats) -> tuple[float, float, float]:
    a = float(_sigma(sum(w[f"w{i + 1}"] * x[i] for i in range(4)) + w["b1"]))
    f = float(_sigma(sum(w[f"w{i + 5}"] * x[i] for i in range(4)) + w["b2"]))
    return a, f, float(_sigma(w["w9"] * a + w["w10"] * f + w["b3"]))


def _gradient(w: dict[str, float], x: Floats, t: float) -> dict[str, float]:
    """By the chain rule, a factor for each layer."""
    a, f, y = _forward(w, x)
    error = y - t
    grads = {f"w{i + 1}": error * w["w9"] * a * (1 - a) * float(x[i]) for i in range(4)}
    grads |= {f"w{i + 5}": error * w["w10"] * f * (1 - f) * float(x[i]) for i in range(4)}
    grads |= {"w9": error * a, "w10": error * f, "b3": error}
    return grads | {"b1": error * w["w9"] * a * (1 - a), "b2": error * w["w10"] * f * (1 - f)}


def _autograd(w: dict[str, float], x: Floats, t: float) -> dict[str, float]:
    names = list(w)
    p = [torch.tensor(w[n], dtype=torch.float64, requires_grad=True) for n in names]
    at = dict(zip(names, p, strict=True))
    loss = _loss(at, torch.tensor(x)[None], torch.tensor([t], dtype=torch.float64))
    return {n: float(g) for n, g in zip(names, torch.autograd.grad(loss, p), strict=True)}


def _loss(w: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(_logit(w, x), t)


def _logit(w: dict[str, Tensor], x: Tensor) -> Tensor:
    a = torch.sigmoid(x @ torch.stack([w[f"w{i + 1}"] for i in range(4)]) + w["b1"])
    f = torch.sigmoid(x @ torch.stack([w[f"w{i + 5}"] for i in range(4)]) + w["b2"])
    return w["w9"] * a + w["w10"] * f + w["b3"]


def _train(x: Floats, t: Floats, epochs: int, lr: float) -> tuple[dict[str, float], list[float], float]:
    """Full-batch gradient descent, ten steps an epoch."""
    names = list(START)
    p = {n: torch.tensor(START[n], dtype=torch.float64, requires_grad=True) for n in names}
    inputs, targets, losses = torch.tensor(x), torch.tensor(t), []
    for _ in range(epochs):
        for _ in range(10):
            loss = _loss(p, inputs, targets)
            grads = torch.autograd.grad(loss, list(p.values()))
            with torch.no_grad():
                for value, g in zip(p.values(), grads, strict=True):
                    value.sub_(4 * lr * g)
        losses.append(float(loss.detach()))
    with torch.no_grad():
        right = float(((_logit(p, inputs) > 0) == (targets > 0.5)).double().mean())
    return {n: float(v.detach()) for n, v in p.items()}, losses, right


def _through(layers: int) -> float:
    """log10 |dL/dw1| with `layers` sigmoid nodes of weight 1 between the first weight and the loss."""
    w = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    a = w * 0.6
    for _ in range(layers):
        a = torch.sigmoid(a)
    loss = 0.5 * (a - 1) ** 2
    (grad,) = torch.autograd.grad(loss, w)
    return math.log10(abs(float(grad)))
