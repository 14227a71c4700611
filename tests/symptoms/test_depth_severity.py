"""What of a vanishing or exploding profile costs training: scale that is given back, weights that are about to grow."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradwell.journeys.check import measure
from gradwell.lab.tasks import setup
from gradwell.measure.profile import by_way, log10_gain, normalised
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.symptoms.exploding_gradient import exploding_gradient, grown
from gradwell.symptoms.vanishing_gradient import lasting, lost, quietest, vanishing_gradient

ADAM = {"optimizer": "Adam", "lr": 1e-3}


def severity(symptom, run: Run) -> str:
    return next((finding.severity for finding in symptom(run)), "healthy")


class Faded(nn.Module):
    """A ReLU net without biases whose second layer is scaled; what it delivers is divided by its own RMS, or not."""

    def __init__(self, scale: float, *, divided: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(5))
        self.head = nn.Linear(64, 10)
        self.divided = divided
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0, (2 / 64) ** 0.5)
        with torch.no_grad():
            self.layers[1].weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x / x.square().mean(1, keepdim=True).sqrt() if self.divided else x)


def data() -> tuple[Tensor, Tensor]:
    """Ten classes round ten points."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(10, 64, generator=generator)
    y = torch.arange(200) % 10
    return points[y] + 0.5 * torch.randn(200, 64, generator=generator), y


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def steps_to(model: nn.Module, *, target: float = 0.7, most: int = 400) -> int:
    """Steps of Adam until the loss is below the target."""
    torch.set_num_threads(1)
    batch, optimizer = data(), adam(model)
    for step in range(most):
        loss = loss_fn(model, batch)
        if float(loss.detach()) < target:
            return step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return most


def raw_growth(model: Faded) -> float:
    """The largest log10 |delta_l| / |delta_out| by autograd alone, in float64."""
    model, (x, y) = model.double(), data()
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, i, out: outputs.append(out)) for m in (*model.layers, model.head)]
    loss = F.cross_entropy(model(x.double()), y)
    sizes = [float(g.norm()) for g in torch.autograd.grad(loss, outputs)]
    for hook in hooks:
        hook.remove()
    model.float()
    return math.log10(max(sizes) / sizes[-1])


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
def test_a_loss_that_is_given_back_is_no_explosion(scale):
    """The net is the same function of its inputs at every scale: so is the verdict, while the raw gradient grows."""
    plain, faded = Faded(1.0, divided=True), Faded(scale, divided=True)
    x, _ = data()
    assert torch.allclose(plain(x), faded(x), rtol=1e-3, atol=1e-4)
    assert raw_growth(faded) == pytest.approx(raw_growth(plain) - math.log10(scale), abs=0.5)
    for optimizer in (None, torch.optim.SGD, torch.optim.Adam):
        runs = [measure(m, data(), loss_fn, optimizer and optimizer(m.parameters(), lr=1e-3)) for m in (plain, faded)]
        sizes = [grown(run, run.steps[0]) for run in runs]
        assert sizes[1] == pytest.approx(sizes[0], abs=0.8)
        assert [severity(exploding_gradient, run) for run in runs] == ["healthy", "healthy"]


def test_the_faded_net_trains_as_its_twin_does():
    assert steps_to(Faded(1e-3, divided=True)) <= 1.5 * steps_to(Faded(1.0, divided=True))


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_growth_that_nothing_made_up_for_counts(scale):
    """The sick twin: the same layer as much too large, and nothing that divides."""
    model = Faded(scale, divided=False)
    run = measure(model, data(), loss_fn, torch.optim.SGD(model.parameters(), lr=0.01))
    assert grown(run, run.steps[0]) == pytest.approx(raw_growth(model), abs=0.3)
    assert severity(exploding_gradient, run) in {"serious", "fatal"}


