"""Every remedy acts on a copy, leaves names, shapes, dtypes and the original alone, and trains; its lines to paste do
the same thing.
"""

import importlib.util
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch

from gradwell.journeys.check import measure
from gradwell.records.verdict import Attribution, Finding, Where
from gradwell.remedies._act import LOOP
from gradwell.remedies._case import Case
from gradwell.remedies._code import together
from gradwell.shelf import shelf
from gradwell.surgery.loop import Loop
from gradwell.surgery.setup import forked

if "remedies_zoo" not in sys.modules:  # its classes are pickled by that name, so there may be one of each
    _spec = importlib.util.spec_from_file_location("remedies_zoo", Path(__file__).with_name("zoo.py"))
    sys.modules["remedies_zoo"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["remedies_zoo"])
zoo = sys.modules["remedies_zoo"]

REMEDIES, ACTIVATIONS = shelf("gradwell.remedies"), shelf("gradwell.theory.activations")
ANY = ["sigmoid", "cnn", "rnn"]
FITS = {
    "swap_activation": ["sigmoid", "functional", "cnn", "residual"],
    "reinit": ["sigmoid", "relu", "functional", "cnn"],
    "add_norm": ["sigmoid", "functional"],
    "add_shortcut": ["sigmoid", "functional", "unpadded"],
    "scale_residual": ["residual", "encoder"],
    "dropout": ["sigmoid", "functional", "cnn"],
    "standardize_input": ["sigmoid", "cnn", "rnn"],
    "gate_recurrence": ["rnn", "two_rnns"],
    "orthogonal_recurrence": ["rnn", "two_rnns", "cell"],
    "truncate_bptt": ["rnn", "lstm", "gru"],
    "temporal_regularizer": ["rnn", "two_rnns", "cell"],
    "auxiliary_loss": ["sigmoid", "functional", "cnn", "residual"],
}
"""The nets that each remedy must fit; those not named fit any."""
UNFIT = {"maxout", "relu", "exp"}  # takes two units for one; is there already; grows beyond float32 in two steps
MORE = {
    ("swap_activation", "relu"): [{"to": name} for name in ACTIVATIONS if name not in UNFIT],
    ("reinit", "cnn"): [{"init": "delta_orthogonal"}, {"init": "identity"}],
    ("reinit", "sigmoid"): [{"init": "centred_sigmoid"}, {"where": "head"}],
    ("reinit", "residual"): [{"init": "fixup"}],
    ("add_norm", "cnn"): [{"norm": "batch"}, {"norm": "layer"}, {"norm": "group"}],
    ("add_shortcut", "cnn"): [{"form": "identity"}, {"form": "highway"}],
    ("gate_recurrence", "lstm"): [{"forget_bias": 1.0}, {"chrono": 50}],
    ("gate_recurrence", "gru"): [{"forget_bias": 1.0}, {"chrono": 50}],
    ("gate_recurrence", "cell"): [{"to": "gru"}],
    ("orthogonal_recurrence", "lstm"): [{"gain": 0.9}],
}  # fmt: skip
POINTS = [
    (remedy, net, point)
    for remedy, entry in REMEDIES.items()
    for net in FITS.get(remedy, ANY)
    for point in entry.fact("GRID")
    if (net, point.get("to")) not in {("cnn", "tanh"), ("residual", "relu")}  # they have it already
] + [(remedy, net, point) for (remedy, net), points in MORE.items() for point in points]
IDS = [f"{remedy}-{net}-{'-'.join(str(v) for v in point.values())}" for remedy, net, point in POINTS]


def applied(setup, remedy, settings, *, seed=7):
    """A copy of the setup with one remedy."""
    arm = setup.copy()
    with forked(seed):
        REMEDIES[remedy].fact("apply")(arm, **settings)
    return arm


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second, **tolerance):
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_every_remedy_acts_and_has_a_grid():
    for remedy, entry in REMEDIES.items():
        assert callable(entry.fact("apply")), remedy
        assert entry.fact("GRID"), remedy
        assert {remedy for remedy, _, _ in POINTS} == set(REMEDIES)


