"""What the torch lessons share: the profile of a plain net, and short trainings with a course of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from gradwell.lab.data import Batch
from gradwell.lab.nets import build
from gradwell.lab.tasks import batch, batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.theory import meanfield
from gradwell.theory.quadrature import Floats

Step = Callable[[nn.Module], None]


class Sizes(msgspec.Struct, frozen=True):
    """One backward pass of an MLP of the lab: for each weight layer, input first, the head last (L + 1,)."""

    deltas: Floats
    """|delta| at the layer's output, L2 norm per sample, root mean square over the batch"""
    act_rms: Floats
    weight_grads: Floats
    loss: float
    saturated: float
    """share of hidden pre-activations beyond +-4"""

    @property
    def profile(self) -> Floats:
        """log10 |delta_l| / |delta_out|; minus infinity for an exact zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log10(self.deltas / self.deltas[-1]))

    @property
    def gain(self) -> float:
        """log10 |delta_1| / |delta_out|."""
        return float(self.profile[0])


def sizes(model: nn.Module, pair: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> Sizes:
    """Measure an MLP of the lab on one batch, without hooks."""
    x, kept = pair[0], list[Tensor]()
    weights = list[nn.Linear]()
    for module in [*model.get_submodule("hidden").children(), model.get_submodule("head")]:
        x = module(x)
        if isinstance(module, nn.Linear):
            kept.append(x)
            weights.append(module)
    value = loss(_Given(x), pair)
    grads = torch.autograd.grad(value, [*kept, *(w.weight for w in weights)], allow_unused=True)
    count = len(pair[0])
    deltas = [_norm(g) * math.sqrt(count) for g in grads[: len(kept)]]  # a mean loss: delta of a sample is B times
    hidden = torch.cat([k.detach().flatten() for k in kept[:-1]])
    return Sizes(
        np.array(deltas),
        np.array([float(k.detach().double().square().mean().sqrt()) for k in kept]),
        np.array([_norm(g) for g in grads[len(kept) :]]),
        float(value.detach()),
        float((hidden.abs() > 4).float().mean()),
    )


def _norm(grad: Tensor | None) -> float:
    return 0.0 if grad is None else float(grad.double().norm())


class _Given(nn.Module):
    """A model that has already computed its output."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, _: Tensor) -> Tensor:
        return self.out


def measured(config: NetConfig, seeds: int, change: Step | None = None) -> list[Sizes]:
    """Sizes at the start of `seeds` nets; `change` edits each model first."""
    found = []
    for seed in range(seeds):
        net = msgspec.structs.replace(config, seed=seed)
        model = build(net)
        if change is not None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
                change(model)
        found.append(sizes(model, batch(net), loss_fn(net)))
    return found


def median_profile(found: Sequence[Sizes]) -> tuple[Floats, Floats, Floats]:
    """10, 50 and 90 % of the profiles over seeds."""
    low, mid, high = np.percentile(np.array([s.profile for s in found]), [10, 50, 90], axis=0, method="nearest")
    return low, mid, high


def draw(sigma_w: Callable[[int], float], *, uniform: bool = False, mean: float = 0.0) -> Step:
    """A change that draws every weight layer with standard deviation sigma_w(fan_in), biases zero."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                std = sigma_w(module.in_features)
                if uniform:
                    bound = math.sqrt(3) * std
                    nn.init.uniform_(module.weight, mean - bound, mean + bound)
                else:
                    nn.init.normal_(module.weight, mean, std)
                nn.init.zeros_(module.bias)

    return change


def predicted_profile(activation: str, depth: int, sigma_w2: float, sigma_b2: float = 0.0, *, r: float = 1.0) -> Floats:
    """log10 |delta_l| / |delta_out| of the theory for the hidden layers and the head (depth + 1,), input first."""
    gains = meanfield.log10_gain_by_layer(activation, depth, sigma_w2, sigma_b2, input_second_moment=r)
    return np.concatenate([np.cumsum(gains[::-1])[::-1], [0.0]])


def course(
    config: NetConfig,
    steps: int,
    *,
    change: Step | None = None,
    update: Callable[[list[Tensor]], None] | None = None,
    lr: float | None = None,
) -> list[float]:
    """Losses of a training by SGD, `update` changing the gradients in place first; stops at what is not finite."""
    model = build(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if change is not None:
            with torch.no_grad():
                change(model)
        loss, params = loss_fn(config), [p for p in model.parameters() if p.requires_grad]
        rate, losses = config.lr if lr is None else lr, []
        momenta = [torch.zeros_like(p) for p in params]
        for pair in islice(batches(config), steps):
            value = loss(model, pair)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                break
            grads = [g.clone() for g in torch.autograd.grad(value, params)]
            if update is not None:
                update(grads)
            with torch.no_grad():
                for p, g, m in zip(params, grads, momenta, strict=True):
                    m.mul_(config.momentum).add_(g)
                    p.sub_(rate * m)
    return losses


def smooth(losses: Sequence[float], weight: float = 0.9) -> list[float]:
    """Running mean, corrected for its start at zero."""
    mean, out = 0.0, []
    for step, value in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**step))
    return out
