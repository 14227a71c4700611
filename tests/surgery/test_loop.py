"""The setup and its loop: the losses of a plain loop, random numbers put back, every clip against its formula."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradwell as gw
from gradwell.errors import Refused, UsageError
from gradwell.surgery.gradients import AutoClip, UnitClip, ZClip
from gradwell.surgery.loop import Loop, train
from gradwell.surgery.optimizers import SignSGD, adopt, scaled_rates


def mse(model, batch):
    x, y = batch
    return functional.mse_loss(model(x), y)


def pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(dropout), nn.Linear(10, 3))


def setup(model=None, make=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), **settings):
    return gw.TrainSetup(model or net(), make, mse, pairs, **settings)


def by_hand(
    model, steps, edit=lambda model: None, *, seed=0, make=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
):
    """A plain loop, written out."""
    optimizer, losses = make(model.parameters()), []
    for batch, _ in zip(pairs(seed), range(steps), strict=False):
        optimizer.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        edit(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


def grads(model):
    return [p.grad for p in model.parameters()]


def whole_norm(model):
    return math.sqrt(sum(g.double().square().sum().item() for g in grads(model)))


# the loop


def test_the_loop_is_a_plain_loop():
    arm = setup()
    assert train(arm, steps=6) == by_hand(net(), 6)


def test_a_loop_goes_on_where_it_stopped_whatever_draws_between():
    whole = Loop(setup(net(0.5)), seed=3).run(6)
    parts = Loop(setup(net(0.5)), seed=3)
    first = parts.run(2)
    torch.randn(7)
    assert first + parts.run(4) == whole
    assert Loop(setup(net(0.5)), seed=4).run(6) != whole


def test_training_leaves_random_numbers_and_the_original_alone():
    original = setup(net(0.5))
    before = [p.clone() for p in original.model.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(original.copy(), steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, original.model.parameters(), strict=True))
    assert all(p.grad is None for p in original.model.parameters())


def test_batches_that_run_out_begin_again_under_another_seed():
    seeds = []

    def short(seed):
        seeds.append(seed)
        return [next(pairs(seed))] * 2

    arm = setup()
    arm.batches = short
    train(arm, seed=5, steps=5)
    assert len(set(seeds)) == 3
    assert seeds[0] == 5


def test_a_loss_that_is_not_finite_ends_the_training():
    arm = setup(make=lambda params: torch.optim.SGD(params, lr=1e9))
    losses = train(arm, steps=50)
    assert len(losses) < 50
    assert not math.isfinite(losses[-1])


def poisoned(seed):
    for number, (x, y) in enumerate(pairs(seed)):
        yield (x * float("nan") if number == 2 else x), y


def test_a_bad_batch_is_skipped_and_the_training_goes_on():
    arm = setup(skip_nonfinite=True)
    arm.batches = poisoned
    loop = Loop(arm)
    losses = loop.run(5)
    assert loop.skipped == [2]
    assert math.isnan(losses[2])
    assert all(math.isfinite(loss) for loss in losses[3:])
    assert all(p.isfinite().all() for p in arm.model.parameters())


def test_a_batch_with_a_gradient_far_too_large_is_skipped():
    plain = Loop(setup())
    plain.run(5)
    assert plain.skipped == []
    arm = setup(skip_nonfinite=True, skip_from=50.0)
    arm.batches = lambda seed: ((x, y * (1e3 if n == 2 else 1.0)) for n, (x, y) in enumerate(pairs(seed)))
    loop = Loop(arm)
    losses = loop.run(5)
    assert loop.skipped == [2]
    assert losses[2] > 1e5
    assert losses[3] < 10
    arm.skip_from = None
    assert Loop(arm).run(5)[3] > 1e3


def test_a_loss_scale_changes_no_update_and_falls_after_an_overflow():
    plain, scaled = setup(), setup(loss_scale=65536.0)
    assert train(scaled, steps=5) == pytest.approx(train(plain, steps=5), rel=1e-5)
    arm = setup(loss_scale=65536.0)
    arm.batches = poisoned
    loop = Loop(arm)
    loop.run(5)
    assert loop.skipped == [2]
    assert loop.scale == 32768.0


def test_warmup_is_linear_and_rates_are_put_back():
    arm = setup(make=lambda params: torch.optim.SGD(params, lr=0.1), warmup_steps=4, lr_scale=0.5)
    loop = Loop(arm)
    moved = []
    for _ in range(6):
        before = [p.clone() for p in arm.model.parameters()]
        loop.run(1)
        step = math.sqrt(
            sum((p - b).square().sum().item() for p, b in zip(arm.model.parameters(), before, strict=True))
        )
        moved.append(step / whole_norm(arm.model))
    assert moved == pytest.approx([0.05 * f for f in (0.25, 0.5, 0.75, 1, 1, 1)], rel=1e-3)
    assert loop.optimizer.param_groups[0]["lr"] == 0.1


def test_lbfgs_gets_its_closure():
    arm = setup(make=lambda params: torch.optim.LBFGS(params, max_iter=5))
    arm.batches = lambda seed: [next(pairs(0))]
    losses = train(arm, steps=6)
    assert losses[-1] < 0.1 * losses[0]


# the setup


def test_what_a_setup_cannot_be():
    with pytest.raises(UsageError, match=r"needs a torch\.nn\.Module as its model, found str"):
        gw.TrainSetup("net", lambda params: None, mse, pairs)
    with pytest.raises(UsageError, match="loss_fn of a TrainSetup must be a function"):
        gw.TrainSetup(net(), lambda params: None, 3, pairs)
    other = net()
    with pytest.raises(UsageError, match="other parameters than those it was given"):
        setup(make=lambda params: torch.optim.SGD(other.parameters(), lr=0.1)).optimizer()
    with pytest.raises(UsageError, match=r"must return a torch\.optim\.Optimizer, found list"):
        setup(make=list).optimizer()
    captured = setup()
    captured.loss_fn = lambda model, batch: mse(other, batch)
    with pytest.raises(UsageError, match="must use the model that it is given"):
        train(captured, steps=1)
    with pytest.raises(UsageError, match="gave no batch at all"):
        train(gw.TrainSetup(net(), lambda params: torch.optim.SGD(params, lr=0.1), mse, lambda seed: []), steps=1)
    with pytest.raises(UsageError, match="How long"):
        train(setup())


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    model = net()
    model.last = model(torch.randn(2, 6))  # a computed tensor
    with pytest.raises(Refused, match="cannot be copied"):
        setup(model).copy()


def test_tied_weights_and_shared_modules_stay_so_in_a_copy():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    model.append(model[0])
    twin = setup(model).copy().model
    assert twin[1].weight is twin[0].weight
    assert twin[2] is twin[0]
    assert twin[0].weight is not model[0].weight


# optimizers


def test_a_new_parameter_joins_its_neighbours_group():
    first, second, new = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.SGD(
        [{"params": [first], "weight_decay": 0.0}, {"params": [second]}], lr=0.1, weight_decay=0.5
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda _: 1.0])
    assert adopt(optimizer, new, first)
    assert len(optimizer.param_groups) == 2
    assert any(p is new for p in optimizer.param_groups[0]["params"])
    assert not adopt(optimizer, nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)))
    new.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    assert new.tolist() == pytest.approx([0.9, 0.9])


def test_scaled_rates_are_put_back_after_an_exception_too():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with contextlib.suppress(ZeroDivisionError), scaled_rates(optimizer, 3.0):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
        raise ZeroDivisionError
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_sign_sgd_against_its_formula():
    arm, reference = setup(make=lambda params: SignSGD(params, lr=0.01)), net()

    def step(model):
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * torch.sign(p.grad)
                p.grad = None

    assert train(arm, steps=5) == pytest.approx(by_hand(reference, 5, step))


def test_rprop_against_its_formula():
    """Riedmiller and Braun 1993: 1.2 times longer while the sign stays, half as long and no step when it turns."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = torch.optim.Rprop([p], lr=0.1)
    weights, steps, last = p.detach().clone(), torch.full((3,), 0.1, dtype=torch.float64), torch.zeros(3)
    for turn in range(6):
        optimizer.zero_grad()
        grad = torch.tensor([1.0, (-1.0) ** turn, -0.5 + 0.3 * turn], dtype=torch.float64)
        p.grad = grad.clone()
        optimizer.step()
        for i in range(3):
            same = (grad[i] * last[i]).sign()
            steps[i] = (steps[i] * {1: 1.2, -1: 0.5, 0: 1.0}[int(same)]).clamp(1e-6, 50)
            used = 0.0 if same < 0 else grad[i]
            weights[i] -= steps[i] * torch.sign(torch.as_tensor(used))
            last[i] = used
    torch.testing.assert_close(p.detach(), weights)


