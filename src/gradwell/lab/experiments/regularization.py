"""L2 and dropout on the same sick nets."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch
from torch import nn

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION, Spec
from gradwell.report.lessons import GREEN, PALETTE, Line, lines, predicted
from gradwell.theory import meanfield

OPTIONS = ("depth", "seeds", "epochs")


def regularization(ask: Ask) -> Outcome:
    """L2 pulls the weights towards vanishing, dropout shifts the critical point: neither cures a sick gradient.

    What you see:
        With weight decay sigma_w2 shrinks as training goes on, and the gain with it: a net that was critical drifts
        into the ordered phase, an exploding one is tamed on its way. Dropout makes the gradient of a He net grow;
        with weights smaller by the kept share it is critical again. A vanishing net is not cured by either.

    Why:
        Decay multiplies every weight by 1 - lr wd at each step. Dropout divides what it keeps by p, so the squared
        signal and the squared gradient gain 1 / p.

    Formula:
        sigma_w2(t) = sigma_w2(0) (1 - lr wd)^(2t) as far as the loss does not push back; chi = sigma_w2 D / p, for ReLU
        critical at sigma_w2 = 2p.

    Source:
        Krogh and Hertz 1991; Srivastava et al. 2014; Schoenholz et al. 2017 and Pretorius et al. 2018 (critical 2p).
    """
    depth, seeds, steps = ask.depth or 10, ask.seeds or ask.pick(10, 4), ask.epochs or ask.pick(400, 60)
    drop_rows: list[list[object]] = []
    checks: list[tuple[str, float, float]] = []
    curves: list[Line] = []
    facts: dict[str, float] = {}
    for p in ask.track((1.0, 0.9, 0.7, 0.5), "dropout"):
        for name, w2 in (("He, sigma_w2 = 2", 2.0), ("sigma_w2 = 2p", 2.0 * p), ("PyTorch's default", 1 / 3)):
            theory = float(meanfield.log10_gain_by_layer("relu", depth, w2, keep=p).sum())
            found = _dropped(depth, w2, 1 - p, seeds)
            drop_rows.append([1 - p, name, theory, found])
            checks.append((f"dropout {1 - p:.1f}, {name}", theory, found))
            facts[f"{1 - p:.1f} {name}"] = found
    for k, name in enumerate(("He, sigma_w2 = 2", "sigma_w2 = 2p", "PyTorch's default")):
        part = [r for r in drop_rows if r[1] == name]
        x = [float(str(r[0])) for r in part]
        curves.append(Line(name, x, [float(str(r[3])) for r in part], color=PALETTE[k], points=True))
        curves.append(predicted("predicted" if k == 0 else " " * k, x, [float(str(r[2])) for r in part]))
    decay_rows, decay_curves = [], []
    for wd, color in zip(ask.track((0.0, 0.01, 0.1), "weight decay"), (GREEN, BLUE, VERMILLION), strict=True):
        for kind, gain in (("critical (He)", 1.0), ("vanishing (.6 of He)", 0.6), ("exploding (1.3 of He)", 1.3)):
            config = NetConfig(depth=depth, init="he", gain=gain, lr=0.02, momentum=0.0)
            seen, loss, free = _decayed(config, wd, steps)
            alone = math.log10(10 ** seen[0][1] * (1 - 0.02 * wd) ** (2 * steps))
            decay_rows.append([wd, kind, 10 ** seen[0][1], 10**alone, 10**free, 10 ** seen[-1][1], loss])
            facts |= {
                f"wd {wd:g} {kind}": 10 ** seen[-1][1],
                f"wd {wd:g} {kind} loss": loss,
                f"wd {wd:g} free": abs(free - alone),
            }
            if kind.startswith("critical"):
                decay_curves.append(
                    Line(f"weight decay {wd:g}", [s for s, _ in seen], [10**v for _, v in seen], color=color)
                )
                expected = [10 ** seen[0][1] * (1 - 0.02 * wd) ** (2 * s) for s, _ in seen]
                decay_curves.append(predicted("decay alone", [s for s, _ in seen], expected))
    worst = max(abs(a - b) for _, a, b in checks)
    return Outcome(
        tables=[
            Table(
                f"dropout, ReLU, {depth} layers: decades at layer 1",
                ["dropped", "weights", "predicted", "measured"],
                drop_rows,
            ),
            Table(
                f"weight decay, {steps} steps of SGD .02 on digits",
                [
                    "weight decay",
                    "net",
                    "sigma_w2 at the start",
                    "predicted: decay alone",
                    "measured: decay alone",
                    "sigma_w2 after training",
                    "last loss",
                ],
                decay_rows,
            ),
        ],
        figures={"dropout": _dropout_figure(curves), "decay": _decay_figure(decay_curves)},
        lines=[f"dropout {r[0]:.1f}, {r[1]}: {r[3]:+.1f} decades" for r in drop_rows],
        deviations=disagreements(checks, within=0.05 * depth),
        facts={**facts, "worst": worst / depth},
    )


def _dropped(depth: int, w2: float, rate: float, seeds: int) -> float:
    config = NetConfig(depth=depth, dropout=rate, task="gaussian", dtype="float64", width=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = nets.measured(config, seeds, nets.draw(lambda n: math.sqrt(w2 / n)))
    return float(np.mean([s.gain for s in found]))


def _inner(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.get_submodule("hidden").modules() if isinstance(m, nn.Linear)]


def _sigma_w2(model: nn.Module) -> float:
    """log10 of the mean over layers of fan_in Var W."""
    return math.log10(
        float(np.mean([m.in_features * float(m.weight.detach().double().square().mean()) for m in _inner(model)]))
    )


def _decayed(config: NetConfig, wd: float, steps: int) -> tuple[list[tuple[int, float]], float, float]:
    """log10 sigma_w2 over the steps, the last loss, and log10 sigma_w2 after as many steps of decay without a loss."""
    model, loss = build(config), loss_fn(config)
    alone = build(config)
    params = list(model.parameters())
    seen, losses = [(0, _sigma_w2(model))], []
    every = max(1, steps // 20)
    for step, pair in enumerate(islice(batches(config), steps), start=1):
        value = loss(model, pair)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            break
        grads = torch.autograd.grad(value, params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(config.lr * (g + wd * p))
            for p in alone.parameters():
                p.sub_(config.lr * wd * p)
        if step % every == 0:
            seen.append((step, _sigma_w2(model)))
    return seen, nets.smooth(losses)[-1], _sigma_w2(alone)


def _dropout_figure(curves: list[Line]) -> Spec:
    measured = [c for c in curves if c.stroke == "solid"]
    said = "; ".join(f"{c.name}: {c.y[-1]:+.1f}" for c in measured)
    ordered = measured + [c for c in curves if c.stroke != "solid"]
    return lines(
        ordered,
        title="Dropout moves the critical point",
        x="share of units dropped",
        y="log10 |delta_1| / |delta_out| (decades)",
        said=f"Decades at half of the units dropped: {said}.",
    )


def _decay_figure(curves: list[Line]) -> Spec:
    measured = [c for c in curves if c.stroke == "solid"]
    said = "; ".join(f"{c.name}: {c.y[-1]:.2f}" for c in measured)
    return lines(
        measured + [c for c in curves if c.stroke != "solid"],
        title="Weight decay pulls sigma_w2 down",
        x="step",
        y="sigma_w2, mean over layers",
        said=f"At the end {said}; 2 is critical.",
        domain=(0.0, 2.6),
        marks={"2: critical for ReLU": 2.0},
    )
