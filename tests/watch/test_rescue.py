"""`rescue=True`: a step with a NaN or an infinity in a gradient becomes no step."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradwell as gw
from gradwell.errors import UsageError
from gradwell.probe.rescue import not_finite

from .conftest import X, bits, events, loss_of, net, sgd, train

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def batch(step: int, poisoned: tuple[int, ...], value: float) -> torch.Tensor:
    return X * value if step in poisoned else X + step / 10


def feed(model: nn.Module, optimizer, steps, poisoned=(), value=math.nan) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, batch(step, poisoned, value))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state_bits(optimizer) -> str:
    return repr([[(k, v.tolist() if isinstance(v, torch.Tensor) else v) for k, v in s.items()] for s in
                 optimizer.state.values()])  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_batch_changes_no_bit(kind, value):
    """The twin trains on the same batches without the poisoned ones: bit-equal from the start to the end."""
    twin = net(2)
    theirs = OPTIMIZERS[kind](twin.parameters())
    expected = feed(twin, theirs, [0, 1, 2, 4, 5, 7])
    model = net(2)
    optimizer = OPTIMIZERS[kind](model.parameters())
    with gw.watch(model, optimizer, rescue=True) as watch:
        losses = feed(model, optimizer, range(3))
        before = bits(model), state_bits(optimizer)
        poisoned = feed(model, optimizer, [3], poisoned=(3,), value=value)
        assert (bits(model), state_bits(optimizer)) == before
        assert all(p.grad is not None for p in model.parameters())  # the gradients are given back
        losses += feed(model, optimizer, range(4, 8), poisoned=(6,), value=value)
    assert not math.isfinite(poisoned[0])
    assert [loss for loss in losses if math.isfinite(loss)] == expected
    assert (bits(model), state_bits(optimizer)) == (bits(twin), state_bits(theirs))
    assert [(event.event, event.step) for event in watch.run.events if event.event == "rescue"] == [
        ("rescue", 3), ("rescue", 6),
    ]  # fmt: skip
    detail = next(event.detail for event in watch.run.events if event.event == "rescue")
    assert detail["skipped"] == "optimizer step"
    assert "4.weight" in detail["parameters"]


def test_without_rescue_the_same_batch_ends_the_training():
    model = net(2)
    optimizer = sgd(model)
    with gw.watch(model, optimizer):
        losses = feed(model, optimizer, range(6), poisoned=(3,))
    assert all(math.isnan(loss) for loss in losses[3:])


def test_a_step_that_was_skipped_has_an_update_of_zero():
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1, rescue=True) as watch:
        feed(model, optimizer, range(4), poisoned=(2,))
    assert [max(step.params["update_rms"]) > 0 for step in watch.run.steps] == [True, True, False, True]
    assert watch.run.events[-1].detail["steps"] == 4


def test_a_closure_is_guarded_where_it_is_called_once():
    def body(model, optimizer):
        losses = []
        for step in range(6):

            def closure(step=step):
                optimizer.zero_grad()
                loss = loss_of(model, batch(step, (3,), math.nan))
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        return losses

    model = net()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    with gw.watch(model, optimizer, rescue=True) as watch:
        losses = body(model, optimizer)
    assert [math.isfinite(loss) for loss in losses] == [True, True, True, False, True, True]
    assert events(watch).count("rescue") == 1
    twin = net()
    theirs = OPTIMIZERS["Adam"](twin.parameters())
    feed(twin, theirs, [0, 1, 2, 4, 5])
    assert bits(model) == bits(twin)


def test_lbfgs_is_refused(capsys):
    model = net()
    sentence = "rescue=True cannot guard LBFGS: its step runs many backward passes of its own; leave rescue out or"
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UsageError, match=sentence):
        gw.watch(model, optimizer, rescue=True)
    with pytest.raises(UsageError, match=sentence):
        gw.watch(model, rescue=True)  # it is found
    model = net()
    with gw.watch(model, rescue=True):
        late = torch.optim.LBFGS(model.parameters(), max_iter=2)
        for _ in range(2):
            late.step(lambda: (late.zero_grad(), loss := loss_of(model), loss.backward())[1])
    assert capsys.readouterr().err.count("cannot guard LBFGS") == 1


class Own(torch.optim.SGD):
    """Somebody's own optimizer."""


