"""Norms, shortcuts, scales, inputs and activations: what comes out, by formula, on modules and on functions alike."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradwell as gw
from gradwell.errors import Refused
from gradwell.shelf import shelf
from gradwell.surgery.activations import ACTIVATIONS
from gradwell.surgery.blocks import groups
from gradwell.surgery.observe import observe
from gradwell.surgery.setup import forked

N = 12


def mse(model, batch):
    return (model(batch) ** 2).mean()


def data(*shape):
    return lambda seed: iter([torch.randn(8, *shape, generator=torch.Generator().manual_seed(seed))])


def setup(model, shape=(N,), loss_fn=mse):
    return gw.TrainSetup(model, lambda params: torch.optim.SGD(params, lr=0.1), loss_fn, data(*shape))


def changed(model, remedy, shape=(N,), loss_fn=mse, **settings):
    arm = setup(model, shape, loss_fn).copy()
    with forked(0):
        shelf("gradwell.remedies")[remedy].fact("apply")(arm, **settings)
    return arm


def refusal(model, remedy, shape=(N,), loss_fn=mse, **settings):
    with pytest.raises(Refused) as told:
        changed(model, remedy, shape, loss_fn, **settings)
    return str(told.value)


def chain(activation=nn.Sigmoid, depth=3):
    torch.manual_seed(0)
    parts = []
    for _ in range(depth):
        parts += [nn.Linear(N, N), activation()]
    return nn.Sequential(*parts, nn.Linear(N, 4))


class Gated(nn.Module):
    """Sigmoids as activations, as a gate and as the output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, 4)
        self.act = nn.Sigmoid()

    def forward(self, x):
        x = self.act(self.a(x))
        x = x * torch.sigmoid(self.b(x))
        return self.c(x).sigmoid()


class Functional(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(N, N), nn.Linear(N, N), nn.Linear(N, 4)
        self.inplace = inplace

    def forward(self, x):
        x = functional.relu(self.fc1(x), inplace=self.inplace)
        h = self.fc2(x)
        torch.relu_(h) if self.inplace else None
        return self.out(h if self.inplace else h.relu())


X = torch.randn(5, N, generator=torch.Generator().manual_seed(1))


# activations


@pytest.mark.parametrize("to", [name for name in ACTIVATIONS if name not in {"relu", "maxout"}])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_functional_activation_becomes_any_other(to, inplace):
    model = Functional(inplace)
    arm = changed(model, "swap_activation", to=to)
    phi = ACTIVATIONS[to]()
    want = model.out(phi(model.fc2(phi(model.fc1(X)))))
    torch.testing.assert_close(arm.model(X), want)
    torch.testing.assert_close(copy.deepcopy(arm.model)(X), want)
    arm.model(X).sum().backward()
    assert arm.model.fc1.weight.grad.isfinite().all()


def test_gates_and_outputs_stay_and_each_activation_is_told_from_the_others():
    arm = changed(Gated(), "swap_activation", to="tanh")
    model = arm.model
    x = model.a(X).tanh()
    want = model.c(x * model.b(x).sigmoid()).sigmoid()
    torch.testing.assert_close(model(X), want)
    assert isinstance(model.act, nn.Tanh)


def test_a_shared_activation_is_swapped_wherever_it_is_held():
    act = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(N, N), act, nn.Linear(N, N), act, nn.Linear(N, 4))
    model.kept = [act]  # a plain list, which no module knows of
    arm = changed(model, "swap_activation", to="prelu")
    assert arm.model[1] is arm.model[3] is arm.model.kept[0]
    assert isinstance(arm.model[1], nn.PReLU)
    assert arm.grown == {"1.weight": "0.weight"}
    assert isinstance(model[1], nn.Sigmoid)


def test_hooks_of_the_user_stay_on_what_is_swapped():
    model = chain()
    seen = []
    model[1].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    changed(model, "swap_activation", to="relu").model(X)
    assert seen[-1] == "ReLU"


def test_swaps_that_would_be_wrong_are_refused():
    assert "is sigmoid already" in refusal(chain(), "swap_activation", to="sigmoid")
    assert "halves the units" in refusal(chain(), "swap_activation", to="maxout")
    assert "No activation stands" in refusal(nn.Linear(N, 4), "swap_activation", to="relu")
    act = nn.Sigmoid()
    both = nn.Sequential(nn.Linear(N, N), act, nn.Linear(N, 4), act)
    assert "serves hidden layers and the output" in refusal(both, "swap_activation", to="relu")