# clips, each in float64 by its published formula


def clipped(edit, model, scale=1.0):
    """The gradients of a model before and after one edit."""
    named = [(n, p) for n, p in model.named_parameters()]
    (scale * mse(model, next(pairs(0)))).backward()
    before = [p.grad.double().clone() for _, p in named]
    edit(named)
    return before, [p.grad.double() for _, p in named]


def test_agc_clips_each_output_unit_and_leaves_the_last_weight_and_the_biases():
    model = net()
    with torch.no_grad():
        model[0].weight[0] = 0  # a unit with no weights has the floor of 1e-3 instead
    before, after = clipped(UnitClip(0.01).start(), model, scale=10.0)
    clips = 0
    for unit in range(10):
        weight, grad = model[0].weight[unit].double(), before[0][unit]
        size = max(weight.norm().item(), 1e-3)
        ratio = grad.norm().item() / size
        want = grad * (0.01 / ratio) if ratio > 0.01 else grad
        clips += ratio > 0.01
        torch.testing.assert_close(after[0][unit], want, rtol=1e-5, atol=1e-12)
    assert clips == 10
    for number in (1, 2, 3):
        assert torch.equal(before[number], after[number])


def test_autoclip_takes_the_percentile_of_all_norms_with_this_one():
    edit, model, norms = AutoClip(25.0).start(), net(), []
    for scale in (1.0, 5.0, 0.3, 2.0, 9.0):
        model.zero_grad()
        before, after = clipped(edit, model, scale)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in before)))
        ordered, at = sorted(norms), 0.25 * (len(norms) - 1)
        low = int(at)
        bound = ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
        got = math.sqrt(sum(g.square().sum().item() for g in after))
        assert got == pytest.approx(min(norms[-1], bound), rel=1e-4)