def test_a_closure_of_somebody_elses_optimizer_is_not_touched(capsys):
    model = net()
    optimizer = Own(model.parameters(), lr=0.1)
    with gw.watch(model, optimizer, rescue=True) as watch:
        for _ in range(2):
            optimizer.step(lambda: (optimizer.zero_grad(), loss := loss_of(model), loss.backward())[1])
        feed(model, optimizer, range(2), poisoned=(1,))
    assert capsys.readouterr().err.count("cannot guard Own.step(closure)") == 1
    assert events(watch).count("rescue") == 1  # without a closure it is guarded like any other


@pytest.mark.parametrize("fused", [False, True])
def test_the_scalers_own_skipping_is_left_to_it(fused):
    def body(model, optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        scales = []
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch(step, (3,), math.inf))).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    plain = net()
    scales = body(plain, torch.optim.Adam(plain.parameters(), fused=fused))
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    with gw.watch(model, optimizer, rescue=True) as watch:
        assert body(model, optimizer) == scales
    assert bits(model) == bits(plain)
    assert "rescue" not in events(watch)


def test_only_the_watched_model_is_rescued():
    model, other = net(seed=1), net(seed=2)
    mine, theirs = sgd(model), sgd(other)
    with gw.watch(model, rescue=True) as watch:
        feed(other, theirs, range(2), poisoned=(1,))
        feed(model, mine, range(2), poisoned=(1,))
    assert all(math.isnan(p.sum().item()) for p in other.parameters())
    assert all(math.isfinite(p.sum().item()) for p in model.parameters())
    assert events(watch).count("rescue") == 1


def test_two_watches_that_rescue():
    model = net()
    optimizer = sgd(model)
    before = copy.deepcopy(model)
    with gw.watch(model, optimizer, rescue=True) as one, gw.watch(model, optimizer, rescue=True):
        feed(model, optimizer, [0], poisoned=(0,))
        assert all(p.grad is not None for p in model.parameters())
    assert bits(model) == bits(before)
    assert events(one).count("rescue") == 1


def test_a_step_that_raises_gives_the_gradients_back_at_the_end():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("theirs")

    model = net()
    optimizer = Raises(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="theirs"), gw.watch(model, optimizer, rescue=True):
        feed(model, optimizer, [0], poisoned=(0,))
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("closure", [False, True])
def test_a_fault_of_ours_is_told_once_and_the_training_goes_on(closure, monkeypatch, capsys):
    def fails(_parameters):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("gradwell.probe.rescue.not_finite", fails)
    plain = net()
    losses = train(plain, sgd(plain), 4)
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1, rescue=True) as watch:
        if closure:
            for _ in range(4):
                optimizer.step(lambda: (optimizer.zero_grad(), loss := loss_of(model), loss.backward())[1])
        else:
            assert train(model, optimizer, 4) == losses
    assert bits(model) == bits(plain)
    assert len(watch.run.steps) == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "rescue" in line]
    assert told == [
        "gradwell: rescue=True cannot guard SGD (ZeroDivisionError: ours); its steps are taken as they are."
    ]


def test_gradients_that_are_large_sparse_half_or_absent():
    big = nn.Parameter(torch.zeros(3))
    big.grad = torch.full((3,), 1e38)  # its square overflows float32
    half = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    half.grad = torch.full((3,), 6e4, dtype=torch.float16)
    table = nn.Embedding(5, 2, sparse=True)
    F.mse_loss(table(torch.tensor([1, 1])), torch.zeros(2, 2)).backward()
    none = nn.Parameter(torch.zeros(3))
    empty = nn.Parameter(torch.zeros(0))
    empty.grad = torch.zeros(0)
    healthy = [big, half, table.weight, none, empty]
    assert not_finite(healthy) == []
    assert not_finite([]) == []
    bad = nn.Parameter(torch.zeros(3))
    bad.grad = torch.tensor([0.0, -math.inf, 1.0])
    assert [p is bad for p in not_finite([*healthy, bad])] == [True]
    table.weight.grad = table.weight.grad * math.nan
    assert [p is table.weight for p in not_finite(healthy)] == [True]


def test_a_rescued_run_says_so(capsys):
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, rescue=True) as watch:
        train(model, optimizer, 5)
        feed(model, optimizer, [5], poisoned=(5,))
        train(model, optimizer, 5)
    finding = next(f for f in watch.diagnose().findings if f.symptom == "nonfinite_value")
    assert finding.severity == "mild"
    assert "step 5" in finding.summary
    assert "rescue" in finding.summary