@pytest.mark.parametrize(("remedy", "net", "point"), POINTS, ids=IDS)
def test_a_remedy_acts_on_a_copy_which_trains(remedy, net, point):
    setup = zoo.setup_of(net)
    before, hooks = state(setup.model), len(setup.model._forward_pre_hooks)
    torch.manual_seed(3)
    random = torch.get_rng_state()
    arm = setup.copy()
    REMEDIES[remedy].fact("apply")(arm, **point)
    assert torch.equal(random, torch.get_rng_state())
    assert arm.applied == [(remedy, point)]

    # names, shapes, dtype and device stay; what is new belongs to the group of something older
    after = state(arm.model)
    assert set(before) <= set(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].device == tensor.device
        assert after[name].shape == tensor.shape or remedy == "gate_recurrence", name
    new = {name for name, _ in arm.model.named_parameters()} - {name for name, _ in setup.model.named_parameters()}
    assert set(arm.grown) == new
    assert set(arm.grown.values()) <= set(before)

    # it trains, and the loop is deterministic whatever came before
    losses = Loop(arm.copy(), seed=1).run(2)
    assert all(torch.tensor(losses).isfinite())
    torch.manual_seed(11)
    assert Loop(arm.copy(), seed=1).run(2) == losses
    optimizer = arm.optimizer()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in arm.model.parameters())

    # a change on the model survives a pickle, as it must on the way to another process
    again = pickle.loads(pickle.dumps(arm.model))
    batch = next(iter(arm.batches(5)))
    with forked(5):
        first = zoo.loss_fn(arm.model, batch)
    with forked(5):
        assert torch.equal(first, zoo.loss_fn(again, batch))

    assert_same(before, state(setup.model), rtol=0, atol=0)
    assert len(setup.model._forward_pre_hooks) == hooks
    assert "forward" not in vars(setup.model)


# the lines to paste


def plan_of(setup, remedy, settings):
    """The prescription for the first symptom that the remedy has something to say about."""
    run = measure(setup.model, setup.batch(), setup.loss_fn, setup.optimizer())
    for symptom in dict.fromkeys(t.symptom for t in REMEDIES[remedy].fact("TREATS")):
        found = Finding(symptom, "serious", [Where(run.sites[0].site, run.sites[0].kind)], 0, 0, [], "")
        causes = [Attribution(0, "between_modules", "share", 3.0, 1.0, "")] if remedy == "scale_residual" else []
        plan = REMEDIES[remedy](Case(run, run.steps[0], found, causes), **settings)
        if plan is not None and any(
            line.strip() and not line.startswith("#") for line in plan.in_your_code.splitlines()
        ):
            return plan
    return None


def pasted(setup, code, *, steps, seed=7):
    """The losses of a plain loop with the pasted lines, and the model they made."""
    once, _, each = code.partition(LOOP)
    each = each.partition("\n")[2]
    steppy = any(word in code for word in ("loss.backward()", "(loss + ", "scaler.scale"))
    if steppy and not each:
        once, each = "", code
    needs_optimizer = "param_groups" in once or "LambdaLR" in once
    model = setup.copy().model
    batch = setup.batch()
    rows = [setup.batches(0)] if "x_train" in once else []
    names = {"model": model, "batch": batch, "x": batch[0], "loss_fn": setup.loss_fn}
    if rows:
        names["x_train"] = torch.cat([next(b)[0] for b in rows * 50])
        if names["x_train"].dim() == 3:  # the page's lines are for (samples, features)
            names["x_train"] = names["x_train"].flatten(0, 1)
    with forked(seed):
        if not needs_optimizer:
            exec(once, names)
    names.setdefault("optimizer", setup.make_optimizer(model.parameters()))
    if needs_optimizer:
        exec(once, names)
    start = state(model)
    losses = []
    with forked(0):
        for batch, _ in zip(setup.batches(0), range(steps), strict=False):
            optimizer = names["optimizer"]
            optimizer.zero_grad()
            names["batch"], names["x"] = batch, batch[0]
            names["loss"] = loss = setup.loss_fn(model, batch)
            losses.append(loss.item())
            if each:
                exec(each, names)
            else:
                loss.backward()
                optimizer.step()
            if "scheduler" in names:
                names["scheduler"].step()
    return losses, start, model


