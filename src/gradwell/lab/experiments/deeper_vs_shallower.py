"""The degradation problem: more layers, worse training."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, held_out, loss_fn
from gradwell.records.net import NetConfig
from gradwell.report.figures import BLUE, GREY, VERMILLION
from gradwell.report.lessons import GREEN, PURPLE, Line, lines, predicted
from gradwell.theory.quadrature import Floats

OPTIONS = ("depth", "epochs")
SHALLOW = 2


class Highway(nn.Module):
    """y = T tanh(W x + b) + (1 - T) x with T = sigmoid(W_T x + b_T), b_T = -2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.plain, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        out: Tensor = gate * torch.tanh(self.plain(x)) + (1 - gate) * x
        return out


class HighwayNet(nn.Module):
    """A stem, highway layers, a head."""

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.Tanh(), *[Highway(width) for _ in range(depth - 1)], nn.Linear(width, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def deeper_vs_shallower(ask: Ask) -> Outcome:
    """A deep plain net trains worse than a shallow one that it contains; shortcuts and gates undo that.

    What you see:
        Two layers learn the digits; thirty of the same kind do not, on the training data already: it is no overfitting.
        Yet set the extra layers to the identity and the deep net computes exactly what the shallow one does: the good
        solution is there, the gradient does not find it. Residual and highway nets of the same depth learn. In the
        residual net most of the gradient comes along paths through few blocks.

    Why:
        A plain layer multiplies the gradient; a block x + F(x) adds to it. Multiplying out the product of (1 + J_l)
        gives one term for each subset of blocks.

    Formula:
        With branches of squared gain chi the paths through k of L blocks carry binom(L, k) chi^k / (1 + chi)^L of the
        squared gradient: a binomial with p = chi / (1 + chi). Highway: y = T H + (1 - T) x, b_T = -2.

    Source:
        He et al. 2015 (degradation), Veit et al. 2016 (paths), Srivastava et al. 2015 (highway).
    """
    depth, steps = ask.depth or 30, ask.epochs or ask.pick(600, 60)
    shallow = NetConfig(depth=SHALLOW, activation="tanh", optimizer="Adam", lr=3e-3)
    deep = NetConfig(depth=depth, activation="tanh", optimizer="Adam", lr=3e-3)
    residual = NetConfig(kind="residual", depth=depth // 2, norm="layer", optimizer="Adam", lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models: dict[str, nn.Module] = {
            f"plain, {SHALLOW} layers": build(shallow),
            f"plain, {depth} layers": build(deep),
            f"residual, {depth} layers": build(residual),
            f"highway, {depth} layers": HighwayNet(depth),
        }
    rows: list[list[object]] = []
    curves: list[Line] = []
    facts: dict[str, float] = {}
    styles = [(GREY, "dashed"), (VERMILLION, "dashed"), (GREEN, "solid"), (BLUE, "solid")]
    for (name, model), (color, stroke) in zip(ask.track(list(models.items()), "trainings"), styles, strict=True):
        losses = _train(model, shallow, steps)
        accuracy = _accuracy(model, shallow)
        rows.append([name, losses[-1], accuracy])
        facts |= {f"{name.split(',')[0]} {'shallow' if name.startswith('plain, 2 ') else 'deep'}": losses[-1]}
        curves.append(Line(name, list(range(1, len(losses) + 1)), [math.log10(v) for v in losses], stroke, color))
    with torch.random.fork_rng(devices=[]):
        same = _identity_layers(depth)
    rows.append([f"plain ReLU, {SHALLOW} layers + {depth - SHALLOW} set to identity", same[0], same[1]])
    paths, expected, chi = _paths(ask.pick(400, 60))
    figure = lines(
        curves,
        title="Deeper is worse, unless there are shortcuts",
        x="step of Adam .003",
        y="training loss, decades (log10)",
        span=3.0,
        said="; ".join(f"{r[0]}: {r[1]:.2g}" for r in rows) + ".",
        marks={"ln 10: chance": math.log10(math.log(10))},
    )
    k = list(range(len(paths)))
    by_length = lines(
        [
            Line("measured", k, list(100 * paths), color=PURPLE, points=True),
            predicted("predicted: binomial", k, list(100 * expected)),
        ],
        title=f"Residual net of 16 blocks, chi = {chi:.2f}: who brings the gradient",
        span=None,
        x="blocks that the path goes through",
        y="percent of the squared gradient",
        said=f"Half of the gradient comes through at most {int(np.searchsorted(np.cumsum(paths), 0.5))} of 16 blocks.",
    )
    mean = [float(p @ np.arange(len(p))) for p in (expected, paths)]
    return Outcome(
        tables=[
            Table(f"digits, {steps} steps", ["net", "training loss", "held-out accuracy"], rows),
            Table(
                "share of the squared gradient by path length",
                ["blocks", "predicted", "measured"],
                [[n, float(e), float(p)] for n, (e, p) in enumerate(zip(expected, paths, strict=True))],
            ),
        ],
        figures={"loss": figure, "paths": by_length},
        lines=[
            f"deep net with identity layers minus shallow net: {same[2]:g}",
            f"mean path length: predicted {mean[0]:.2f}, measured {mean[1]:.2f} of 16 blocks",
        ],
        deviations=disagreements([("mean path length", mean[0], mean[1])], within=0.5, unit="blocks"),
        facts={
            **facts,
            "same": same[2],
            "mean path": mean[1],
            "predicted path": mean[0],
            "worst path": float(np.abs(paths - expected).max()),
        },
    )


def _train(model: nn.Module, config: NetConfig, steps: int) -> list[float]:
    """Running mean of the training loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    loss, mean, losses = loss_fn(config), 0.0, []
    for step, pair in enumerate(islice(batches(config), steps), start=1):
        value = loss(model, pair)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * float(value.detach())
        losses.append(mean / (1 - 0.9**step))
    return losses


def _accuracy(model: nn.Module, config: NetConfig) -> float:
    x, y = held_out(config)
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def _identity_layers(depth: int) -> tuple[float, float, float]:
    """A trained shallow ReLU net, identity layers put behind its hidden ones: loss, accuracy, largest difference."""
    config = NetConfig(depth=SHALLOW, optimizer="Adam", lr=3e-3)
    model = build(config)
    losses = _train(model, config, 150)
    extra: list[nn.Module] = []
    for _ in range(depth - SHALLOW):
        layer = nn.Linear(64, 64)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        extra += [layer, nn.ReLU()]
    deep = nn.Sequential(*model.get_submodule("hidden").children(), *extra, model.get_submodule("head"))
    x, _ = held_out(config)
    with torch.no_grad():
        difference = float((deep(x) - model(x)).abs().max())
    return losses[-1], _accuracy(deep, config), difference


def _paths(samples: int, blocks: int = 16, width: int = 64, sigma_w2: float = 1.0) -> tuple[Floats, Floats, float]:
    """Share of the squared gradient by path length k: binom(L, k) times the mean over sampled subsets of k blocks."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, math.sqrt(sigma_w2 / width), (blocks, width, width))
    second = rng.normal(0, math.sqrt(sigma_w2 / width), (blocks, width, width))
    x, jacobians = rng.normal(size=width), []
    for a, b in zip(first, second, strict=True):
        h = a @ x
        jacobians.append(b @ ((h > 0)[:, None] * a))
        x = x + b @ np.maximum(h, 0)
    chi = sigma_w2**2 / 2
    shares = np.zeros(blocks + 1)
    for k in range(blocks + 1):
        total = 0.0
        for _ in range(samples):
            d = rng.normal(size=width)
            start = float(d @ d)
            for block in sorted(rng.choice(blocks, k, replace=False), reverse=True):
                d = jacobians[block].T @ d
            total += float(d @ d) / start
        shares[k] = math.comb(blocks, k) * total / samples
    return shares / shares.sum(), np.asarray(binom.pmf(np.arange(blocks + 1), blocks, chi / (1 + chi))), chi
