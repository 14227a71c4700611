"""Which layer learns when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION
from gradwell.report.lessons import GREEN, Line, bars, lines, predicted
from gradwell.theory import meanfield
from gradwell.theory.quadrature import Floats

OPTIONS = ("depth", "epochs")


def credit_assignment(ask: Ask) -> Outcome:
    """In a sick net only the last layers learn; frozen halves and auxiliary losses show what the others are worth.

    What you see:
        dW/W of the first step falls by half a decade a layer in a sigmoid net and is even in a tanh net that is well
        started. The sick net trains about as well with its lower half frozen: that half did nothing. An extra loss at
        half depth brings its gradient nearer to the bottom.

    Why:
        The step of a layer is lr |delta| |x|: credit reaches a layer only through all the layers above it.

    Formula:
        |dW_l| / |W_l| of the first step of SGD ~ lr |delta_l| |x_(l-1)| / |W_l|: its profile is that of delta times the
        activations; delta_l / delta_L = prod sqrt(chi). Auxiliary losses: weight 0.3 on a classifier at half depth.

    Source:
        Glorot and Bengio 2010; Szegedy et al. 2014 (0.3); Lee et al. 2014 (deep supervision).
    """
    depth, steps = ask.depth or 8, ask.epochs or ask.pick(600, 60)
    sick = NetConfig(depth=depth, activation="sigmoid", lr=0.1)
    well = NetConfig(depth=depth, activation="tanh", init="lecun", lr=0.05)
    first = {"sick (sigmoid)": _first_step(sick), "healthy (tanh, LeCun)": _first_step(well)}
    guess = {
        "sick (sigmoid)": _predict("sigmoid", depth, 1 / 3, 1 / 192),
        "healthy (tanh, LeCun)": _predict("tanh", depth, 1.0, 0.0),
    }
    layers = list(range(2, depth + 1))
    curves, checks, rows = [], [], []
    for (name, values), color in zip(first.items(), (VERMILLION, GREEN), strict=True):
        inner = values[1:depth]
        shifted = guess[name][1:depth] - guess[name][depth - 1] + inner[-1]
        curves.append(Line(name, layers, list(inner), "dashed" if "sick" in name else "solid", color, points=True))
        curves.append(predicted("predicted" if "sick" in name else " ", layers, list(shifted)))
        slopes = [float(v[-1] - v[0]) / (len(v) - 1) for v in (shifted, inner)]
        rows.append([name, slopes[0], slopes[1]])
        checks.append((name, slopes[0], slopes[1]))
    moved, course_rows = {}, []
    for name, config in ask.track([("sick", sick), ("healthy", well)], "layers over time"):
        moved[name] = _moved(config, steps)
        for step, values in moved[name]:
            course_rows.append([name, step, *[float(v) for v in values]])
    frozen, facts = [], {}
    for name, config in (("sick", sick), ("healthy", well)):
        for part in ask.track(("all", "top half", "bottom half", "all + auxiliary loss"), f"{name}: parts"):
            loss = _train_part(config, steps, part)
            frozen.append(
                (f"{name}: {part} trained" if part != "all + auxiliary loss" else f"{name}: {part}", loss, "loss")
            )
            facts[f"{name}: {part}"] = loss
    boosts = _auxiliary(sick)
    facts |= {
        "sick slope": checks[0][2],
        "healthy slope": checks[1][2],
        "auxiliary": boosts,
        "worst slope": max(abs(a - b) for _, a, b in checks),
    }
    over_time = [
        Line(
            f"{name}, layer {k + 1}", [s for s, _ in moved[name]], [float(v[k]) for _, v in moved[name]], stroke, color
        )
        for name, stroke in (("sick", "dashed"), ("healthy", "solid"))
        for k, color in ((0, VERMILLION), (depth // 2, BLUE), (depth - 1, GREEN))
    ]
    return Outcome(
        tables=[
            Table(
                "dW/W of the first step: decades a layer, towards the output", ["net", "predicted", "measured"], rows
            ),
            Table(
                "log10 |W - W_0| / |W_0| by layer",
                ["net", "step", *[f"layer {k + 1}" for k in range(depth)], "head"],
                course_rows,
            ),
            Table(f"loss after {steps} steps", ["what is trained", "loss"], [[n, v] for n, v, _ in frozen]),
        ],
        figures={
            "first-step": lines(
                curves,
                title="|dW| / |W| of the first step of SGD",
                x="layer, counted from the input",
                y="decades (log10)",
                said=f"Sick {rows[0][2]:+.2f}, healthy {rows[1][2]:+.2f} decades a layer.",
            ),
            "when": lines(
                over_time,
                title="How far each layer has moved",
                x="step",
                y="log10 |W - W_0| / |W_0|",
                said="In the sick net the first layer stays where it was.",
            ),
            "frozen": bars(
                frozen,
                title="Which part is worth training",
                x=f"loss after {steps} steps",
                said="; ".join(f"{n}: {v:.2f}" for n, v, _ in frozen) + ".",
                marks={"chance": math.log(10)},
            ),
        },
        lines=[f"an auxiliary loss at half depth raises the first layer's gradient by {boosts:.1f} decades"],
        deviations=disagreements(checks, within=0.15, unit="decades a layer"),
        facts=facts,
    )


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def _first_step(config: NetConfig) -> Floats:
    """log10 lr |dL/dW_l| / |W_l| of each layer, median over 5 nets."""
    found = []
    for seed in range(5):
        model = build(_seed(config, seed))
        s = nets.sizes(model, next(batches(_seed(config, seed))), loss_fn(config))
        weights = np.array([float(m.weight.detach().double().norm()) for m in _linears(model)])
        found.append(np.log10(config.lr * s.weight_grads / weights))
    return np.asarray(np.median(np.array(found), axis=0))


def _seed(config: NetConfig, seed: int) -> NetConfig:
    return msgspec.structs.replace(config, seed=seed)


def _predict(activation: str, depth: int, w2: float, b2: float) -> Floats:
    """log10 of |delta_l| |x_{l-1}| up to a constant, hidden layers: x is phi of the layer before, its mean with it."""
    signal = meanfield.signal_by_layer(activation, depth, w2, b2)
    delta = np.cumsum(signal.log10_gain[::-1])[::-1]
    before = np.concatenate([[1.0], signal.second[:-1]])
    return np.asarray(delta + 0.5 * np.log10(before))


def _moved(config: NetConfig, steps: int) -> list[tuple[int, Floats]]:
    model = build(config)
    start = [m.weight.detach().clone() for m in _linears(model)]
    found = []
    every = max(1, steps // 12)
    for step, _ in enumerate(_each(model, config, list(model.parameters()), steps), start=1):
        if step % every == 0 or step == 1:
            ratios = [
                float((m.weight.detach() - w).norm() / w.norm()) for m, w in zip(_linears(model), start, strict=True)
            ]
            found.append((step, np.log10(np.maximum(ratios, 1e-12))))
    return found


def _each(
    model: nn.Module, config: NetConfig, params: list[Tensor], steps: int, aux: nn.Module | None = None
) -> Iterator[float]:
    """The losses of SGD with momentum on some parameters, step by step; `aux` is a classifier at half depth."""
    optimizer = torch.optim.SGD(params, lr=config.lr, momentum=config.momentum)
    loss = loss_fn(config)
    for pair in islice(batches(config), steps):
        optimizer.zero_grad()
        value = loss(model, pair)
        total = value if aux is None else value + 0.3 * loss(_half(model, aux), pair)
        torch.autograd.backward(total)
        optimizer.step()
        yield float(value.detach())


def _half(model: nn.Module, aux: nn.Module) -> nn.Module:
    hidden = list(model.get_submodule("hidden").children())
    return nn.Sequential(*hidden[: len(hidden) // 4 * 2], aux)


def _train_part(config: NetConfig, steps: int, part: str) -> float:
    model = build(config)
    layers = _linears(model)
    half = len(layers) // 2
    aux: nn.Module | None = None
    chosen = {"top half": layers[half:], "bottom half": layers[:half]}.get(part, layers)
    params: list[Tensor] = [p for m in chosen for p in m.parameters()]
    if "auxiliary" in part:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            aux = nn.Linear(config.width, 10)
        params += list(aux.parameters())
    return nets.smooth(list(_each(model, config, params, steps, aux)))[-1]


def _auxiliary(config: NetConfig) -> float:
    """Decades by which the first layer's gradient grows with an auxiliary loss."""
    model = build(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        aux = nn.Linear(config.width, 10)
    pair, loss, first = next(batches(config)), loss_fn(config), _linears(model)[0].weight
    (alone,) = torch.autograd.grad(loss(model, pair), first)
    (both,) = torch.autograd.grad(loss(model, pair) + 0.3 * loss(_half(model, aux), pair), first)
    return math.log10(float(both.double().norm() / alone.double().norm()))
