"""One run of an arm: what a seed changes, what it leaves, and that nothing else notices."""

import copy
import importlib.util
import math
import random
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradwell.records.verdict import Remedy
from gradwell.surgery.loop import Loop
from gradwell.trial.judge import compare
from gradwell.trial.train import HELD_BATCHES, HELD_SEED, Job, held_loss, shake, work

spec = importlib.util.spec_from_file_location("trial_nets", Path(__file__).with_name("nets.py"))
nets = importlib.util.module_from_spec(spec)
sys.modules["trial_nets"] = nets
spec.loader.exec_module(nets)


def job(**options):
    return Job(**{"remedies": (), "lr_scale": 1.0, "seed": 0, "steps": 20, "limit_s": 60.0, **options})


def test_a_run_is_a_plain_training_and_its_held_loss_an_evaluation():
    setup = nets.healthy()
    found = work(setup, job(seed=0))
    twin = setup.copy()
    losses = Loop(twin, seed=0).run(20)
    twin.model.eval()
    with torch.no_grad():
        held = [float(nets.cross_entropy(twin.model, b)) for b in islice(nets.batches(HELD_SEED), HELD_BATCHES)]
    assert found.loss == sum(held) / HELD_BATCHES
    assert found.course[0] == (0, losses[0])
    assert found.course[-1] == (19, losses[-1])
    assert found.start == held_loss(setup)


def test_the_same_job_gives_the_same_run_and_another_seed_another_one():
    setup = nets.healthy()
    first, again, other = (work(setup, job(seed=s)).loss for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_monitor_changes_no_loss():
    setup = nets.healthy()
    watched = work(setup, job(watched=5))
    assert watched.loss == work(setup, job()).loss
    assert [step.step for step in watched.run.steps][:3] == [0, 1, 2]


def test_model_modes_and_random_numbers_are_as_before():
    setup = nets.healthy()
    setup.model[1].eval()
    weights = copy.deepcopy(setup.model.state_dict())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def batches(seed):
        for batch in nets.batches(seed):
            random.random(), np.random.rand(), torch.rand(1)
            yield batch

    setup.batches = batches
    work(setup, job(seed=5, watched=3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2][1])
    assert all(torch.equal(weights[k], v) for k, v in setup.model.state_dict().items())
    assert [m.training for m in setup.model] == [True, False, True, True, True]
    assert all(p.grad is None for p in setup.model.parameters())


def test_a_batch_norm_is_judged_in_eval_mode():
    setup = nets.healthy()
    setup.model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    assert held_loss(setup) == held_loss(setup)
    assert int(setup.model[1].num_batches_tracked) == 0
    assert setup.model.training


@pytest.mark.parametrize("what", ["loss", "batches", "optimizer"])
def test_what_the_users_code_raises_is_told_in_a_sentence(what):
    setup = nets.healthy()

    def fails(*_):
        raise ValueError("no such file\nand more lines")

    setattr(setup, {"loss": "loss_fn", "batches": "batches", "optimizer": "make_optimizer"}[what], fails)
    found = work(setup, job())
    assert found.problem == "ValueError: no such file"
    assert isinstance(found.raised, ValueError)
    assert found.ending.infeasible


def test_a_run_that_diverges_ends_early_and_is_infeasible():
    setup = nets.healthy()
    setup.loss_fn = lambda model, batch: nets.cross_entropy(model, batch).exp().exp().exp()
    found = work(setup, job(lr_scale=1e4, steps=500))
    assert found.steps < 500
    assert found.ending.infeasible


def test_a_run_looks_at_the_clock():
    found = work(nets.healthy(), job(steps=1_000_000, limit_s=0.5))
    assert found.late
    assert found.loss is None
    assert found.steps < 1_000_000


def test_a_remedy_comes_onto_the_copy_with_its_rate():
    setup = nets.healthy()
    slow = work(setup, job(remedies=(Remedy("scale_lr", {"factor": 1e-6}),)))
    assert slow.loss == pytest.approx(slow.start, rel=1e-3)
    assert work(setup, job(lr_scale=1e-6)).loss == slow.loss
    assert setup.lr_scale == 1.0
    assert setup.applied == []


# What a seed changes in the weights.


def every_kind():
    torch.manual_seed(1)
    return [
        nn.Linear(6, 5), nn.Linear(5, 5), nn.Conv2d(3, 4, 3), nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4),
        nn.Embedding(7, 4), nn.MultiheadAttention(6, 2), nn.LayerNorm(6), nn.BatchNorm1d(5), nn.Bilinear(3, 4, 2),
        nn.GRUCell(3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("module", every_kind(), ids=lambda m: type(m).__name__)
def test_a_seed_keeps_the_elements_of_every_parameter_and_seed_0_everything(module):
    model = nn.Sequential(module)
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    shake(same, 0)
    shake(other, 7)
    for (name, p), q, r in zip(model.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(p.flatten().sort().values, r.flatten().sort().values), name
    changed = [not torch.equal(p, r) for p, r in zip(model.parameters(), other.parameters(), strict=True)]
    assert any(changed) or isinstance(module, (nn.LayerNorm, nn.BatchNorm1d))


def test_singular_values_row_sums_with_biases_and_zeros_stay():
    linear = nn.Linear(6, 5)
    with torch.no_grad():
        linear.bias.copy_(-0.5 * linear.weight.sum(1))  # a centred sigmoid's
        linear.weight[2] = 0
    model = nn.Sequential(linear)
    before = torch.linalg.svdvals(linear.weight.detach())
    shake(model, 3)
    assert torch.allclose(torch.linalg.svdvals(linear.weight.detach()), before, atol=1e-6)
    live = linear.weight.detach().abs().sum(1) > 0
    assert int(live.sum()) == 4
    assert torch.allclose(linear.bias[live], -0.5 * linear.weight.sum(1)[live], atol=1e-6)


def test_recurrent_weights_keep_their_eigenvalues_and_gates_their_places():
    rnn, lstm = nn.RNN(3, 6), nn.LSTM(3, 6)
    with torch.no_grad():
        for name, p in lstm.named_parameters():
            if "bias" in name:
                p.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat_interleave(6))  # forget gates at 1
    before = torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().sort().values
    bias = lstm.bias_ih_l0.detach().clone()
    shake(nn.ModuleList([rnn, lstm]), 3)
    assert torch.allclose(torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().sort().values, before, atol=1e-5)
    assert torch.equal(lstm.bias_ih_l0, bias)


def test_a_shared_weight_is_moved_once():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    twin = copy.deepcopy(a)
    shake(nn.Sequential(a, b), 9)
    shake(nn.Sequential(twin), 9)
    assert torch.equal(a.weight, twin.weight)
    assert b.weight is a.weight


# The control on a real training: the baseline against itself.


def test_the_controls_interval_holds_0_in_90_of_100_trials_on_a_real_net():
    setup = nets.healthy()
    runs = [work(setup, job(seed=seed, steps=8)).ending for seed in range(250)]
    assert not any(math.isnan(run.loss) for run in runs)
    draw = random.Random(0)
    held = 0
    for _ in range(100):
        drawn = draw.sample(runs, 10)
        low, high = compare(drawn[:5], drawn[5:]).interval
        held += low <= 0 <= high
    assert held >= 90