def test_what_large_weights_give_back_counts():
    """Small weights and then large ones: the same function, but a step of the usual size wrecks the small layer."""
    torch.set_num_threads(1)
    model = Faded(1e-4, divided=False)
    with torch.no_grad():
        model.layers[3].weight.mul_(1e4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = measure(model, data(), loss_fn, optimizer)
    assert grown(run, run.steps[0]) > 3
    assert severity(exploding_gradient, run) in {"serious", "fatal"}
    for _ in range(2):
        optimizer.zero_grad()
        loss_fn(model, data()).backward()
        optimizer.step()
    assert not float(loss_fn(model, data()).detach()) < 1e3


@pytest.mark.parametrize("seed", range(3))
def test_adam_bears_outputs_that_are_too_large_better_than_chaos(check_run, seed):
    sums = NetConfig(kind="residual", depth=12, init="he", seed=seed)
    chaos = NetConfig(depth=20, activation="tanh", init="lecun", gain=3.0, seed=seed)
    said = {
        (name, kind): severity(exploding_gradient, check_run(msgspec.structs.replace(config, **settings)))
        for name, config in (("sums", sums), ("chaos", chaos))
        for kind, settings in (("SGD", {}), ("Adam", ADAM))
    }
    assert said["sums", "SGD"] == "serious"
    assert said["sums", "Adam"] == "mild"
    assert said["chaos", "SGD"] == said["chaos", "Adam"] == "serious"


def test_what_counts_is_the_growth_of_output_times_gradient(check_run):
    """With `scale` 0 only |output||delta| is left, which is flat in a homogeneous net (Euler)."""
    run = check_run(NetConfig(depth=12, init="he", gain=3.0))
    step = run.steps[0]
    assert grown(run, step) > 5
    assert grown(run, step, scale=0.0) < 0.5
    out = step.at("act_rms", step.output) * step.at("delta_norm", step.output)
    weights = [i for i, site in enumerate(run.sites) if site.role == "weight"]
    slow = max(math.log10(step.at("act_rms", i) * step.at("delta_norm", i) / out) for i in weights)
    assert grown(run, step, scale=0.0) == pytest.approx(max(slow, 0), abs=0.2)


def at_strengths(run: Run, strengths: list[float]) -> Run:
    """Steps whose profile is the run's first one, each stretched so that the gradient grows by so many decades."""
    first = run.steps[0]
    here = first.sites["delta_norm"][first.output]
    size = max(log10_gain(first, i) for i in range(len(run.sites)))
    steps = []
    for number, decades in enumerate(strengths):
        column = [d and here * (d / here) ** (decades / size) for d in first.sites["delta_norm"]]
        steps.append(msgspec.structs.replace(first, step=number, sites={**first.sites, "delta_norm": column}))
    return msgspec.structs.replace(run, steps=steps)


def test_of_few_steps_the_higher_median_counts_for_an_explosion(check_run):
    """Batch norm's growth falls as soon as the steps that it makes too large have grown the weights."""
    run = check_run(NetConfig(depth=30, activation="tanh", init="lecun", gain=3.0))
    assert severity(exploding_gradient, at_strengths(run, [3.7, 2.8, 2.3, 2.2])) == "serious"
    assert severity(exploding_gradient, at_strengths(run, [3.7, 2.4, 2.3, 2.2])) == "mild"
    assert severity(exploding_gradient, at_strengths(run, [3.7, 2.4, 2.2])) == "mild"


def tiny_weights(scale: float) -> nn.Module:
    """Two layers whose weights are drawn far too small."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(4)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(64, 10))
    for n, layer in enumerate(layers):
        nn.init.normal_(layer.weight, 0, (2 / 64) ** 0.5 * (scale if n in (1, 2) else 1))
    return model


@pytest.mark.parametrize("scale", [1e-4, 1e-7])
def test_weights_that_a_step_multiplies_are_no_serious_loss(scale):
    model = tiny_weights(scale)
    run = measure(model, data(), loss_fn, adam(model))
    step = run.steps[0]
    assert lost(run, step) == pytest.approx(-2 * math.log10(scale), abs=1)
    assert lasting(run, step) < 1
    (finding,) = vanishing_gradient(run)
    assert finding.severity == "mild"
    assert "a step moves the weights of 2, 4 by more than 30% of their size: they will grow" in finding.summary


def test_they_do_grow():
    """Six decades of vanishing, and Adam needs not three times the steps."""
    run = measure(tiny_weights(1e-3), data(), loss_fn)
    assert lost(run, run.steps[0]) > 5
    assert steps_to(tiny_weights(1e-3)) <= 3 * steps_to(tiny_weights(1.0))


def test_sgd_does_not_move_them():
    model = tiny_weights(1e-4)
    run = measure(model, data(), loss_fn, torch.optim.SGD(model.parameters(), lr=0.05))
    assert severity(vanishing_gradient, run) == "fatal"
    assert lasting(run, run.steps[0]) == lost(run, run.steps[0])


def test_what_activations_take_lasts(check_run):
    """Large steps make no weight small: a sigmoid's slope stays, and so do weights of the usual size."""
    run = check_run(NetConfig(depth=20, activation="sigmoid", optimizer="Adam", lr=0.1))
    assert severity(vanishing_gradient, run) == "fatal"
    assert lasting(run, run.steps[0]) > 10
    slow = check_run(NetConfig(depth=24, **ADAM))
    assert lasting(slow, slow.steps[0]) == lost(slow, slow.steps[0])


class Scaled(nn.Module):
    """A factor for each channel, of shape (1, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-9 * (self.alpha * x).sin()


def test_a_vector_s_gradient_is_not_compared_with_eps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), Scaled(), nn.ReLU(), nn.Linear(64, 10))
    run = measure(model, data(), loss_fn, adam(model))
    sizes = {
        param.name: run.steps[0].of("grad_rms", i)
        for i, param in enumerate(run.header.params)
        if param.name.endswith(("weight", "alpha"))
    }
    assert sizes["1.alpha"] < 1e-9
    assert min(sizes["0.weight"], sizes["3.weight"]) > 1e-5
    assert quietest(run, run.steps[0]) == pytest.approx(min(sizes["0.weight"], sizes["3.weight"]))


def test_a_way_that_one_step_of_many_takes_is_not_judged(check_run):
    """A mixture's first expert gets a sample once in a while."""
    sick = check_run(NetConfig(depth=12))
    rare, usual = sick.steps[0], msgspec.structs.replace(sick.steps[0], source=len(sick.sites) - 4)
    once = msgspec.structs.replace(sick, steps=[usual, rare, *[usual] * 8])
    twice = msgspec.structs.replace(sick, steps=[usual, rare, rare, *[usual] * 8])
    assert len(by_way(once)) == 1
    assert severity(vanishing_gradient, once) == "healthy"
    assert len(by_way(twice)) == 2
    assert severity(vanishing_gradient, twice) == severity(vanishing_gradient, sick) == "fatal"
    assert severity(vanishing_gradient, msgspec.structs.replace(sick, steps=[usual, rare])) == "fatal"


# One normalisation on several taps.


class Tapped(nn.Module):
    """Residual branches of small weights; what the stream holds after each block is normalised, or not, and summed."""

    def __init__(self, *, normalised: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.norm = nn.LayerNorm(64) if normalised else nn.Identity()
        self.head = nn.Linear(64, 10)
        for layer in (self.stem, *self.blocks):
            nn.init.normal_(layer.weight, 0, 1e-3)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x, taps = self.stem(x), []
        for block in self.blocks:
            x = x + F.gelu(block(x))
            taps.append(self.norm(x))
        return self.head(sum(taps))


def test_what_one_normalisation_reads_on_several_taps_does_not_count():
    model = Tapped(normalised=True)
    run = measure(model, data(), loss_fn, adam(model))
    step = run.steps[0]
    stem = next(i for i, site in enumerate(run.sites) if site.site == "stem")
    assert log10_gain(step, stem) > 1.5
    taps = [i for i, site in enumerate(run.sites) if site.site == "norm"]
    assert len(taps) == 4
    assert max(step.at("flow", i) for i in taps) < 0.5 < sum(step.at("flow", i) for i in taps)
    assert stem in normalised(run.sites, step)
    assert list(exploding_gradient(run)) == []
    bare = Tapped(normalised=False)
    assert not normalised((other := measure(bare, data(), loss_fn, adam(bare))).sites, other.steps[0])


# A start that has wrecked the net.


def explodes_then_fades(losses: list[float]) -> Run:
    """Nine sampled steps of a net whose gradient explodes in the first three."""
    shape = NetConfig(depth=12, init="he", gain=3.0)
    sick, sound = (measure(*setup(msgspec.structs.replace(shape, gain=gain))) for gain in (3.0, 1.0))
    steps = [
        msgspec.structs.replace((sick if n < 3 else sound).steps[0], step=n, loss=loss) for n, loss in enumerate(losses)
    ]
    return msgspec.structs.replace(sick, steps=steps)


def test_an_explosion_that_has_wrecked_the_net_is_not_recovered():
    (still,) = exploding_gradient(explodes_then_fades([2.3, 9.0, 2.5, *[2.3] * 6]))
    assert still.severity == "fatal"
    assert "the loss is still where it began" in still.summary
    (better,) = exploding_gradient(explodes_then_fades([2.3, 9.0, 2.5, *[1.0] * 6]))
    assert better.severity == "mild"
    assert "recovered" in better.summary
