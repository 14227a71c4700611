"""The loss of every step: the numbers that the script saw, whatever way it trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradwell.journeys.log import Log
from gradwell.probe import clock
from gradwell.probe import losses as room
from gradwell.probe.clock import Monitor
from gradwell.probe.losses import Losses, Watch, input_rms
from gradwell.probe.names import Names
from gradwell.records.run import Event, Run, Step, event_line, load

X, Y = torch.randn(6, 8), torch.randn(6, 8)


@pytest.fixture
def log() -> Iterator[Log]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    log = Log(None, argv=[], say=print)
    log.monitor = Monitor(Names(), sink=log, every=7).install()
    yield log
    log.monitor.remove()


def recorded(log: Log) -> Run:
    assert log.monitor is not None
    log.monitor.remove()
    return log.run()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loss_of(model: nn.Module) -> Tensor:
    return F.mse_loss(model(X), Y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def test_every_step_is_there_sampled_or_not(log):
    model = net()
    seen = train(model, sgd(model), 40)
    run = recorded(log)
    (curve,) = run.losses()
    assert (curve.optimizer, curve.steps, curve.values) == (0, list(range(40)), seen)
    assert [step.step for step in run.steps] == list(range(0, 40, 7))


def test_a_long_way_without_a_sample_is_written_in_pieces(log, monkeypatch):
    monkeypatch.setattr(room, "MOST", 16)
    log.monitor._every = 1000
    model = net()
    seen = train(model, sgd(model), 50)
    run = recorded(log)
    assert run.losses()[0].values == seen


def test_accumulation_is_the_mean_over_the_passes(log):
    model = net()
    optimizer = sgd(model)
    expected = []
    for _ in range(10):
        parts = []
        for k in range(3):
            loss = loss_of(model) * (k + 1)
            loss.backward()
            parts.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        expected.append(sum(parts) / 3)
    assert recorded(log).losses()[0].values == expected


def test_of_lbfgs_the_loss_before_its_step(log):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    before = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(9):
        before.append(loss_of(model).item())
        optimizer.step(closure)
    assert recorded(log).losses()[0].values == before


def test_gradients_from_autograd_grad(log):
    model = net()
    optimizer = sgd(model)
    seen = []
    for _ in range(9):
        loss = loss_of(model)
        seen.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert recorded(log).losses()[0].values == seen


def test_a_gradient_penalty_is_not_the_loss(log):
    model = net()
    optimizer = sgd(model)
    seen = []
    for _ in range(9):
        x = X.clone().requires_grad_()
        inner = model(x).sum()
        (gradient,) = torch.autograd.grad(inner, x, create_graph=True)
        loss = loss_of(model) + gradient.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert recorded(log).losses()[0].values == seen


def test_functional_gradients_leave_no_trace(log):
    model = net()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, p, (x,)).sum()

    torch.func.vmap(torch.func.grad(of), (None, 0))(parameters, X)
    run = recorded(log)
    assert run.losses() == []
    assert [event for event in run.events if event.event == "instrument_failed"] == []


def test_a_loop_without_an_optimizer(log):
    model = net()
    seen = []
    for _ in range(9):
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        seen.append(loss.item())
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    assert recorded(log).losses()[0].values == seen


def test_two_optimizers_in_turn_are_two_curves(log):
    one, two = net(), net()
    first, second = sgd(one), sgd(two)
    seen: list[list[float]] = [[], []]
    for _ in range(12):
        seen[0] += train(one, first, 1)
        seen[1] += train(two, second, 1)
    curves = recorded(log).losses()
    assert [curve.values for curve in curves] == seen
    assert [curve.optimizer for curve in curves] == [0, 1]
    assert curves[1].steps == list(range(1, 24, 2))


def test_two_optimizers_on_one_loss_are_one_curve(log):
    model = net()
    first, second = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2]))
    seen = []
    for _ in range(8):
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        first.step()
        second.step()
        seen.append(loss.item())
    (curve,) = recorded(log).losses()
    assert curve.values == seen


@pytest.mark.parametrize("enabled", [True, False])
def test_the_loss_scale_is_divided_out(log, enabled):
    model = net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
    seen = []
    for _ in range(9):
        optimizer.zero_grad()
        loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append(loss.item())
    assert recorded(log).losses()[0].values == seen


def test_a_loss_that_is_not_finite_is_kept_and_read_again(log, tmp_path):
    model = net()
    optimizer = sgd(model)
    train(model, optimizer, 3)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    train(model, optimizer, 2)
    run = recorded(log)
    events = [event for event in run.events if event.event == "losses"]
    file = tmp_path / "run.jsonl"
    file.write_bytes(b'{"schema": 1, "tool": "gradwell"}\n' + b"".join(map(event_line, events)))
    for values in (run.losses()[0].values, load(file).losses()[0].values):
        assert len(values) == 5
        assert values[4] != values[4]


def test_a_record_without_such_lines_gives_the_sampled_losses(log):
    model = net()
    seen = train(model, sgd(model), 20)
    run = recorded(log)
    old = Run(run.header, run.steps)
    assert old.losses()[0].steps == [0, 7, 14]
    assert old.losses()[0].values == seen[::7]
    assert Run(run.header).losses() == []


def test_a_sum_of_micro_steps_left_behind_does_not_leak_into_the_next_run():
    losses = Losses()
    losses.note([torch.ones(())], 1.0)
    losses.done(0)
    assert losses.take() == Event("losses", 0, {"values": [1.0]})
    assert losses.take() is None


# ------------------------------------------------------------------ on an accelerator


def test_losses_left_on_the_device_come_over_together(log, monkeypatch):
    """The CPU plays the accelerator: nothing may be read before a sampled step, and memory may be used again."""
    monkeypatch.setattr("gradwell.probe.clock._loss_of", lambda _: None)
    monkeypatch.setattr(room, "_read", lambda loss: loss.detach().reshape(()).to(torch.float32, copy=True))
    stacks = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: stacks.append(len(tensors)) or stack(tensors))
    model = net()
    optimizer = sgd(model)
    seen = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
        with torch.no_grad():
            loss.detach().zero_()
    assert recorded(log).losses()[0].values == seen
    assert stacks == [1, 7, 7, 5]  # one transfer a sampled step, one at the end


def test_a_loss_that_is_not_finite_is_told_when_it_comes_over(log, monkeypatch):
    monkeypatch.setattr("gradwell.probe.clock._loss_of", lambda _: None)
    monkeypatch.setattr(room, "_read", lambda loss: loss.detach().reshape(()).to(torch.float32, copy=True))
    model = net()
    optimizer = sgd(model)
    train(model, optimizer, 9)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    train(model, optimizer, 7)
    (told,) = [event for event in recorded(log).events if event.event == "nonfinite_loss"]
    assert told.step == 9


# ------------------------------------------------------------------ losses that stand out


def test_a_batch_that_stands_out_is_looked_at_and_the_next_steps_are_sampled(log):
    model = net()
    optimizer = sgd(model)
    train(model, optimizer, 30)
    optimizer.zero_grad()
    F.mse_loss(model(X), 300 * Y).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    optimizer.step()
    train(model, optimizer, 5)
    run = recorded(log)
    (told,) = [event for event in run.events if event.event == "unusual_loss"]
    assert told.step == 30
    assert told.detail["input_rms"] == pytest.approx(X.square().mean().sqrt().item(), rel=1e-5)
    assert told.detail["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert {31, 32} <= {step.step for step in run.steps}


def test_after_a_loss_that_stands_out_sampling_begins_again_at_small_distance(log, monkeypatch):
    monkeypatch.setattr(clock, "ALLOWANCE", 60.0)
    log.monitor.remove()
    log.monitor = Monitor(Names(), sink=log).install()
    model = net()
    optimizer = sgd(model)
    train(model, optimizer, 300)
    optimizer.zero_grad()
    F.mse_loss(model(X), 300 * Y).backward()
    optimizer.step()
    train(model, optimizer, 12)
    sampled = [step.step for step in recorded(log).steps]
    last = max(step for step in sampled if step < 300)
    assert sampled[sampled.index(last) - 1] < last - 20  # the distance had grown
    assert {301, 302} <= set(sampled)
    assert sum(300 < step <= 310 for step in sampled) >= 4


def test_a_sampled_step_is_handed_over_with_all_losses_up_to_it(log):
    known = []
    log.listen = lambda item: known.append((item.step, log.run().losses())) if isinstance(item, Step) else None
    model = net()
    train(model, sgd(model), 30)
    assert len(known) > 3
    assert all(curves[0].steps == list(range(step + 1)) for step, curves in known)


def test_usual_noise_does_not_stand_out():
    torch.manual_seed(0)
    watch = Watch()
    far = 0
    for loss in torch.randn(2000).add(5).tolist():
        far += watch.is_far(loss)
        watch.add(loss)
    assert far == 0
    assert watch.is_far(50.0)
    watch.add(float("nan"))
    assert watch.is_far(50.0)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(8, 4), (5, 8)),
        (lambda: nn.Linear(8, 4, bias=False), (5, 8)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 4)), (5, 3, 8)),
        (lambda: nn.Linear(8, 4), (5, 3, 8)),
        (lambda: nn.Conv2d(3, 4, 3), (2, 3, 8, 8)),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (5, 8)),
    ],
)
def test_the_batch_is_read_from_what_the_first_layer_keeps(build, shape):
    x = 7 * torch.randn(shape)
    assert input_rms([build()(x).square().mean()]) == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)


def test_no_batch_is_no_number():
    assert input_rms([nn.Parameter(torch.ones(3)).exp().sum()]) is None
    assert input_rms([torch.ones(())]) is None
    assert input_rms([nn.Embedding(5, 4)(torch.tensor([1])).sum()]) is None