def test_a_squashed_output_comes_off_only_before_a_loss_that_contains_it():
    def ce(model, batch):
        return functional.cross_entropy(model(batch), torch.zeros(len(batch), dtype=torch.long))

    model = nn.Sequential(*chain(), nn.Sigmoid())
    assert "The loss wants what sigmoid gives" in refusal(model, "swap_activation", to="identity", where="output")
    arm = changed(model, "swap_activation", loss_fn=ce, to="identity", where="output")
    torch.testing.assert_close(arm.model(X), model[:-1](X))
    assert "gets logits already" in refusal(chain(), "swap_activation", loss_fn=ce, where="output")


# norms


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "group"])
def test_a_norm_stands_behind_each_hidden_layer_by_its_formula(norm):
    model = chain(nn.Tanh)
    arm = changed(model, "add_norm", norm=norm)

    def by_hand(h):
        if norm == "batch":
            return (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        if norm == "layer":
            return (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        if norm == "rms":
            return h / (h.square().mean(1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()
        g = h.view(len(h), groups(N), -1)
        return ((g - g.mean(2, keepdim=True)) / (g.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()).view_as(h)

    h = X
    for number in (0, 2, 4):
        h = torch.tanh(by_hand(model[number](h)))
    torch.testing.assert_close(arm.model(X), model[6](h), rtol=1e-4, atol=1e-5)
    assert arm.grown["0.norm.weight"] == "0.weight"
    assert not any(name.startswith("6.norm") for name in arm.model.state_dict())


def test_norms_stand_where_they_may_and_nowhere_else():
    tokens = (5, N)
    assert "here are tokens" in refusal(chain(), "add_norm", tokens, norm="batch")
    assert "here are tokens" in refusal(chain(), "add_norm", tokens, norm="group")
    assert "take group" in refusal(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), "add_norm", (1, 8, 8), norm="rms"
    )
    normed = nn.Sequential(nn.Linear(N, N), nn.LayerNorm(N), nn.ReLU(), nn.Linear(N, 4))
    assert "nothing to add" in refusal(normed, "add_norm", norm="layer")
    few = setup(chain())
    few.batches = lambda seed: iter([torch.randn(2, N)])
    with pytest.raises(Refused, match="more than 3 samples"):
        shelf("gradwell.remedies")["add_norm"].fact("apply")(few, norm="batch")
    for norm in ("layer", "rms"):
        assert changed(chain(), "add_norm", tokens, norm=norm).model(torch.randn(2, *tokens)).isfinite().all()


# shortcuts


def test_shortcuts_by_formula_over_one_layer_and_over_two():
    model = chain(depth=4)
    with torch.no_grad():
        one = two = X
        for number in (0, 2, 4, 6):
            one = one + torch.sigmoid(model[number](one))
        for number in (0, 4):
            two = two + model[number : number + 4](two)
        scaled = X
        for number in (0, 2, 4, 6):
            scaled = scaled + 0.5 * torch.sigmoid(model[number](scaled))  # 1 / sqrt(4)
    torch.testing.assert_close(changed(model, "add_shortcut", form="identity").model(X), model[8](one))
    torch.testing.assert_close(changed(model, "add_shortcut", form="identity", over=2).model(X), model[8](two))
    torch.testing.assert_close(changed(model, "add_shortcut", form="scaled").model(X), model[8](scaled))


def test_rezero_is_the_identity_at_the_start_and_learns_its_factors():
    arm = changed(chain(), "add_shortcut", form="rezero")
    torch.testing.assert_close(arm.model(X), arm.model[6](X))
    assert [p.item() for name, p in arm.model.named_parameters() if "shortcut_scale" in name] == [0, 0, 0]
    arm.model(X).square().mean().backward()
    assert arm.model[0].shortcut_scale.grad.abs() > 0
    assert not arm.model[0].weight.grad.any()  # the first step moves the factors and the head alone


def test_a_highway_carries_88_percent_at_the_start():
    model = chain()
    arm = changed(model, "add_shortcut", form="highway")
    x = X
    for number in (0, 2, 4):
        gate = arm.model[number].gate
        assert (gate.bias == -2).all()
        t = torch.sigmoid(gate(x))
        x = torch.sigmoid(model[number](x)) * t + x * (1 - t)
    torch.testing.assert_close(arm.model(X), model[6](x))
    assert torch.sigmoid(torch.tensor(-2.0)).item() == pytest.approx(0.12, abs=0.001)


def test_shortcuts_bring_the_decades_back():
    model = chain(depth=12)
    for settings in ({"form": "identity"}, {"form": "rezero"}, {"form": "highway"}, {"form": "scaled"}):
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        model(x).sum().backward()
        changed(model, "add_shortcut", **settings).model(y).sum().backward()
        assert y.grad.norm() > 1e3 * x.grad.norm()


def test_shortcuts_around_functions_leave_every_name():
    model = Functional()
    arm = changed(model, "add_shortcut", form="identity")
    h = X + functional.relu(model.fc1(X))
    h = h + functional.relu(model.fc2(h))
    torch.testing.assert_close(arm.model(X), model.out(h))
    assert list(arm.model.state_dict()) == list(model.state_dict())


class Block(nn.Module):
    def __init__(self, swapped):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N))
        self.swapped = swapped

    def forward(self, x):
        return self.fc(x) + x if self.swapped else x + self.fc(x)


def test_branches_are_told_from_trunks_and_scaled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, N), *[Block(i % 2 == 0) for i in range(4)], nn.Linear(N, 4))
    arm = changed(model, "scale_residual")
    x = model[0](X)
    for block in model[1:-1]:
        x = x + 0.5 * block.fc(x)
    torch.testing.assert_close(arm.model(X), model[-1](x))
    learned = changed(model, "scale_residual", scale=0.0, learned=True)
    torch.testing.assert_close(learned.model(X), model[-1](model[0](X)))
    assert learned.grown["1.fc.2.branch_scale"] == "1.fc.2.weight"
    assert "shortcuts already" in refusal(model, "add_shortcut")
    assert "no shortcuts" in refusal(chain(), "scale_residual")


