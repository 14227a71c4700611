"""What must not matter does not: the scale of the loss, the batch, the order of units, the names, the format."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradwell.journeys.check import check
from gradwell.lab.tasks import setup
from gradwell.records.net import NetConfig

NETS = {
    "healthy mlp": NetConfig(depth=3, init="he"),
    "healthy tanh": NetConfig(depth=6, activation="tanh", init="lecun"),
    "healthy batch norm": NetConfig(depth=4, init="he", norm="batch"),
    "healthy residual": NetConfig(kind="residual", depth=6, init="fixup"),
    "healthy cnn": NetConfig(kind="cnn", depth=3, width=8, init="he", batch_size=64),
    "healthy transformer": NetConfig(kind="transformer", depth=2, width=32),
    "healthy lstm": NetConfig(kind="lstm", depth=1, width=32),
    "deep sigmoid": NetConfig(depth=12, activation="sigmoid"),
    "default relu": NetConfig(depth=20),
    "large weights": NetConfig(depth=8, init="he", gain=4.0),
    "dead": NetConfig(depth=4, init="he", bias_value=-20.0),
    "saturated": NetConfig(depth=4, activation="tanh", init="lecun", gain=30.0),
    "cut off": NetConfig(depth=4, init="he", detach=2),
    "all zeros": NetConfig(depth=4, init="zeros"),
}
Batch = tuple[torch.Tensor, torch.Tensor]
SEEDS = st.integers(0, 3)
CASES = st.sampled_from(sorted(NETS))


def net(name: str, seed: int) -> tuple[nn.Module, Batch]:
    torch.set_num_threads(1)
    model, batch, _, _ = setup(NetConfig(**{**_fields(NETS[name]), "seed": seed}))
    return model, batch


def _fields(config: NetConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def findings(
    model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], *, scale: float = 1.0, prefix: str = ""
) -> set:
    """(symptom, severity, sites in no order: equally bad ones may change places by rounding) of each finding.

    `prefix` is taken off the sites' names.
    """
    found = check(model, batch, lambda m, b: scale * F.cross_entropy(m(b[0]), b[1])).findings
    return {(f.symptom, f.severity, frozenset(place.site.removeprefix(prefix) for place in f.where)) for f in found}


def kinds(found: set) -> set:
    return {(symptom, severity) for symptom, severity, _ in found}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=CASES, seed=SEEDS, scale=st.sampled_from([1e-6, 1e-3, 7.0, 1e6]))
def test_the_scale_of_the_loss(name, seed, scale):
    model, batch = net(name, seed)
    assert findings(model, batch, scale=scale) == findings(model, batch)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=CASES, seed=SEEDS, times=st.sampled_from([2, 3]))
def test_the_size_of_the_batch(name, seed, times):
    model, (x, y) = net(name, seed)
    alike = (torch.cat([x] * times), torch.cat([y] * times))
    assert findings(model, alike) == findings(model, (x, y))
    part = (x[: len(x) // 2], y[: len(y) // 2])
    assert kinds(findings(model, part)) == kinds(findings(model, (x, y)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(n for n in NETS if NETS[n].kind == "mlp" and not NETS[n].norm)), seed=SEEDS)
def test_the_order_of_the_units(name, seed):
    model, batch = net(name, seed)
    moved = copy.deepcopy(model)
    layers = [m for m in moved.modules() if isinstance(m, nn.Linear)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for below, above in pairwise(layers):
            order = torch.randperm(below.out_features, generator=generator)
            below.weight.copy_(below.weight[order])
            below.bias.copy_(below.bias[order])
            above.weight.copy_(above.weight[:, order])
    plain, other = model(batch[0]), moved(batch[0])
    assert (plain - other).abs().max() <= 1e-4 * plain.abs().max()
    assert findings(moved, batch) == findings(model, batch)


class Renamed(nn.Module):
    """The same net under another name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.backbone = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=CASES, seed=SEEDS)
def test_the_names_of_the_modules(name, seed):
    model, batch = net(name, seed)
    assert findings(Renamed(model), batch, prefix="backbone.") == findings(model, batch)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=CASES, seed=SEEDS)
def test_float64(name, seed):
    model, (x, y) = net(name, seed)
    wide = (x.double() if x.is_floating_point() else x, y)
    assert findings(copy.deepcopy(model).double(), wide) == findings(model, (x, y))


def test_the_nets_are_what_they_are_called():
    """The invariants say something: some of these nets are sick, each in its own way, the others healthy."""
    said = {name: kinds(findings(*net(name, 0))) for name in NETS}
    assert all(not said[name] for name in NETS if name.startswith("healthy")), said
    wanted = {"deep sigmoid": "vanishing_gradient", "default relu": "vanishing_gradient", "dead": "dead_units"}
    wanted |= {"large weights": "exploding_gradient", "saturated": "saturated_units", "cut off": "unreached_parameter"}
    for name, symptom in wanted.items():
        assert symptom in {found for found, _ in said[name]}, (name, said[name])
