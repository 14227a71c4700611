"""Random gradients, signal to noise and rank against slow twins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradwell.errors import NotMeasurable
from gradwell.journeys.check import check, measure
from gradwell.measure.noise import signal_to_noise
from gradwell.measure.spectrum import participation_ratio
from gradwell.probe import gates
from gradwell.probe.parts import split
from gradwell.records.run import Run

from . import nets


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def index(run: Run, name: str) -> int:
    return next(i for i, site in enumerate(run.sites) if site.site == name)


def squared(jacobian: Tensor) -> float:
    return float(jacobian.square().sum())


# ------------------------------------------------------------------ chi


def test_chi_is_that_of_the_explicit_jacobian(monkeypatch):
    monkeypatch.setattr(gates, "PROBES", 200)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nets.Free(lambda m, x: m.inner(x, x, x)[0],
        inner=nn.MultiheadAttention(6, 2, batch_first=True)), nn.Linear(6, 4),
    ).double()  # fmt: skip
    x = torch.randn(2, 3, 5).double()
    run = measure(model, (x, torch.randn(2, 3, 4).double()), nets.fit, level="deep")
    step = run.steps[0]
    for k, name in ((1, "1"), (2, "2"), (3, "3.inner"), (4, "4")):
        h = model[:k](x).detach()
        jacobian = torch.autograd.functional.jacobian(model[k], h)
        i, expected = index(run, name), squared(jacobian) / model[k](h).numel()
        assert step.at("chi", i) == pytest.approx(expected, rel=0.06)
    exact = model[4].weight.detach().square().sum() / 4
    assert step.at("chi", index(run, "4")) == pytest.approx(float(exact), rel=0.05)


def test_chi_of_trained_weights_is_not_misled_by_their_large_direction():
    """A gradient that came through the layer above lies in its large direction; a fresh one does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        for layer in model[1:]:
            layer.weight += 2 * torch.outer(torch.ones(32), torch.ones(32)) / 32
    run = measure(model, (torch.randn(64, 32), torch.randn(64, 32)), nets.fit, level="deep")
    step = run.steps[0]
    for name in ("1", "2"):
        expected = float(model[int(name)].weight.detach().square().sum() / 32)
        assert step.at("chi", index(run, name)) == pytest.approx(expected, rel=0.1)
    assert 10 ** (2 * step.deep.random_total) > 1.5 * step.at("chi", 1) * step.at("chi", 2)


def test_the_forward_gain_is_the_jacobian_from_the_first_layer(monkeypatch):
    monkeypatch.setattr(gates, "PROBES", 200)
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Tanh(), nn.Linear(6, 9), nets.Free(lambda m, x: x + m.a(x).relu(), a=nn.Linear(9, 9)), nn.Linear(9, 3)
    )
    model = nn.Sequential(nn.Linear(5, 6), *body).double()
    x = torch.randn(4, 5).double()
    run = measure(model, (x, torch.randn(4, 3).double()), nets.fit, level="deep")
    step = run.steps[0]
    first = model[0](x).detach()
    for name, part in (("1", body[:1]), ("2", body[:2]), ("4", body)):
        jacobian = torch.autograd.functional.jacobian(part, first)
        expected = 0.5 * math.log10(squared(jacobian) / part(first).numel())
        assert step.at("forward_gain", index(run, name)) == pytest.approx(expected, abs=0.02)
    assert step.at("forward_gain", 0) == 0


def test_the_forward_gain_is_left_out_where_nothing_can_be_differentiated_twice(monkeypatch):
    def refuse(*_: Any) -> Any:
        raise RuntimeError("differentiated twice")

    monkeypatch.setattr(gates, "_add", refuse)
    diagnosis = check(*nets.build(lambda: nets.sigmoid_chain(3)), None, "deep")
    assert [item.symptom for item in diagnosis.not_checked if "differentiated twice" in item.reason] == ["forward gain"]
    assert len([row for row in diagnosis.profile if row.chi is not None]) == 6


# ------------------------------------------------------------------ random gradient


