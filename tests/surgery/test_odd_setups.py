"""Remedies on odd but legal models: the change is right, or it is refused with the reason."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradwell as gw
from gradwell.errors import Refused
from gradwell.shelf import shelf
from gradwell.surgery.blocks import hidden_layers
from gradwell.surgery.loop import Loop
from gradwell.surgery.observe import observe
from gradwell.surgery.reinit import draw
from gradwell.surgery.setup import TrainSetup, forked

_spec = importlib.util.spec_from_file_location(
    "remedies_apply", Path(__file__).parents[1] / "remedies" / "test_apply.py"
)
pasting = sys.modules["remedies_apply"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pasting)

WIDTH, CLASSES, BATCH = 16, 5, 12
REMEDIES = shelf("gradwell.remedies")


def setup_of(model, shape, *, loss=None, tokens=False, groups=1):
    """A training of a model on random classes; tokens end in padding (0) for some samples."""

    def batches(seed):
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            x = 3 + 2 * torch.randn(BATCH, *shape, generator=generator)
            if tokens:
                x = torch.randint(1, 20, (BATCH, *shape), generator=generator)
                x[:3, -2:] = 0
            yield x, torch.randint(CLASSES, (BATCH,), generator=generator)

    def optimizer(params):
        params = list(params)
        if groups == 1:
            return torch.optim.SGD(params, lr=0.05)
        return torch.optim.SGD([{"params": params[:2], "lr": 0.01}, {"params": params[2:]}], lr=0.05)

    return TrainSetup(model, optimizer, loss or pasting.zoo.loss_fn, batches)


def applied(setup, remedy, **settings):
    arm = setup.copy()
    with forked(7):
        REMEDIES[remedy].fact("apply")(arm, **settings)
    return arm


def assert_pasted_is_applied(setup, remedy, **settings):
    plan = pasting.plan_of(setup, remedy, settings)
    arm = pasting.applied(setup, remedy, plan.remedies[0].settings)
    losses, start, _ = pasting.pasted(setup, plan.in_your_code, steps=3)
    pasting.assert_same(pasting.state(arm.model), start, rtol=1e-5, atol=1e-7)
    assert Loop(arm, seed=0).run(3) == pytest.approx(losses, rel=1e-5)


class HeadFirst(nn.Module):
    """The head is built first, and layers and activations stand in lists of their own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in "abc"})
        self.acts = nn.ModuleList(nn.Sigmoid() for _ in range(3))

    def forward(self, x):
        for layer, act in zip(self.layers.values(), self.acts, strict=True):
            x = act(layer(x))
        return self.head(x)


class AnyName(HeadFirst):
    """Has an attribute of any name, and calls its activation as a function."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.sigmoid(layer(x))
        return self.head(x)


class Recomputed(HeadFirst):
    def _part(self, name, x):
        return torch.sigmoid(self.layers[name](x))

    def forward(self, x):
        for name in self.layers:
            x = checkpoint(self._part, name, x, use_reentrant=False)
        return self.head(x)


class TwoHeads(nn.Module):
    """Actor and critic: the actor's tanh is called before the critic's layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.actor, self.squash, self.critic = nn.Linear(WIDTH, CLASSES), nn.Tanh(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.body(x)
        return self.squash(self.actor(x)), self.critic(x)


def both(model, batch):
    return sum(functional.cross_entropy(out, batch[1]) for out in model(batch[0]))


class OwnRNN(nn.RNN):
    def forward(self, x):
        return super().forward(x)[0][:, -1]


class WithState(pasting.zoo.Reader):
    def forward(self, x):
        zeros = x.new_zeros(1, len(x), WIDTH)
        return self.head(self.rnn(x, hx=zeros)[0][:, -1])


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.embed, self.encoder = nn.Embedding(20, WIDTH), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0)[:, 0])


def convolutions(axes):
    layer, pool = getattr(nn, f"Conv{axes}d"), getattr(nn, f"AdaptiveAvgPool{axes}d")
    parts = [layer(1, 8, 3, padding=1), nn.Tanh(), layer(8, 8, 3, padding=1, groups=8), nn.Tanh()]
    parts += [layer(8, 8, 3, padding=1, groups=2), nn.Tanh(), pool(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*parts), (1, *[5] * axes)


@pytest.mark.parametrize("remedy", ["add_norm", "add_shortcut", "reinit", "swap_activation"])
def test_the_pasted_lines_go_by_the_order_of_the_calls(remedy):
    assert_pasted_is_applied(
        setup_of(HeadFirst(), (WIDTH,)), remedy, **({"where": "head"} if remedy == "reinit" else {})
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("remedy", "settings"),
    [
        ("reinit", {"init": "xavier"}),
        ("reinit", {"init": "orthogonal"}),
        ("reinit", {"init": "delta_orthogonal"}),
        ("reinit", {"init": "identity"}),
        ("add_norm", {"norm": "group"}),
        ("standardize_input", {}),
    ],
)
def test_the_pasted_lines_fit_convolutions_of_any_kind(axes, remedy, settings):
    model, shape = convolutions(axes)
    setup = setup_of(model, shape)
    if remedy == "standardize_input" and axes == 1:  # the helper's x_train takes three axes for tokens
        plan = pasting.plan_of(setup, remedy, settings)
        assert "mean((0, 2), keepdim=True)[0]" in plan.in_your_code
        return
    assert_pasted_is_applied(setup, remedy, **settings)


@pytest.mark.parametrize("init", ["xavier", "orthogonal", "delta_orthogonal", "identity"])
def test_each_group_of_a_convolution_is_drawn_as_a_layer_of_its_own(init):
    with forked(0):
        whole = nn.Conv2d(64, 64, 3, groups=64, bias=False)
        draw([whole], init, "tanh")
    per_unit = whole.weight.detach().square().sum((1, 2, 3))
    assert per_unit.mean() == pytest.approx(1.0, rel=0.2)  # xavier over all 64 groups would give 0.03
    assert per_unit.min() > 0


def test_a_highway_gate_sees_all_groups():
    model, shape = convolutions(2)
    assert all(torch.tensor(Loop(applied(setup_of(model, shape), "add_shortcut", form="highway")).run(2)).isfinite())


def test_an_auxiliary_head_fits_the_linear_part_of_a_convolution_net_and_needs_a_middle():
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(100, WIDTH), nn.Tanh()]
    parts += [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)]
    assert_pasted_is_applied(setup_of(nn.Sequential(*parts), (1, 5, 5)), "auxiliary_loss")
    small = setup_of(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, CLASSES)), (WIDTH,))
    with pytest.raises(Refused, match="fewer than three weight layers"):
        applied(small, "auxiliary_loss")


