"""The tasks are endless, seeded, shaped for their net, and learnable."""

import sys
from itertools import islice

import pytest
import torch

from gradwell.errors import UsageError
from gradwell.lab import data
from gradwell.lab.nets import build
from gradwell.lab.tasks import batch, batches, held_out, loss_fn, optimizer
from gradwell.lab.train import steps_to, train
from gradwell.records.net import NetConfig

SHAPES = {"mlp": (64,), "residual": (64,), "cnn": (1, 8, 8), "transformer": (8, 8), "rnn": (8, 8), "lstm": (8, 8)}


@pytest.mark.parametrize("task", ["digits", "gaussian"])
@pytest.mark.parametrize("kind", SHAPES)
def test_inputs_have_the_shape_their_net_reads(task, kind):
    x, y = batch(NetConfig(kind=kind, task=task, batch_size=32))
    assert x.shape == (32, *SHAPES[kind])
    assert y.shape == (32,)
    assert y.dtype == torch.int64


@pytest.mark.parametrize("task", data.TASKS)
def test_batches_are_endless_seeded_and_leave_the_global_generator(task):
    net = NetConfig(task=task, loss="mse", batch_size=64, seed=5)
    state = torch.get_rng_state()
    first, second = (list(islice(batches(net), 30)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert len(first) == 30
    for (x, y), (also_x, also_y) in zip(first, second, strict=True):
        assert torch.equal(x, also_x)
        assert torch.equal(y, also_y)


def test_digits_are_split_once_and_an_epoch_sees_each_digit_once():
    net = NetConfig(batch_size=100)
    x, _ = held_out(net)
    assert x.shape == (397, 64)
    epoch = torch.cat([x for x, _ in islice(batches(net), 14)])
    assert len(epoch.unique(dim=0)) == len(data.load_digits()[0][:1400].flatten(1).unique(dim=0))
    assert 0 <= epoch.min() < epoch.max() <= 1


def test_input_scale_and_shift_act_on_the_data():
    plain, moved = batch(NetConfig()), batch(NetConfig(input_scale=100.0, input_shift=-3.0, dtype="float64"))
    assert torch.allclose(moved[0], 100 * plain[0].double() - 3)


def test_xor_gives_its_four_points_in_order():
    x, y = batch(NetConfig(task="xor"))
    assert x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert y.tolist() == [0, 1, 1, 0]
    assert [x.tolist() for x, _ in islice(batches(NetConfig(task="xor", batch_size=1)), 5)][4] == [[0, 0]]


def test_missing_scikit_learn_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    data.load_digits.cache_clear()
    with pytest.raises(UsageError, match=r"'digits' needs scikit-learn.*pip install gradwell\[lab\]"):
        batch(NetConfig())


def test_losses_agree_whether_the_model_or_the_loss_holds_the_softmax():
    plain = NetConfig(task="gaussian", depth=2, batch_size=16)
    values = [
        loss_fn(net)(build(net), batch(net)).item()
        for net in (plain, *(NetConfig(task="gaussian", depth=2, batch_size=16, output_activation=o)
                             for o in ("softmax", "log_softmax")))
    ]  # fmt: skip
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_momentum_is_passed_where_the_optimizer_has_one():
    model = build(NetConfig())
    assert optimizer(NetConfig(momentum=0.8), model).defaults["momentum"] == 0.8
    assert optimizer(NetConfig(optimizer="Adam", lr=1e-3), model).defaults["lr"] == 1e-3
    assert optimizer(NetConfig(), model, lr=7.0).defaults["lr"] == 7.0


@pytest.mark.parametrize("task", data.TASKS)
def test_each_task_can_be_learned(task):
    loss = "mse" if task == "regression" else "cross_entropy"
    kind = {"sequence": "gru", "recent": "rnn", "echo": "rnn"}.get(task, "mlp")
    net = NetConfig(task=task, kind=kind, loss=loss, depth=1, width=32, init="he", optimizer="Adam", lr=0.02)
    losses = train(net, steps=150)
    assert losses[-1] < losses[0] / 2


def test_training_is_deterministic_and_leaves_the_global_generator():
    net = NetConfig(task="gaussian", depth=2, dropout=0.3)
    state = torch.get_rng_state()
    assert train(net, steps=5) == train(net, steps=5)
    assert torch.equal(state, torch.get_rng_state())


def test_training_stops_at_the_first_loss_that_is_not_finite():
    losses = train(NetConfig(task="regression", loss="mse", lr=1e12), steps=50)
    assert 1 < len(losses) < 50
    assert not torch.tensor(losses[-1]).isfinite()


def test_steps_to_separates_a_sick_net_from_its_cured_twin():
    sick, cured = (NetConfig(init=i, depth=8, optimizer="Adam", lr=1e-3) for i in ("torch_default", "he"))
    slow, fast = (steps_to(net, max_steps=300) for net in (sick, cured))
    assert 1.5 < slow / fast < 6  # theory 2.3: 113 / 40 = 2.9
    assert steps_to(sick, max_steps=5) is None
