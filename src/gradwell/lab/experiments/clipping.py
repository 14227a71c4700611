"""Clipping on a net that explodes and on one that vanishes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradwell.lab.data import batch
from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, GREY, VERMILLION, Spec
from gradwell.report.lessons import GREEN, PALETTE, PURPLE, Line, bars, lines

Update = Callable[[list[Tensor]], None]


def _nothing(grads: list[Tensor]) -> None:
    del grads


def by_norm(limit: float) -> Update:
    """torch's rule: g *= min(1, limit / (|g| + 1e-6)) over all parameters together."""

    def update(grads: list[Tensor]) -> None:
        total = torch.stack([g.double().norm() for g in grads]).norm()
        coef = float((limit / (total + 1e-6)).clamp(max=1.0))
        for g in grads:
            g.mul_(coef)

    return update


def by_element(limit: float) -> Update:
    """g = clamp(g, -limit, limit): changes the direction."""

    def update(grads: list[Tensor]) -> None:
        for g in grads:
            g.clamp_(-limit, limit)

    return update


def _sign(grads: list[Tensor]) -> None:
    for g in grads:
        g.sign_()


METHODS: dict[str, tuple[Update, float]] = {
    "none": (_nothing, 1.0),
    "norm .25": (by_norm(0.25), 1.0),
    "norm 1": (by_norm(1.0), 1.0),
    "element .01": (by_element(0.01), 1.0),
    "sign": (_sign, 0.02),
}
"""What is done to the gradients, and a factor on the learning rate."""

EXPLODES = NetConfig(depth=10, init="he", gain=1.5, lr=0.05, momentum=0.0)
VANISHES = NetConfig(depth=10, activation="sigmoid", lr=0.05, momentum=0.0)


def clipping(ask: Ask) -> Outcome:
    """Norm clip, element clip and sign update: they tame an explosion and do not bring a vanished gradient back.

    What you see:
        The net that explodes is NaN within a few steps; with its norm clipped it stays finite and its loss falls, for
        the direction stays and only the length is cut. On the net that vanishes the norm clip does nothing at all:
        its gradient is below the limit, and the first layer's share in it stays what it was. The sign update gives
        every layer a step of one size, but the signs of the first layers carry little information: the loss falls
        late and little (1.9 after 500 steps).

    Why:
        A clip multiplies by a number of at most 1. It can make nothing larger, and by norm it keeps all ratios between
        layers. By element and by sign it changes the direction.

    Formula:
        Norm: g <- g min(1, c / (|g| + 1e-6)), cosine with g exactly 1. Element: g_i <- clamp(g_i, -c, c). Sign:
        theta <- theta - lr sign(g). c = 0.25 in the lesson.

    Source:
        Pascanu, Mikolov and Bengio 2013; guide2dl (0.25); torch.nn.utils.clip_grad_norm_; Bernstein et al. 2018 (sign).
    """
    steps = ask.pick(500, 60)
    table: list[list[object]] = []
    facts: dict[str, float] = {}
    curves: dict[str, list[Line]] = {"explodes": [], "vanishes": []}
    ratios: list[tuple[str, float, str]] = []
    colors = [VERMILLION, GREEN, BLUE, PURPLE, PALETTE[4]]
    cases = [
        (kind, config, name) for kind, config in (("explodes", EXPLODES), ("vanishes", VANISHES)) for name in METHODS
    ]
    for kind, config, name in ask.track(cases, "trainings"):
        update, rate = METHODS[name]
        cosine, before, after, first, last = _on_first(config, update)
        losses = nets.course(config, steps, update=update, lr=config.lr * rate)
        end = nets.smooth(losses)[-1] if math.isfinite(losses[-1]) else math.nan
        table.append(
            [
                kind,
                name,
                before,
                after,
                1.0 if name.startswith(("norm", "none")) else None,
                cosine,
                first,
                last,
                end,
                len(losses),
            ]
        )
        facts |= {
            f"{kind}: {name}: loss": end,
            f"{kind}: {name}: cosine": cosine,
            f"{kind}: {name}: ratio": last,
            f"{kind}: {name}: before": first,
            f"{kind}: {name}: steps": len(losses),
        }
        stroke = "dashed" if name == "none" else "solid"
        y = [math.log10(v) if math.isfinite(v) and v > 0 else math.inf for v in _cap(losses)]
        curves[kind].append(Line(name, list(range(len(y))), y, stroke, colors[len(curves[kind])]))
        ratios.append((f"{kind}, {name}", first, "before"))
        ratios.append((f"{kind}, {name}", last, "after"))
    columns = [
        "net",
        "clip",
        "|g| before",
        "|g| after",
        "predicted cosine",
        "cosine with g",
        "first/last layer before, decades",
        "after",
        "last loss",
        "steps",
    ]
    return Outcome(
        tables=[Table("what clipping does to the first gradient and to the training", columns, table)],
        figures={
            "explodes": _losses(curves["explodes"], "explodes"),
            "vanishes": _losses(curves["vanishes"], "vanishes"),
            "ratio": bars(
                ratios,
                title="The first layer's gradient against the last one's",
                x="|dL/dW first| / |dL/dW last|, decades (log10)",
                said="A clip by norm leaves the ratio as it was; only element and sign clips change it.",
                colors={"before": GREY, "after": GREEN},
            ),
        },
        lines=[
            f"{kind}, {name}: {'not finite' if math.isnan(facts[f'{kind}: {name}: loss']) else 'loss'} "
            f"{facts[f'{kind}: {name}: loss']:.3g} after {facts[f'{kind}: {name}: steps']:.0f} steps"
            for kind, _, name in cases
        ],
        facts=facts,
    )


def _cap(losses: list[float]) -> list[float]:
    smoothed = nets.smooth([v if math.isfinite(v) else math.inf for v in losses])
    return [v if v < 1e12 else math.inf for v in smoothed]


def _on_first(config: NetConfig, update: Update) -> tuple[float, float, float, float, float]:
    """Cosine with the raw gradient, norm before and after, and the ratio of the first to the last layer's, decades."""
    model = build(config)
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    raw = [g.double() for g in torch.autograd.grad(loss_fn(config)(model, batch(config)), weights)]
    clipped = [g.clone() for g in raw]
    update(clipped)
    a, b = (torch.cat([g.flatten() for g in part]) for part in (raw, clipped))
    scale = float(a.abs().max())
    cosine = float((a / scale) @ b / ((a / scale).norm() * b.norm()))
    ratio = [math.log10(float(part[0].norm() / part[-1].norm())) for part in (raw, clipped)]
    return cosine, float(a.norm()), float(b.norm()), ratio[0], ratio[1]


def _losses(curves: list[Line], kind: str) -> Spec:
    ends = []
    for c in curves:
        finite = [v for v in c.y if np.isfinite(v)]
        ends.append(f"{c.name}: {'not finite' if not math.isfinite(c.y[-1]) else f'{10 ** finite[-1]:.2g}'}")
    return lines(
        curves,
        title=f"Loss of the net that {kind}",
        x="step",
        y="loss, decades (log10)",
        span=2.0,
        said="; ".join(ends) + ".",
        marks={"ln 10: chance": math.log10(math.log(10))},
    )
