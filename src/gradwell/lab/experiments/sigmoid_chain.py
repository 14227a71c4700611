"""Four sigmoid nodes in a row."""

from __future__ import annotations

import math

import torch

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.report.lessons import PALETTE, Line, lines, predicted


def sigmoid_chain(ask: Ask) -> Outcome:
    """Four hidden layers of one node: the chain rule, factor by factor, equal to what autograd computes.

    What you see:
        With w = 1, b = 0, x = 1 the four slopes multiply to 0.0021640311: the first bias gets a five-hundredth of the
        gradient of the output. Larger weights do not help: they push the nodes up the curve, where the slope is smaller
        still. Only a weight of 4 with a bias that holds the node at 0 keeps the gradient.

    Why:
        Each layer multiplies by w sigma'(z), and sigma' is at most 1/4; |w sigma'(z)| reaches 1 only for |w| >= 4 and
        only in a narrow range of z.

    Formula:
        dC/db1 = sigma'(z1) w2 sigma'(z2) w3 sigma'(z3) w4 sigma'(z4) dC/da4; bound with w = 1: 0.25^4 = 0.00390625.

    Source:
        Nielsen, Neural Networks and Deep Learning, chapter 5.
    """
    del ask
    slopes, ours, autograd = _chain(1.0, 0.0, 1.0)
    rows: list[list[object]] = []
    product = 1.0
    for layer, slope in enumerate(slopes, start=1):
        product *= slope
        rows.append([layer, slope, 0.25, product, 0.25**layer])
    cases = [(1.0, 0.0), (0.5, 0.0), (4.0, 0.0), (10.0, 0.0), (100.0, 0.0), (4.0, -2.0), (100.0, -50.0)]
    table, checks = [], []
    for w, b in cases:
        # x at the fixed point of the centred node where b = -w/2: a = 1/2
        x = 0.5 if b == -w / 2 and b else 1.0
        _, formula, auto = _chain(w, b, x)
        table.append([f"w = {w:g}, b = {b:g}, x = {x:g}", formula, auto])
        checks.append((f"w = {w:g}", formula, auto))
    return Outcome(
        tables=[
            Table("factor by factor, w = 1, b = 0, x = 1",
                  ["layer", "slope", "bound of the slope", "product so far", "bound of the product"], rows),
            Table("dC/db1 at other weights", ["node", "chain rule (predicted)", "autograd (measured)"], table),
        ],
        figures={"chain": _figure(cases)},
        lines=[" x ".join(f"{s:.6f}" for s in slopes) + f" = {product:.10f}", f"autograd: {autograd:.10f}"],
        deviations=disagreements(checks, within=1e-12, unit=""),
        facts={"product": product, "formula": ours, "autograd": autograd, "bound": 0.25**4,
               "slope_at_10": _slope(10.0), "centred": _chain(4.0, -2.0, 0.5)[1]},
    )  # fmt: skip


def _slope(z: float) -> float:
    a = 1 / (1 + math.exp(-z))
    return a * (1 - a)


def _values(w: float, b: float, x: float, layers: int = 4) -> list[float]:
    """The pre-activation of each node."""
    a, zs = x, []
    for _ in range(layers):
        zs.append(w * a + b)
        a = 1 / (1 + math.exp(-zs[-1]))
    return zs


def _chain(w: float, b: float, x: float) -> tuple[list[float], float, float]:
    """The slopes, dC/db1 by the chain rule (C = a4), and by autograd."""
    slopes = [_slope(z) for z in _values(w, b, x)]
    # sigma'(z1) w2 sigma'(z2) w3 sigma'(z3) w4 sigma'(z4)
    product = math.prod(slopes) * w**3
    bias = torch.full((4,), b, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(x, dtype=torch.float64)
    for layer in range(4):
        a = torch.sigmoid(w * a + bias[layer])
    (grad,) = torch.autograd.grad(a, bias)
    return slopes, product, float(grad[0])


def _figure(cases: list[tuple[float, float]]) -> dict[str, object]:
    layers = list(range(1, 11))
    curves = []
    for k, (w, b) in enumerate(c for c in cases if c in ((1.0, 0.0), (4.0, 0.0), (10.0, 0.0), (4.0, -2.0))):
        x = 0.5 if b else 1.0
        total, y = 0.0, []
        for z in _values(w, b, x, 10):
            total += math.log10(w * _slope(z))
            y.append(total)
        curves.append(Line(f"w = {w:g}, b = {b:g}", layers, y, color=PALETTE[k], points=True))
    bound = predicted("bound for w = 1: 0.25 a layer", layers, [layer * math.log10(0.25) for layer in layers])
    ends = "; ".join(f"{c.name}: {c.y[-1]:.1f}" for c in curves)
    return lines([*curves, bound], title="The gradient of a chain of sigmoid nodes", x="nodes passed",
                 y="product of w sigma'(z), decades (log10)", said=f"Decades after ten nodes: {ends}.")  # fmt: skip