def test_zclip_brings_an_outlier_back_and_feeds_itself_with_what_is_left():
    edit, model = ZClip(threshold=2.5, alpha=0.97, warmup=25, max_norm=None).start(), net()
    unit = math.sqrt(sum(g.square().sum().item() for g in clipped(lambda named: None, model)[0]))
    generator = torch.Generator().manual_seed(1)
    norms = [1 + 0.1 * float(torch.randn((), generator=generator)) for _ in range(30)] + [8.0, 1.0, 1.3, 5.0]
    mean = var = 0.0
    outliers = 0
    for number, norm in enumerate(norms):
        model.zero_grad()
        _, after = clipped(edit, model, norm / unit)
        got = math.sqrt(sum(g.square().sum().item() for g in after))
        if number < 25:
            assert got == pytest.approx(norm, rel=1e-4)
            mean = sum(norms[: number + 1]) / (number + 1)
            var = sum((n - mean) ** 2 for n in norms[: number + 1]) / (number + 1)
            continue
        z = (norm - mean) / (math.sqrt(var) + 1e-6)
        want = mean + 2.5 * math.sqrt(var) / (z / 2.5) if z > 2.5 else norm
        outliers += z > 2.5
        assert got == pytest.approx(want, rel=1e-4)
        mean = 0.97 * mean + 0.03 * want
        var = 0.97 * var + 0.03 * (want - mean) ** 2
    assert outliers >= 2


def test_clipping_by_norm_and_by_value_is_torchs_own():
    def both(model):
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert train(setup(clip_norm=0.1, clip_value=0.05), steps=5) == by_hand(net(), 5, both)