def test_groups_of_the_optimizer_keep_their_rates_apart():
    assert_pasted_is_applied(setup_of(HeadFirst(), (WIDTH,), groups=2), "scale_lr", factor=0.1)


def test_two_outputs_are_no_shortcut_and_both_keep_their_ends():
    setup = setup_of(TwoHeads(), (WIDTH,), loss=both)
    seen = observe(setup)
    assert seen.branches() == []
    assert [call.name for call, _ in hidden_layers(setup, seen)] == ["body.0", "body.2"]
    arm = applied(setup, "swap_activation", to="relu")
    assert [type(m) for m in (arm.model.body[1], arm.model.body[3], arm.model.squash)] == [nn.ReLU, nn.ReLU, nn.Tanh]


def test_a_model_with_an_attribute_of_any_name_is_refused():
    with pytest.raises(Refused, match="an attribute of any name"):
        applied(setup_of(AnyName(), (WIDTH,)), "swap_activation", to="relu")
    with pytest.raises(Refused, match="already exists"):  # torch's own word for it
        applied(setup_of(AnyName(), (WIDTH,)), "standardize_input")


def test_a_function_inside_a_checkpoint_is_refused_before_it_is_recomputed_unchanged():
    with pytest.raises(Refused, match="inside a checkpoint"):
        Loop(applied(setup_of(Recomputed(), (WIDTH,)), "swap_activation", to="tanh")).run(1)


def test_a_shortcut_left_open_by_a_recomputation_can_be_copied():
    arm = applied(setup_of(HeadFirst(), (WIDTH,)), "add_shortcut", form="identity")
    shortcut = next(iter(arm.model.layers["a"]._forward_pre_hooks.values())).__self__
    shortcut._kept = (torch.ones(2, requires_grad=True) * 2, 1.0)
    copied = next(iter(arm.copy().model.layers["a"]._forward_pre_hooks.values())).__self__
    assert copied is not shortcut
    assert copied._kept is None


def test_a_shared_activation_gets_no_hooks_in_the_pasted_lines():
    act = nn.Sigmoid()
    parts = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), act)]
    setup = setup_of(nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES)), (WIDTH,))
    assert pasting.plan_of(setup, "add_shortcut", {}) is None  # a comment: the line in the forward
    with pytest.raises(Refused, match=r"'1' is used several times in one pass"):
        applied(setup, "add_shortcut")


def test_a_recurrent_class_with_a_forward_of_its_own_is_checked_and_refused():
    setup = setup_of(nn.Sequential(OwnRNN(4, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)), (7, 4))
    assert gw.check(setup.model, setup.batch(), setup.loss_fn).profile
    for remedy, settings in (
        ("gate_recurrence", {"to": "gru"}),
        ("truncate_bptt", {"steps": 3}),
        ("temporal_regularizer", {}),
    ):
        with pytest.raises(Refused, match="a forward of its own"):
            applied(setup, remedy, **settings)


@pytest.mark.parametrize(("remedy", "settings"), [("gate_recurrence", {"to": "lstm"}), ("truncate_bptt", {"steps": 3})])
def test_a_state_may_be_handed_over_by_torchs_name(remedy, settings):
    assert_pasted_is_applied(setup_of(WithState(), (7, 4)), remedy, **settings)


@pytest.mark.parametrize(
    ("remedy", "settings"),
    [("swap_activation", {"to": "tanh"}), ("dropout", {}), ("add_norm", {"norm": "rms"}), ("scale_residual", {})],
)
def test_an_edited_encoder_evaluates_masked_batches_as_it_trains(remedy, settings):
    arm = applied(setup_of(Padded(), (7,), tokens=True), remedy, **settings)
    batch = arm.batch()
    arm.model.eval()
    with torch.no_grad():
        loss = arm.loss_fn(arm.model, batch)
    torch.testing.assert_close(loss, arm.loss_fn(arm.model, batch).detach())