def test_a_projection_beside_a_branch_is_the_trunk():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, 6))
            self.down, self.head = nn.Linear(N, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(torch.relu(self.body(x) + self.down(x)))

    model = nn.Sequential(nn.Linear(N, N), Down())
    (branch,) = observe(setup(model)).branches()
    assert branch.end.name == "1.body.2"


# inputs


@pytest.mark.parametrize(("shape", "axes"), [((N,), (0,)), ((7, N), (0, 1)), ((3, 6, 5), (0, 2, 3))])
@pytest.mark.parametrize("per", ["feature", "all"])
def test_inputs_are_standardized_per_feature_or_channel(shape, axes, per):
    model = nn.Conv2d(3, 3, 1) if len(shape) == 3 else nn.Linear(N, 4)
    whole = 5 + torch.randn(200, *shape) * torch.linspace(1, 9, shape[-1])
    arm = setup(model, shape).copy()
    arm.batches = lambda seed: iter(whole.split(10))
    shelf("gradwell.remedies")["standardize_input"].fact("apply")(arm, per=per)
    mean = whole.mean(axes, keepdim=True)
    std = whole.std(axes, keepdim=True) if per == "feature" else (whole - mean).std()
    torch.testing.assert_close(arm.model(whole), model((whole - mean) / std), rtol=1e-4, atol=1e-4)
    assert {"input_mean", "input_std"} <= set(arm.model.state_dict())
    with pytest.raises(Refused, match="standardized already"):
        shelf("gradwell.remedies")["standardize_input"].fact("apply")(arm)


def test_tokens_and_losses_that_pass_the_model_by_are_refused():
    model = nn.Sequential(nn.Embedding(9, N), nn.Linear(N, 4))
    arm = setup(model)
    arm.batches = lambda seed: iter([torch.randint(9, (4, 3))])
    with pytest.raises(Refused, match="no tensor of real numbers"):
        shelf("gradwell.remedies")["standardize_input"].fact("apply")(arm)
    assert "does not call the model itself" in refusal(
        chain(), "standardize_input", loss_fn=lambda model, batch: model[0](batch).sum()
    )


# who may not be edited at all


@pytest.mark.parametrize("remedy", ["reinit", "swap_activation", "add_norm", "clip_norm"])
def test_wrapped_scripted_and_compiled_models_are_refused(remedy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(chain())
        compiled = [torch.compile(chain(), backend="eager") for _ in range(2)]
    for model, reason in [
        (nn.DataParallel(chain()), "wrapped in DataParallel"),
        (compiled[0], "wrapped in OptimizedModule"),
        (nn.Sequential(compiled[1]), "'0' is wrapped in OptimizedModule"),
        (scripted, "scripted module"),
    ]:
        arm = setup(chain())
        arm.model = model
        with pytest.raises(Refused, match=reason):
            shelf("gradwell.remedies")[remedy].fact("apply")(arm)


def test_a_net_inside_the_loss_is_not_the_patient():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    arm = changed(chain(), "swap_activation", loss_fn=lambda model, batch: teacher(model(batch)).mean(), to="relu")
    assert sum(isinstance(m, nn.ReLU) for m in arm.model) == 3
    assert sum(isinstance(m, nn.Tanh) for m in teacher) == 2
