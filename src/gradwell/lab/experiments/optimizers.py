"""Optimizers on the same sick nets."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import Spec
from gradwell.report.lessons import PALETTE, Line, bars, lines
from gradwell.surgery.optimizers import SignSGD

OPTIONS = ("epochs",)

RATES: dict[str, list[float]] = {
    "SGD": [0.05, 0.2, 1.0],
    "momentum": [0.01, 0.05, 0.2],
    "RMSprop": [0.0003, 0.001, 0.003],
    "AdaGrad": [0.003, 0.01, 0.03],
    "Adam": [0.0003, 0.001, 0.003],
    "sign": [0.0003, 0.001, 0.003],
}
"""Each one is judged at its own best rate."""

NETS = {
    "vanishes (8 layers of ReLU)": NetConfig(depth=8),
    "vanishes (8 layers of sigmoid)": NetConfig(depth=8, activation="sigmoid"),
    "explodes (8 layers, 1.5 a layer)": NetConfig(depth=8, init="he", gain=1.5),
    "healthy (8 layers, He)": NetConfig(depth=8, init="he"),
}


def optimizers(ask: Ask) -> Outcome:
    """SGD, momentum, RMSprop, AdaGrad, Adam and sign on the same sick nets, each at its own best rate.

    What you see:
        On the healthy net all of them learn. On the ReLU net that vanishes, SGD stands still and the adaptive ones
        learn, later than on the healthy net: they rescale each layer's step. On the sigmoid net none helps much (1.5 at
        best after 400 steps): its lower layers pass on little information that a larger step could use. The exploding
        net learns too, at a rate four times smaller under SGD.

    Why:
        Adam, RMSprop and AdaGrad divide each gradient by its own size, sign does so entirely; that undoes a small
        gradient as long as it is well above eps (1e-8), but not a forward signal that is gone.

    Formula:
        Adam's step is about lr m / sqrt(v), whatever the scale of g; for |g| below eps it is lr g / eps. Measured
        cost of decades at best rates: THEORY 2.3 (8 layers of ReLU: 2.9 times slower under Adam, 13.8 under SGD).

    Source:
        Hinton 2012 (RMSprop), Duchi et al. 2011, Kingma and Ba 2014, Bernstein et al. 2018.
    """
    steps = ask.epochs or ask.pick(400, 50)
    chosen = list(NETS.items())
    rows: list[list[object]] = []
    facts: dict[str, float] = {}
    found: list[tuple[str, float, str]] = []
    curves: dict[str, list[Line]] = {}
    cases = [(n, c, o) for n, c in chosen for o in RATES]
    for name, config, optimizer in ask.track(cases, "trainings"):
        rates = RATES[optimizer] if not ask.quick else RATES[optimizer][1:2]
        tried = [(_train(config, optimizer, lr, steps), lr) for lr in rates]
        losses, lr = min(tried, key=lambda t: t[0][-1] if math.isfinite(t[0][-1]) else math.inf)
        end = losses[-1]
        rows.append([name, optimizer, lr, end, next((k for k, v in enumerate(losses, 1) if v < 0.5), None)])
        facts[f"{name.split(' (')[0]} {config.activation}: {optimizer}"] = end
        found.append((name, min(end, 5.0) if math.isfinite(end) else math.nan, optimizer))
        y = [math.log10(v) if 0 < v < 1e6 else math.inf for v in losses]
        curves.setdefault(name, []).append(
            Line(optimizer, list(range(1, len(y) + 1)), y, color=PALETTE[len(curves.get(name, []))])
        )
    figures: dict[str, Spec] = {
        "all": bars(
            found,
            title=f"Loss after {steps} steps, each at its best rate",
            x="loss (at most 5 is drawn)",
            said="Only the adaptive ones learn on the ReLU net that vanishes.",
            marks={"chance": math.log(10)},
        ),
    }
    for name in list(curves)[:3]:
        figures[name] = lines(
            curves[name],
            title=name,
            x="step",
            y="loss, decades (log10)",
            span=2.0,
            said="; ".join(f"{c.name} {10 ** c.y[-1]:.2g}" for c in curves[name] if math.isfinite(c.y[-1])) + ".",
            marks={"ln 10: chance": math.log10(math.log(10))},
        )
    return Outcome(
        tables=[Table(f"digits, {steps} steps", ["net", "optimizer", "best rate", "loss", "steps to .5"], rows)],
        figures=figures,
        lines=[f"{r[0]}, {r[1]}: {r[3]:.3g}" for r in rows],
        facts=facts,
    )


def _make(name: str, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
    if name == "sign":
        return SignSGD(params, lr)
    if name in ("SGD", "momentum"):
        return torch.optim.SGD(params, lr=lr, momentum=0.9 if name == "momentum" else 0.0)
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "RMSprop": torch.optim.RMSprop,
        "AdaGrad": torch.optim.Adagrad,
        "Adam": torch.optim.Adam,
    }
    return kinds[name](params, lr=lr)  # type: ignore[call-arg]


def _train(config: NetConfig, name: str, lr: float, steps: int) -> list[float]:
    """Running mean of the loss; ends where it is not finite."""
    model, loss = build(config), loss_fn(config)
    optimizer, losses = _make(name, list(model.parameters()), lr), []
    for pair in islice(batches(config), steps):
        value = loss(model, pair)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    return nets.smooth(losses)