def test_the_model_alone_is_the_jacobian_of_all_layers(monkeypatch):
    monkeypatch.setattr(gates, "PROBES", 300)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3))
    model = nn.Sequential(nn.Linear(5, 6), *body).double()
    x = torch.randn(4, 5).double()
    run = measure(model, (x, torch.randn(4, 3).double()), nets.fit, level="deep")
    step = run.steps[0]
    for k in range(4):
        h = model[: k + 1](x).detach()
        jacobian = torch.autograd.functional.jacobian(model[k + 1 :], h)
        expected = 0.5 * math.log10(squared(jacobian) / (4 * 3))
        assert step.at("random_gain", k) == pytest.approx(expected, abs=0.02)
    assert step.deep.random_total == step.at("random_gain", 0)
    assert step.deep.alignment == pytest.approx(step.total - step.deep.random_total, abs=1e-6)


def test_a_loss_in_the_large_direction_shows_as_alignment():
    """The loss pulls along the one large direction of a layer: more arrives than of a random gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[1].weight += 10 * torch.ones(32, 32) / 32
    aligned = check(model, torch.randn(16, 32), lambda m, b: m(b).mean(), None, "deep")
    assert aligned.deep.alignment > 0.4
    assert aligned.profile[0].alignment == pytest.approx(aligned.deep.alignment, abs=1e-6)
    across = check(
        model, torch.randn(16, 32), lambda m, b: (m(b) * torch.tensor([1.0, -1.0]).repeat(16)).mean(), None, "deep"
    )
    assert across.deep.alignment < -0.4


# ------------------------------------------------------------------ signal to noise


def test_gsnr_is_that_of_a_loop_over_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 6).double() + 1, torch.randint(0, 3, (8,))
    run = measure(model, (x, y), nets.classify, level="deep")
    for k, parameter in enumerate(model.parameters()):
        grads = []
        for i in range(8):
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameter)
            grads.append(grad.numpy().ravel())
        scatter = np.var(grads, axis=0, ddof=1).sum()
        signal = np.square(np.mean(grads, axis=0)).sum() - scatter / 8
        assert run.steps[0].of("gsnr", k) == pytest.approx(max(signal, 0) / scatter, rel=1e-6)


def test_gsnr_depends_neither_on_the_batch_nor_on_the_loss_scale():
    """The mean over draws of batches of 16 and 256, and of a loss that is a sum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def ratio(samples: int, seed: int, reduction: str) -> float:
        torch.manual_seed(seed)
        x = torch.randn(samples, 6)
        batch = (x, x.sum(1, keepdim=True))
        run = measure(model, batch, lambda m, b: F.mse_loss(m(b[0]), b[1], reduction=reduction), level="deep")
        return run.steps[0].of("gsnr", 0)

    small = np.mean([ratio(16, seed, "mean") for seed in range(12)])
    large = np.mean([ratio(256, seed, "sum") for seed in range(12)])
    assert small == pytest.approx(large, rel=0.35)


def test_gsnr_is_zero_for_noise_and_infinite_for_equal_samples():
    assert signal_to_noise([1.0, 1.0, 1.0, 1.0], 0.25, 1) == 0  # four gradients at right angles
    assert signal_to_noise([4.0, 4.0], 4.0, 3) == math.inf
    assert signal_to_noise([4.0], 4.0, 3) is None
    assert signal_to_noise([0.0, 0.0], 0.0, 3) is None


def test_dropout_is_off_for_the_noise_between_samples():
    model, batch, loss = nets.build(nets.transformer)
    run = measure(model, batch, loss, level="deep")
    assert "signal to noise" not in run.steps[0].deep.not_measured
    model.eval()
    still = measure(model, batch, loss, level="deep")
    assert run.steps[0].params["gsnr"] == pytest.approx(still.steps[0].params["gsnr"], nan_ok=True)


REASONS = {
    "batch norm": (nets.generator, "batch norm makes"),
    "different lengths": (lambda: axes_of_time_and_batch(), "different lengths (3, 5)"),
    "time before batch": (lambda: time_first(), "do not add up"),
    "compared samples": (lambda: contrastive(), "do not add up"),
    "one sample": (lambda: (nn.Sequential(nets.linear(), nets.linear()), torch.randn(1, 16), squares), "one sample"),
    "no tensors": (lambda: (nn.Sequential(nets.linear(), nets.linear()), 3, no_batch), "no plain tensors"),
}