@pytest.mark.parametrize(("remedy", "net", "point"), POINTS, ids=IDS)
def test_the_pasted_lines_do_what_the_remedy_does(remedy, net, point):
    setup = zoo.setup_of(net)
    plan = plan_of(setup, remedy, point)
    if plan is None:
        assert net == "functional"  # the advice is a comment: the line in the forward to edit
        return
    arm = applied(setup, remedy, plan.remedies[0].settings)
    losses, start, model = pasted(setup, plan.in_your_code, steps=3)
    if net == "unpadded" and point["over"] == 2:  # no record tells sizes of images: the lines go round other pairs
        assert all(map(math.isfinite, losses))
        return
    made = state(arm.model)
    assert_same(made, start, rtol=1e-5, atol=1e-7)
    loop = Loop(arm, seed=0)
    assert loop.run(3) == pytest.approx(losses, rel=1e-5)
    assert_same(state(arm.model), state(model), rtol=1e-4, atol=1e-6)


TOGETHER = [
    ("sigmoid", [("swap_activation", {"to": "relu"}), ("reinit", {"init": "he"})]),
    ("sigmoid", [("reinit", {"init": "centred_sigmoid"}), ("add_norm", {"norm": "batch"})]),
    ("sigmoid", [("add_norm", {"norm": "layer"}), ("add_shortcut", {"form": "rezero"})]),
    ("sigmoid", [("swap_activation", {"to": "tanh"}), ("add_shortcut", {"form": "highway"})]),
    ("cnn", [("add_norm", {"norm": "batch"}), ("add_shortcut", {"form": "scaled"})]),
    ("relu", [("reinit", {"init": "jacobian"}), ("standardize_input", {}), ("dropout", {"p": 0.2})]),
    ("rnn", [("gate_recurrence", {"to": "gru"}), ("orthogonal_recurrence", {}), ("truncate_bptt", {"steps": 3})]),
    ("rnn", [("gate_recurrence", {"to": "lstm", "chrono": 20}), ("standardize_input", {})]),
]  # fmt: skip


@pytest.mark.parametrize(("net", "parts"), TOGETHER, ids=[f"{net}-{'-'.join(r for r, _ in p)}" for net, p in TOGETHER])
def test_remedies_that_go_together_do_so_in_the_pasted_lines_too(net, parts):
    setup = zoo.setup_of(net)
    plans = [plan_of(setup, remedy, settings) for remedy, settings in parts]
    whole = together(plans, expected="")
    arm = setup.copy()
    with forked(7):
        for remedy in whole.remedies:
            REMEDIES[remedy.id].fact("apply")(arm, **remedy.settings)
    losses, start, model = pasted(setup, whole.in_your_code, steps=3)
    assert_same(state(arm.model), start, rtol=1e-5, atol=1e-6)
    assert Loop(arm, seed=0).run(3) == pytest.approx(losses, rel=1e-5)
    assert_same(state(arm.model), state(model), rtol=1e-4, atol=1e-6)
    assert [name for name, _ in arm.applied] == [name for name, _ in parts]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_what_is_new_is_on_the_device_of_what_is_old():
    for remedy, net, point in POINTS:
        setup = zoo.setup_of(net)
        setup.model.cuda()
        batches = setup.batches
        setup.batches = lambda seed, batches=batches: ((x.cuda(), y.cuda()) for x, y in batches(seed))
        arm = applied(setup, remedy, point)
        assert {t.device.type for t in arm.model.state_dict().values()} == {"cuda"}, (remedy, net, point)
        assert all(torch.tensor(Loop(arm).run(2)).isfinite()), (remedy, net, point)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("remedy", "net", "point"),
    [
        ("swap_activation", "sigmoid", {"to": "prelu"}),
        ("swap_activation", "functional", {"to": "prelu"}),
        ("reinit", "sigmoid", {"init": "orthogonal"}),
        ("add_norm", "sigmoid", {"norm": "batch"}),
        ("add_shortcut", "sigmoid", {"form": "highway"}),
        ("add_shortcut", "sigmoid", {"form": "rezero"}),
        ("scale_residual", "residual", {"learned": True}),
        ("standardize_input", "sigmoid", {}),
        ("gate_recurrence", "rnn", {"to": "gru"}),
        ("auxiliary_loss", "sigmoid", {}),
    ],
)
def test_what_is_new_has_the_dtype_of_what_is_old(remedy, net, point, dtype):
    arm = applied(zoo.setup_of(net, dtype=dtype), remedy, point)
    assert {t.dtype for t in arm.model.state_dict().values() if t.is_floating_point()} == {dtype}
    assert all(torch.tensor(Loop(arm).run(2)).isfinite())
