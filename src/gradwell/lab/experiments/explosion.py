"""Gradients that grow: over depth, over time, in training."""

from __future__ import annotations

import math

import torch
from scipy.special import erfc
from torch import nn

from gradwell.lab.data import batches
from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.experiments import _nets as nets
from gradwell.lab.nets import build
from gradwell.lab.tasks import loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, VERMILLION, Spec
from gradwell.report.lessons import GREEN, PALETTE, Line, lines, predicted
from gradwell.theory import meanfield, recurrent

OPTIONS = ("depth", "seeds")


def explosion(ask: Ask) -> Outcome:
    """A gain above 1 to the power of the layers or of the time steps, up to overflow and NaN.

    What you see:
        On a log axis the gradient is a straight line over depth and over time: gain^L and lambda^T. The larger the
        loss, the larger the gradient, the larger the step, the larger the loss: a few steps later float32 overflows,
        and the step and the layer are named.

    Why:
        Each layer multiplies. A unit passes on the sum of the slopes to all units above it: where |sum_y dy/dx| is
        above 1 for more than a few, the gradient grows.

    Formula:
        |delta_1| / |delta_L| = prod sqrt(chi), chi = sigma_w2 (linear) or sigma_w2 / 2 (ReLU); a recurrence W =
        lambda Q gives lambda^T: 1.1^50 = 117.39, 0.9^50 = 0.00515. sum_y dy/dx ~ N(0, chi) for random weights, so its
        share above 1 is erfc(1 / sqrt(2 sigma_w2)), half of that for ReLU.

    Source:
        Pascanu, Mikolov and Bengio 2013; Hochreiter 1991.
    """
    depth, seeds = ask.depth or 30, ask.seeds or ask.pick(10, 4)
    by_depth, curves, checks = _over_depth(ask, depth, seeds)
    over_time, time_curves = _over_time()
    sums = _sums()
    course, words, told = _until_nan(ask.pick(60, 40))
    worst = max(abs(a - b) for _, a, b in checks)
    return Outcome(
        tables=[
            Table("over depth, decades", ["unit", "sigma_w2", "layers", "predicted", "measured"], by_depth),
            Table("over time, decades after 50 steps", ["recurrence", "predicted", "measured"], over_time),
            Table("units with |sum_y dy/dx| > 1", ["unit", "sigma_w2", "predicted share", "measured share"], sums),
            Table("until it is not finite", ["step", "loss", "|gradient|"], [list(r) for r in course]),
        ],
        figures={
            "depth": _figure(curves, "depth"),
            "time": _figure(time_curves, "time"),
            "training": _training(course),
        },
        lines=[words],
        deviations=disagreements(checks, within=3 * math.sqrt(5 * depth / 64 / seeds) / (2 * math.log(10)) + 0.1),
        facts={
            "worst": worst,
            "0.9^50": 10 ** float(str(over_time[0][2])),
            "1.1^50": 10 ** float(str(over_time[1][2])),
            "sums": max(abs(float(str(r[2])) - float(str(r[3]))) for r in sums),
            **told,
        },
    )