def squares(model: Any, batch: Any) -> Tensor:
    return model(batch).square().mean()


def no_batch(model: Any, batch: Any) -> Tensor:
    return model(torch.ones(batch, 16)).square().mean()


def axes_of_time_and_batch() -> Any:
    model = nn.Sequential(nets.linear(), nets.linear())
    return model, (torch.randn(5, 3, 16), torch.randn(3)), lambda m, b: (m(b[0]).mean((0, 2)) - b[1]).square().mean()


def time_first() -> Any:
    model = nets.Free(lambda m, x: m.head(m.rnn(m.first(x))[0][-1]), first=nets.linear(), rnn=nn.GRU(16, 16),
                      head=nets.linear())  # fmt: skip
    return model, torch.randn(6, 4, 16), squares


def contrastive() -> Any:
    def loss(model: Any, batch: Any) -> Tensor:
        z = F.normalize(model(batch), dim=1)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(batch)))

    return nn.Sequential(nets.linear(), nn.ReLU(), nets.linear()), torch.randn(16, 16), loss


@pytest.mark.parametrize("why", REASONS)
def test_a_batch_that_cannot_be_split_is_not_measured_and_says_why(why):
    net, reason = REASONS[why]
    diagnosis = check(*nets.build(net), None, "deep")
    (item,) = [item for item in diagnosis.not_checked if item.symptom == "signal to noise"]
    assert reason in item.reason
    assert [row for row in diagnosis.profile if row.gsnr is not None] == []


def test_a_batch_is_cut_in_every_container_and_the_rest_goes_along():
    batch = {"x": torch.arange(17), "pair": [torch.arange(17) * 2, "word"], "scale": torch.tensor(3.0)}
    parts, whole, each = split(batch)
    assert (len(parts), each) == (8, 2)
    assert torch.equal(torch.cat([part["pair"][0] for part in parts]), 2 * torch.arange(16))
    assert torch.equal(whole["x"], torch.arange(16))
    assert {(part["pair"][1], float(part["scale"])) for part in parts} == {("word", 3.0)}
    with pytest.raises(NotMeasurable):
        split({})


# ------------------------------------------------------------------ rank


def test_participation_ratio_is_that_of_the_eigenvalues():
    rng = np.random.default_rng(0)
    for shape in ((30, 5), (5, 30)):
        rows = rng.normal(size=shape) * np.linspace(0.1, 3, shape[1]) + 7
        values = np.linalg.eigvalsh(np.cov(rows.T))
        assert participation_ratio(rows) == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert participation_ratio(1e-30 * rng.normal(size=(8, 3))) > 1
    assert participation_ratio(np.ones((4, 3))) == 0
    assert participation_ratio(np.full((4, 3), np.nan)) is None


def test_rank_of_layers_and_of_the_last_hidden_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.outer(torch.randn(8), torch.randn(8)))  # one direction
    x = torch.randn(64, 8)
    run = measure(model, (x, torch.randn(64, 2)), nets.fit, level="deep")
    step = run.steps[0]
    h = model[0](x).detach().numpy()
    assert step.at("rank", 0) == pytest.approx(participation_ratio(h), rel=1e-6)
    assert step.at("rank", 1) == pytest.approx(1, abs=1e-4)
    hidden = model[:3](x).detach().numpy()
    assert step.deep.hidden_rank == pytest.approx(participation_ratio(hidden), rel=1e-6)
    assert step.deep.hidden_rank_most == 8


def test_channels_are_the_units_of_images():
    run = measure(*nets.build(nets.unet), level="deep")
    model, (x, _), _ = nets.build(nets.unet)
    out = model.down1(x).detach().movedim(1, -1).reshape(-1, 4).numpy()
    assert run.steps[0].at("rank", index(run, "down1")) == pytest.approx(participation_ratio(out), rel=1e-5)
