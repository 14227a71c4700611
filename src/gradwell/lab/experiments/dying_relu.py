"""ReLU units that never fire again."""

from __future__ import annotations

import math
from itertools import islice

import torch
from scipy.special import ndtr
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.modules import activation
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, held_out, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import GREY, VERMILLION, Spec
from gradwell.report.lessons import GREEN, Line, bars, lines

NET = NetConfig(depth=4, init="he", momentum=0.0)


def dying_relu(ask: Ask) -> Outcome:
    """A ReLU unit that is off for every example gets no gradient and stays off; leaky slopes bring it back.

    What you see:
        The share of dead units grows with the learning rate: one large step pushes biases and weights so far down
        that a unit is off for all examples. A negative bias does the same from the start. Put leaky ReLU, PReLU or
        ELU in the place of ReLU and train on: the dead units come back; with ReLU they stay dead.

    Why:
        The slope is 0 where the input is negative: nothing reaches the weights that could lift the unit.

    Formula:
        At the start a unit with bias b and pre-activation variance q is off for a share Phi(-b / sqrt q) of the
        examples; dead is off for all. The gradient of a dead unit's weights is exactly 0.

    Source:
        Maas, Hannun and Ng 2013; Lu et al. 2019.
    """
    steps = ask.pick(300, 40)
    rates = ask.pick([0.01, 0.05, 0.2, 0.5, 1.0, 2.0], [0.01, 0.5, 2.0])
    biases = ask.pick([1.0, 0.0, -1.0, -2.0, -4.0], [0.0, -2.0, -4.0])
    by_rate: list[list[float]] = []
    by_bias: list[list[object]] = []
    revived: list[tuple[str, float, float]] = []
    facts: dict[str, float] = {}
    for rate in ask.track(rates, "learning rates"):
        model = build(NET)
        loss = _train(model, NET, steps, rate)
        by_rate.append([rate, _dead(model, NET), loss])
        facts[f"rate {rate:g}"] = by_rate[-1][1]
    checks = []
    for bias in ask.track(biases, "biases"):
        config = NetConfig(depth=1, width=256, init="he", bias_value=bias, task="gaussian", batch_size=512)
        model = build(config)
        off = _off(model, config)
        share = float(ndtr(-bias / math.sqrt(2.0)))
        wide = NetConfig(depth=4, init="he", bias_value=bias, momentum=0.0)
        other = build(wide)
        dead = _dead(other, wide)
        by_bias.append([bias, share, off, dead, _train(other, wide, steps, 0.05)])
        checks.append((f"bias {bias:g}", share, off))
        facts[f"bias {bias:g}"] = dead
    for name in ask.track(("relu", "leaky_relu", "prelu", "elu"), "cures"):
        before, after = _revive(name, steps)
        revived.append((name, before, after))
        facts |= {f"{name} before": before, f"{name} after": after}
    grad = _dead_gradient()
    facts |= {"dead gradient": grad, "off error": max(abs(a - b) for _, a, b in checks)}
    rows: list[tuple[str, float, str]] = []
    for name, before, after in revived:
        rows += [(str(name), 100 * before, "before"), (str(name), 100 * after, "after training on")]
    return Outcome(
        tables=[
            Table(f"learning rate, {steps} steps on digits", ["learning rate", "dead share", "last loss"], by_rate),
            Table(
                "bias at the start",
                ["bias", "predicted share off", "measured share off", "dead share, 4 layers", "last loss"],
                by_bias,
            ),
            Table(
                "a net with many dead units, activation replaced",
                ["activation", "dead before", "dead after"],
                [list(r) for r in revived],
            ),
        ],
        figures={
            "rate": _by_rate(by_rate),
            "revive": bars(
                rows,
                title="Dead units, before and after training on with another activation",
                x="percent of units",
                colors={"before": GREY, "after training on": GREEN},
                said="; ".join(f"{n}: {100 * b:.0f} to {100 * a:.0f} %" for n, b, a in revived) + ".",
                domain=(0, 100),
            ),
        },
        lines=[f"largest weight gradient of a dead unit: {grad:g}"],
        deviations=disagreements(checks, within=0.03, unit="share"),
        facts=facts,
    )


def _train(model: nn.Module, config: NetConfig, steps: int, rate: float) -> float:
    """Plain SGD; returns the mean of the last five losses, nan where it is not finite."""
    loss, losses = loss_fn(config), []
    params = list(model.parameters())
    for pair in islice(batches(config), steps):
        value = loss(model, pair)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            return math.nan
        grads = torch.autograd.grad(value, params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(rate * g)
    return sum(losses[-5:]) / len(losses[-5:])


def _pre(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = []
    with torch.no_grad():
        for module in model.get_submodule("hidden").children():
            x = module(x)
            if isinstance(module, nn.Linear):
                found.append(x)
    return found


def _dead(model: nn.Module, config: NetConfig) -> float:
    """Share of units whose pre-activation is negative for every held-out example."""
    x = torch.cat([held_out(config)[0], next(batches(config))[0]])
    off = [(~(h > 0)).all(0) for h in _pre(model, x)]
    return float(torch.cat(off).float().mean())


def _off(model: nn.Module, config: NetConfig) -> float:
    return float((_pre(model, held_out(config)[0])[0] <= 0).float().mean())


def _sick() -> tuple[nn.Module, NetConfig]:
    """A net of which half of the units are dead: their biases are far below zero."""
    model = build(NET)
    with torch.no_grad():
        for module in model.get_submodule("hidden").children():
            if isinstance(module, nn.Linear):
                module.bias[: module.out_features // 2] = -2.5
    return model, NET


def _revive(name: str, steps: int) -> tuple[float, float]:
    model, config = _sick()
    before = _dead(model, config)
    hidden = model.get_submodule("hidden")
    for key, module in list(hidden.named_children()):
        if isinstance(module, nn.ReLU):
            new = nn.LeakyReLU(0.1) if name == "leaky_relu" else activation(name)
            setattr(hidden, key, new)
    model.double().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = loss_fn(config)
    for pair in islice(batches(config), 3 * steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(model, pair))
        optimizer.step()
    return before, _dead(model, config)


def _dead_gradient() -> float:
    """The largest gradient of the weights of a dead unit: exactly 0."""
    model, config = _sick()
    weight = model.get_parameter("hidden.0.weight")
    pair = next(batches(config))
    (grad,) = torch.autograd.grad(loss_fn(config)(model, pair), weight)
    dead = (_pre(model, pair[0])[0] <= 0).all(0)
    return float(grad[dead].abs().max())


def _by_rate(rows: list[list[float]]) -> Spec:
    curve = Line("dead units", [r[0] for r in rows], [100 * r[1] for r in rows], color=VERMILLION, points=True)
    return lines(
        [curve],
        title="Dead units against the learning rate",
        x="learning rate of SGD (log)",
        y="percent of units",
        domain=(0.0, 104.0),
        log_x=True,
        said="; ".join(f"{r[0]:g}: {100 * r[1]:.0f} %" for r in rows) + ".",
    )
