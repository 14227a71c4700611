"""Three signs that a gradient is sick, each on a sick and on a healthy net."""

from __future__ import annotations

import math
import time
from itertools import islice

import msgspec
import numpy as np
import torch

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION
from gradwell.report.lessons import GREEN, Line, lines
from gradwell.theory import meanfield

OPTIONS = ("depth", "seeds")


class _Watched(msgspec.Struct, frozen=True):
    """A training by SGD: losses, the first layer's gradient norm at each step, and its seconds."""

    losses: list[float]
    first: list[float]
    seconds: float


def three_signs(ask: Ask) -> Outcome:
    """A loss that falls too slowly, a curve that jumps or diverges, early gradients that shrink.

    What you see:
        The vanishing net: a loss that hardly falls, gradients in the first layer thousands of times smaller than in the
        healthy one. The exploding net: a loss that jumps and runs away. The healthy one: neither. The more decades are
        missing, the more steps and seconds to the same loss.

    Why:
        A step of SGD is as large as the gradient: too small and nothing moves, too large and the loss is thrown about.

    Formula:
        Slope of log10 loss per 100 steps; jumps: share of steps where the loss grows by more than a tenth; early
        gradients: |dL/dW_1| against the healthy net's. ReLU, L layers: log10 gain = L/2 log10(sigma_w2 / 2).

    Source:
        Nielsen, chapter 5; Glorot and Bengio 2010; our own THEORY 2.3 for what decades cost.
    """
    depth, steps = ask.depth or 10, ask.pick(300, 50)
    cases = {
        "vanishing": (NetConfig(depth=depth, momentum=0.0, lr=0.05), nets.draw(lambda n: (0.7 / n) ** 0.5)),
        "exploding": (NetConfig(depth=depth, momentum=0.0, lr=0.05), nets.draw(lambda n: (6.0 / n) ** 0.5)),
        "healthy": (NetConfig(depth=depth, momentum=0.0, lr=0.05), nets.draw(lambda n: (2.0 / n) ** 0.5)),
    }
    rows: list[list[object]] = []
    colors = {"vanishing": BLUE, "exploding": VERMILLION, "healthy": GREEN}
    loss_curves, grad_curves = [], []
    facts: dict[str, float] = {}
    watched = {name: _watch(*case, steps) for name, case in ask.track(list(cases.items()), "trainings")}
    norm = float(np.median(watched["healthy"].first[:10]))
    for name, w in watched.items():
        smoothed = nets.smooth(w.losses)
        finite = [v for v in smoothed if math.isfinite(v)]
        slope = 100 * (math.log10(finite[-1]) - math.log10(finite[0])) / max(len(finite) - 1, 1)
        jumps = float(np.mean([b > 1.1 * a for a, b in zip(w.losses, w.losses[1:], strict=False)]))
        early = math.log10(float(np.median(w.first[:10])) / norm)
        end = smoothed[-1]
        rows.append(
            [
                name,
                slope,
                jumps,
                early,
                end,
                "diverges" if not math.isfinite(end) or end > 5 else "too slow" if end > 2 else "learns",
            ]
        )
        facts |= {f"{name} slope": slope, f"{name} jumps": jumps, f"{name} early": early, f"{name} loss": end}
        x = list(range(len(w.losses)))
        stroke = "solid" if name == "healthy" else "dashed"
        logs = [math.log10(v) if math.isfinite(v) and v < 1e12 else math.inf for v in w.losses]
        loss_curves.append(Line(name, x, logs, stroke, colors[name]))
        grads = [math.log10(v) if math.isfinite(v) and v > 0 else math.inf if v else -math.inf for v in w.first]
        grad_curves.append(Line(name, x, grads, stroke, colors[name]))
    cost, cost_rows = _cost(ask, depth)
    said = "; ".join(f"{r[0]}: {r[5]}" for r in rows)
    return Outcome(
        tables=[
            Table(
                f"three signs, ReLU, {depth} layers, {steps} steps of SGD .05",
                [
                    "net",
                    "decades of loss per 100 steps",
                    "share of jumps",
                    "first layer's gradient against healthy, decades",
                    "last loss",
                    "sign",
                ],
                rows,
            ),
            Table(
                "what decades cost",
                ["sigma_w2", "predicted decades", "measured decades", "steps to the target", "seconds"],
                cost_rows,
            ),
        ],
        figures={
            "loss": lines(
                loss_curves,
                title="Loss: too slow, erratic, healthy",
                x="step",
                y="loss, decades (log10)",
                said=said + ".",
                span=2.0,
                marks={"ln 10: chance": math.log10(math.log(10))},
            ),
            "gradient": lines(
                grad_curves,
                title="The first layer's gradient in training",
                x="step",
                y="|dL/dW_1|, decades (log10)",
                said="; ".join(f"{n} {facts[f'{n} early']:+.1f}" for n in watched) + " decades against healthy.",
            ),
            "cost": lines(
                [cost],
                title="Steps to the target against the size of the first gradient",
                span=None,
                x="log10 |delta_1| / |delta_out| at the start (decades)",
                y="steps",
                said="The more decades are missing, the more steps.",
                beyond="not reached",
            ),
        },
        lines=[f"{r[0]}: {r[5]}" for r in rows],
        facts=facts
        | {
            "cost worst": float(cost_rows[0][3] if isinstance(cost_rows[0][3], float) else math.inf),
            "cost best": float(cost_rows[-1][3] if isinstance(cost_rows[-1][3], float) else math.inf),
        },
    )


def _watch(config: NetConfig, change: nets.Step, steps: int) -> _Watched:
    model = build(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        change(model)
    loss, params, losses, first = loss_fn(config), list(model.parameters()), [], []
    started = time.perf_counter()
    for pair in islice(batches(config), steps):
        value = loss(model, pair)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            first.append(math.inf)
            break
        grads = torch.autograd.grad(value, params)
        first.append(float(grads[0].double().norm()))
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.sub_(config.lr * g)
    return _Watched(losses, first, time.perf_counter() - started)


def _cost(ask: Ask, depth: int) -> tuple[Line, list[list[object]]]:
    """Steps to a loss by gradient size at the start, all at one learning rate."""
    target, most = ask.pick(0.5, 1.5), ask.pick(1500, 120)
    rows: list[list[object]] = []
    for w2 in ask.track(ask.pick([0.8, 1.0, 1.2, 1.5, 2.0], [1.0, 2.0]), "sizes"):
        change = nets.draw(lambda n, w2=w2: (w2 / n) ** 0.5)  # type: ignore[misc]
        probe = NetConfig(depth=depth, task="gaussian", dtype="float64")
        measured = float(np.median([s.gain for s in nets.measured(probe, 4, change)]))
        theory = float(meanfield.log10_gain_by_layer("relu", depth, w2).sum())
        found = _watch(NetConfig(depth=depth, momentum=0.0, lr=0.05), change, most)
        below = next((k for k, v in enumerate(nets.smooth(found.losses), start=1) if v < target), None)
        seconds = None if below is None else found.seconds * below / len(found.losses)
        rows.append([w2, theory, measured, None if below is None else float(below), seconds])
    x = [float(str(r[2])) for r in rows]
    y = [math.inf if r[3] is None else float(str(r[3])) for r in rows]
    return Line("steps to the target", x, y, color=BLUE, points=True), rows