def _over_depth(
    ask: Ask, depth: int, seeds: int
) -> tuple[list[list[object]], list[Line], list[tuple[str, float, float]]]:
    rows: list[list[object]] = []
    curves: list[Line] = []
    checks: list[tuple[str, float, float]] = []
    cases = [(a, w2) for a in ("identity", "relu") for w2 in (1.0, 2.0, 4.0)]
    for activation, w2 in ask.track(cases, "over depth"):
        config = NetConfig(depth=depth, activation=activation, task="gaussian", dtype="float64")
        found = nets.measured(config, seeds, nets.draw(lambda n, w2=w2: math.sqrt(w2 / n)))  # type: ignore[misc]
        low, mid, high = nets.median_profile(found)
        theory = float(meanfield.log10_gain_by_layer(activation, depth, w2).sum())
        rows.append([activation, w2, depth, theory, float(mid[0])])
        checks.append((f"{activation}, sigma_w2 {w2:g}", theory, float(mid[0])))
        if w2 > 1:
            layers = list(range(1, depth + 2))
            name = f"{'linear' if activation == 'identity' else 'ReLU'}, sigma_w2 = {w2:g}"
            color = PALETTE[len(curves) // 2]
            curves.append(Line(name, layers, list(mid), color=color, band=(list(low), list(high))))
            curves.append(predicted(f"predicted {name}", layers, list(nets.predicted_profile(activation, depth, w2))))
    return rows, curves, checks


def _over_time() -> tuple[list[list[object]], list[Line]]:
    """A linear recurrence h_t = W h_{t-1}, measured by autograd through 50 steps."""
    rows: list[list[object]] = []
    curves = []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(noise)[0]
    cases = {
        "0.9 x orthogonal": 0.9 * turn,
        "1.1 x orthogonal": 1.1 * turn,
        "Gaussian, sigma_w2 = 1.2": noise * math.sqrt(1.2 / 32),
    }
    for k, (name, weight) in enumerate(cases.items()):
        h = torch.randn(256, 32, generator=generator, dtype=torch.float64).requires_grad_()
        x, states = h, [h]
        for _ in range(50):
            x = x @ weight.T
            states.append(x)
        cotangent = torch.randn(256, 32, generator=generator, dtype=torch.float64)
        grads = torch.autograd.grad((x * cotangent).sum(), states)
        y = [math.log10(float(g.norm() / cotangent.norm())) for g in reversed(grads)]
        theory = [recurrent.power_gain(weight.numpy(), t) for t in range(51)]
        rows.append([name, theory[-1], y[-1]])
        curves += [
            Line(name, list(range(51)), y, color=(BLUE, VERMILLION, GREEN)[k]),
            predicted(f"predicted {name}", list(range(51)), theory),
        ]
    return rows, curves


def _sums() -> list[list[object]]:
    """The share of a layer's inputs x with |sum over outputs of dy/dx| > 1."""
    rows: list[list[object]] = []
    generator = torch.Generator().manual_seed(1)
    for name, unit in (("linear", nn.Identity()), ("relu", nn.ReLU())):
        for w2 in (0.5, 1.0, 4.0):
            weight = torch.randn(256, 256, generator=generator) * math.sqrt(w2 / 256)
            z = torch.randn(64, 256, generator=generator).requires_grad_()
            y = unit(z) @ weight.T
            # the units' own slope and the weights above them: dy/dz summed over y
            (total,) = torch.autograd.grad(y.sum(), z)
            share = float(erfc(1 / math.sqrt(2 * w2))) * (0.5 if name == "relu" else 1.0)
            rows.append([name, w2, share, float((total.abs() > 1).float().mean())])
    return rows


def _until_nan(steps: int) -> tuple[list[tuple[int, float, float]], str, dict[str, float]]:
    """Train a ReLU net of gain 1.5 a layer by SGD until something is not finite; name the step and the layer."""
    config = NetConfig(depth=10, init="he", gain=1.5, lr=0.05, momentum=0.0)
    model, loss = build(config), loss_fn(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    course: list[tuple[int, float, float]] = []
    for step, pair in zip(range(steps), batches(config), strict=False):
        value = loss(model, pair)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        size = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
        course.append((step, float(value.detach()), size))
        place = _birthplace(model, pair[0])
        if place is not None or not math.isfinite(size):
            where = place or "the backward pass"
            words = f"step {step}: {where} is the first that is not finite, after a loss of {course[-2][1]:.3g}"
            return course, words, {"nan_step": step, "named": float(place is not None)}
        optimizer.step()
    return course, f"finite for {steps} steps", {"nan_step": math.inf, "named": 0.0}


def _birthplace(model: nn.Module, x: torch.Tensor) -> str | None:
    with torch.no_grad():
        for name, module in [*model.get_submodule("hidden").named_children(), ("head", model.get_submodule("head"))]:
            x = module(x)
            if not bool(torch.isfinite(x).all()):
                return name if name == "head" else f"hidden.{name}"
    return None


def _figure(curves: list[Line], over: str) -> Spec:
    shown = [c for c in curves if not c.name.startswith("predicted")]
    dotted = [c for c in curves if c.name.startswith("predicted")]
    merged = [Line("predicted" if k == 0 else " " * k, c.x, c.y, c.stroke, c.color) for k, c in enumerate(dotted)]
    said = "; ".join(f"{c.name}: {c.y[0] if over == 'depth' else c.y[-1]:.1f} decades" for c in shown)
    if over == "depth":
        title, x = "Explosion over depth: gain to the power of the layers", "layer, counted from the input"
        y = "log10 |delta| / |delta_out| (decades)"
    else:
        title, x = "Over time: lambda to the power of the steps", "steps back in time"
        y = "log10 |dL/dh| / |dL/dh_T| (decades)"
    return lines([*shown, *merged[:1], *merged[1:]], title=title, x=x, y=y, said=said + ".")


def _training(course: list[tuple[int, float, float]]) -> Spec:
    def log(value: float) -> float:
        return math.log10(value) if math.isfinite(value) and value > 0 else math.inf

    steps = [s for s, _, _ in course]
    curves = [
        Line("loss", steps, [log(v) for _, v, _ in course], points=True),
        Line("gradient norm", steps, [log(g) for _, _, g in course], points=True),
    ]
    return lines(
        curves,
        title="Large loss, large gradient, larger loss",
        x="step",
        y="decades (log10)",
        said=f"From {course[0][1]:.2g} at step 0 to not finite at step {course[-1][0]}.",
    )
