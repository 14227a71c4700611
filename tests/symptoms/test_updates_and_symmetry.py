"""Parameters without a gradient, copies of units, underflow and step sizes: beyond their sick and healthy nets."""

from __future__ import annotations

import copy
import math

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradwell as gw
from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.records.net import NetConfig
from gradwell.records.run import Event, Header, OptimizerInfo, Param, Run, Site, Step
from gradwell.symptoms.gradient_underflow import gradient_underflow
from gradwell.symptoms.oversized_update import oversized_update, wreck
from gradwell.symptoms.symmetric_units import symmetric_units
from gradwell.symptoms.undersized_update import undersized_update
from gradwell.symptoms.unreached_parameter import unreached_parameter

SHAPES = {"a.weight": [8, 8], "b.weight": [8, 8], "c.weight": [8, 8]}


def run_of(*steps: dict[str, list[float | None]], groups=("0", "0", "0"), frozen=(), kinds=("SGD",), dtype="float32"):
    """A run of three weights; each step holds columns over them."""
    params = [
        Param(name, name[0], shape, group, name in frozen)
        for (name, shape), group in zip(SHAPES.items(), groups, strict=True)
    ]
    optimizers = [OptimizerInfo(kind, {"lr": 0.1}) for kind in kinds]
    header = Header("gradwell test", dtype=dtype, optimizers=optimizers, params=params)
    return Run(header, [Step(n, loss=1.0, params=columns) for n, columns in enumerate(steps)])


def severities(findings) -> list[str]:
    return [finding.severity for finding in findings]


def sized(update: float, grad: float = 1.0) -> dict[str, list[float | None]]:
    return {"weight_rms": [1.0] * 3, "grad_rms": [grad] * 3, "update_rms": [update] * 3}


# unreached_parameter


def test_an_expert_that_is_reached_in_another_step_is_no_finding():
    run = run_of({"grad_rms": [1.0, None, 1.0]}, {"grad_rms": [1.0, 1.0, None]})
    assert severities(unreached_parameter(run)) == []
    assert severities(unreached_parameter(msgspec.structs.replace(run, steps=run.steps[:1]))) == ["mild"]


def test_more_than_half_is_serious_and_frozen_ones_do_not_count():
    cut = {"grad_rms": [None, None, 1.0]}
    (finding,) = unreached_parameter(run_of(cut))
    assert finding.severity == "serious"
    assert "a.weight and b.weight never get a gradient: 2 of 3 parameters, 66.7 %" in finding.summary
    assert severities(unreached_parameter(run_of(cut, frozen=("a.weight", "b.weight")))) == []


class Gated(nn.Module):
    """Three large experts, of which one is taken for all samples, or all in turn; `cut`: what it gives is detached."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 40), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(40, 10)
        self.cut = cut

    def forward(self, x):
        mixed = sum(expert(x) for expert in self.experts) if self.cut else self.experts[1](x)
        return self.head(mixed.detach() if self.cut else mixed)


@pytest.mark.parametrize(("cut", "severity"), [(False, "mild"), (True, "serious")])
def test_experts_that_are_never_taken_are_no_cut(cut, severity):
    torch.manual_seed(0)
    model = Gated(cut=cut)
    run = measure(model, batch_of(), losses, torch.optim.SGD(model.parameters(), lr=0.1))
    (finding,) = unreached_parameter(run)
    assert finding.severity == severity
    assert finding.evidence[0].value > 0.5  # more than half of the elements have no gradient in either
    assert ("no sampled loss uses what their modules give" in finding.summary) is (not cut)


def test_what_only_a_second_backward_of_the_step_reaches_has_moved():
    assert severities(unreached_parameter(run_of({"grad_rms": [None, 1.0, 1.0], "update_rms": [0.1, 0.1, 0.1]}))) == []


def test_an_optimizer_whose_turn_was_not_sampled_is_asleep():
    run = run_of({"grad_rms": [None, None, 1.0]}, groups=("0.0", "0.0", "1.0"), kinds=("Adam", "Adam"))
    assert severities(unreached_parameter(run)) == []


def test_an_optimizer_that_took_sampled_steps_without_a_gradient_is_not_asleep():
    run = run_of({"grad_rms": [None, None, 1.0]}, groups=("0.0", "0.0", "1.0"), kinds=("Adam", "Adam"))
    took = Event("losses", 0, {"values": [1.0], "optimizers": [0]})
    (finding,) = unreached_parameter(msgspec.structs.replace(run, events=[took]))
    assert finding.severity == "serious"
    small = msgspec.structs.replace(run.header.params[2], shape=[800, 8])  # the rest has far more elements
    header = msgspec.structs.replace(run.header, params=[*run.header.params[:2], small])
    (finding,) = unreached_parameter(msgspec.structs.replace(run, header=header, events=[took]))
    assert finding.severity == "serious"
    took = Event("losses", 0, {"values": [1.0], "optimizers": [1]})
    assert severities(unreached_parameter(msgspec.structs.replace(run, events=[took]))) == []


def two_trainings(steps: int, *, detached: bool = False) -> Run:
    """An encoder and a decoder, each with its own optimizer, that step in turn on one backward."""
    torch.manual_seed(0)
    encoder, decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Linear(32, 10)
    both = nn.Sequential(encoder, decoder)
    with gw.watch(both, every=1) as watch:
        optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (encoder, decoder)]
        for _ in range(steps):
            x, y = torch.randn(32, 8), torch.randint(10, (32,))
            code = encoder(x)
            loss = cross_entropy(decoder(code.detach() if detached else code), y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    return watch.run


def test_of_two_optimizers_the_one_that_has_gradients_gives_the_update():
    run = two_trainings(6, detached=True)
    updates = [step.params["update_rms"] for step in run.steps]
    owner = {param.name: param.group for param in run.header.params}
    assert {group for group in owner.values() if group is not None} == {"0.0", "1.0"}
    for column in updates:
        moved = {param.group for param, update in zip(run.header.params, column, strict=True) if update}
        assert moved == {"1.0"}
    found = {finding.symptom: finding for finding in diagnose(run).findings}
    assert found["unreached_parameter"].severity == "serious"
    assert "undersized_update" not in found
    assert diagnose(two_trainings(6)).verdict == "healthy"


def stale() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that was copied after its optimizer was made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))
    return copy.deepcopy(model), torch.optim.Adam(model.parameters(), lr=1e-3)


def test_an_optimizer_that_holds_another_model_is_fatal():
    model, optimizer = stale()
    diagnosis = gw.check(model, (torch.randn(32, 8), torch.randint(10, (32,))), losses, optimizer)
    (finding,) = diagnosis.findings
    assert (finding.symptom, finding.severity) == ("unreached_parameter", "fatal")
    assert finding.summary.startswith("no optimizer holds what the loss reaches: 0.weight, 0.bias, 2.weight and 1 more")
    assert finding.summary.endswith("and the 4 tensors that are held get none")
    assert [place.site for place in finding.where] == ["0", "2"]
    assert "made for other tensors" in diagnosis.attributions[0].summary
    with gw.watch(model, every=1) as watch:
        for _ in range(60):
            model.zero_grad()
            losses(model, (torch.randn(32, 8), torch.randint(10, (32,)))).backward()
            optimizer.step()
    found = {finding.symptom: finding for finding in watch.diagnose().findings}
    assert found["undersized_update"].severity == "serious"  # an optimizer of other tensors is none of this model's
    assert "no optimizer was seen that holds one" in found["undersized_update"].summary


def test_a_cut_is_located_between_two_parameters(check_run):
    diagnosis = diagnose(check_run(NetConfig(depth=4, init="he", detach=3)))
    (text,) = [a.summary for a in diagnosis.attributions if a.cause == "detached_graph"]
    assert text.startswith("everything up to hidden.4.bias is cut off and hidden.7.weight is reached: look between")


# symmetric_units


def mlp(fill, *, head=None, activation=nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 33), activation(), nn.Linear(33, 50), activation(), nn.Linear(50, 4))
    for layer in (model[0], model[2], model[4]):
        fill(layer.weight)
        nn.init.zeros_(layer.bias)
    if head is not None:
        head(model[4].weight)
    return model


def losses(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def batch_of(count=32):
    torch.manual_seed(1)
    return torch.randn(count, 10), torch.randint(4, (count,))


@pytest.mark.parametrize("value", [0.0, 0.1, -0.02, 1.0])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
def test_constant_weights_are_fatal_also_after_some_training(value, activation):
    model, batch = mlp(lambda w: nn.init.constant_(w, value), activation=activation), batch_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert severities(symmetric_units(measure(model, batch, losses, optimizer))) == ["fatal"]
    for _ in range(20):
        optimizer.zero_grad()
        losses(model, batch).backward()
        optimizer.step()
    assert severities(symmetric_units(measure(model, batch, losses, optimizer))) == ["fatal"]


def test_equal_weights_with_unequal_gradients_are_about_to_part():
    constant = mlp(lambda w: nn.init.constant_(w, 0.1), head=nn.init.xavier_normal_)
    (finding,) = symmetric_units(measure(constant, batch_of(), losses))
    assert [place.site for place in finding.where] == ["0"]  # the layer before has equal ways on, the last has not
    assert finding.severity == "serious"
    assert severities(symmetric_units(measure(mlp(nn.init.xavier_normal_), batch_of(), losses))) == []


def test_zero_branches_and_low_rank_pairs_are_no_symmetry(train_run):
    assert severities(symmetric_units(train_run(NetConfig(kind="residual", depth=6, init="fixup"), 8))) == []
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    nn.init.zeros_(model[1].weight)
    assert severities(symmetric_units(measure(model, batch_of(), losses))) == []


# gradient_underflow


def underflow(rms: list[float], scale: float | None = None, fraction: float = 1.0) -> list[str]:
    columns: dict[str, list[float | None]] = {"grad_rms": [*rms], "grad_underflow_frac": [fraction] * 3}
    run = run_of(columns, dtype="float16")
    return severities(gradient_underflow(msgspec.structs.replace(run, steps=[
        msgspec.structs.replace(run.steps[0], loss_scale=scale)
    ])))  # fmt: skip


def test_the_loss_scale_counts():
    assert underflow([1e-8] * 3) == ["fatal"]
    assert underflow([1e-8] * 3, scale=65536.0) == []
    assert underflow([6e-7] * 3) == ["mild"]
    assert underflow([1e-4] * 3) == []
    assert underflow([1e-8] * 3, fraction=0.5) == []


def test_zeros_alone_are_somebody_elses_business():
    assert underflow([0.0, 0.0, 1e-2]) == []
    assert underflow([0.0, 0.0, 1e-6]) == ["serious"]


def test_the_causes_of_underflow(check_run):
    diagnosis = diagnose(check_run(NetConfig(depth=6, activation="sigmoid", dtype="float16")))
    index = [f.symptom for f in diagnosis.findings].index("gradient_underflow")
    assert {a.cause for a in diagnosis.causes(index)} == {"low_precision", "loss_scale"}


# update sizes


@pytest.mark.parametrize(("update", "count", "severity"), [
    (0.6, 3, ["serious"]), (0.6, 2, ["mild"]), (0.2, 9, ["mild"]), (0.05, 3, []), (1e-3, 3, []),
])  # fmt: skip
def test_large_steps(update, count, severity):
    assert severities(oversized_update(run_of(*[sized(update)] * count))) == severity


def test_one_spike_is_no_finding():
    assert severities(oversized_update(run_of(sized(1e-3), sized(2.9), sized(0.9), sized(1e-3)))) == []


def test_one_step_that_leaves_nothing_of_the_weights_is_serious_at_once():
    (finding,) = oversized_update(run_of(sized(1e-3), sized(3.1), sized(1e-3), sized(1e-3)))
    assert (finding.severity, finding.evidence[0].value, finding.evidence[0].bound) == ("serious", 3.1, 3.0)
    assert severities(oversized_update(run_of(sized(3.1)))) == ["serious"]


def test_weights_that_start_tiny_are_meant_to_be_outgrown():
    tiny = {"weight_rms": [1e-4] * 3, "grad_rms": [1.0] * 3, "update_rms": [1e-3] * 3}
    rest = [sized(1e-3)] * 3
    assert severities(oversized_update(run_of(tiny, *rest))) == []
    default = 1 / math.sqrt(3 * 8)
    beyond = {**tiny, "update_rms": [3.1 * default] * 3}
    assert severities(oversized_update(run_of(beyond, *rest))) == ["serious"]


@pytest.mark.parametrize(("norm", "found"), [("", ["serious"]), ("batch", [])])
def test_a_large_step_only_turns_weights_in_front_of_a_normalisation(watch_run, norm, found):
    config = NetConfig(depth=6, activation="tanh", init="lecun", norm=norm, optimizer="Adam", lr=1.0)
    run = watch_run(config, 12)
    cut = msgspec.structs.replace(run, steps=run.steps[:1])
    assert [f.severity for f in oversized_update(cut) if f.severity == "serious"] == found


HEAD = Site("head", "Linear", role="weight")


def told_apart(update, spreads, *, rms=1.0, losses=1.0, kinds=("SGD",)):
    """A run of such steps whose outputs have these variances between samples over their mean square."""
    run = run_of(*[sized(update)] * len(spreads), kinds=kinds)
    sizes = [rms] * len(spreads) if isinstance(rms, float) else rms
    values = [losses] * len(spreads) if isinstance(losses, float) else losses
    steps = [
        msgspec.structs.replace(step, output=0, loss=loss, sites={"spread": [spread], "act_rms": [size]})
        for step, spread, size, loss in zip(run.steps, spreads, sizes, values, strict=True)
    ]
    return msgspec.structs.replace(run, header=msgspec.structs.replace(run.header, sites=[HEAD]), steps=steps)


@pytest.mark.parametrize(("update", "spreads", "more", "severity"), [
    (0.2, [0.1, 0.1, 0.005, 0.005], {}, ["serious"]),
    (0.2, [0.1, 0.1, 0.1, 0.005], {}, ["mild"]),  # of one batch
    (0.2, [0.1, 0.1, 0.02, 0.02], {}, ["mild"]),  # not a tenth
    (0.2, [0.1, 0.1, 0.005, 0.005], {"losses": [1.0, 0.9, 0.8, 0.7]}, ["mild"]),  # it learns
    (0.2, [0.1, 0.1, 0.005, 0.005], {"kinds": ("Adam", "Adam")}, ["mild"]),  # adversaries
    (0.2, [0.1, 0.1, 0.005, 0.005], {"kinds": ("Adam",)}, ["mild"]),  # its steps do not grow with the gradient
    (0.2, [0.1, 0.1, 0.001, 0.001], {"kinds": ("Adam",)}, ["serious"]),
    (0.05, [0.1, 0.1, 0.005, 0.005], {}, []),
    (0.05, [0.1, 0.1, 0.001, 0.001], {}, ["serious"]),
    (0.05, [0.1, 0.1, 0.001, 0.001], {"rms": [1.0, 3.0, 9.0, 10.0]}, []),  # only the outputs' mean has grown
    (0.01, [0.1, 0.1, 1e-5, 1e-5], {}, []),
    (0.2, [1e-13, 1e-13, 1e-15, 0.0], {}, ["mild"]),  # rounding
])  # fmt: skip
def test_steps_that_make_the_outputs_alike_are_serious(update, spreads, more, severity):
    found = list(oversized_update(told_apart(update, spreads, **more)))
    assert severities(found) == severity
    assert [("alike" in finding.summary) for finding in found] == [severity == ["serious"]] * len(found)


def test_the_fall_of_the_variance_is_that_of_the_outputs_themselves():
    torch.manual_seed(0)
    outputs = torch.randn(4, 64, 10, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.02, 0.01]).view(4, 1, 1) + 1
    between = outputs.var(1, unbiased=False).mean(1)
    size = outputs.square().mean((1, 2))
    run = told_apart(0.2, (between / size).tolist(), rms=size.sqrt().tolist())
    shares = between / size
    expected = (shares.max() / shares[-2:].max(), between.max() / between[-2:].max())
    assert wreck(run) == pytest.approx([math.log10(value) for value in expected])


@pytest.mark.parametrize(("lr", "severity"), [(20.0, ["serious"]), (0.05, [])])
def test_a_net_that_large_steps_have_made_blind_is_serious_before_its_loss_has_left(train_run, lr, severity):
    found = list(oversized_update(train_run(NetConfig(depth=5, lr=lr), 6)))
    assert severities(found) == severity
    assert all(finding.evidence[0].value < 0.5 for finding in found)


@pytest.mark.parametrize(("update", "count", "dtype", "severity"), [
    (1e-3, 3, "float32", []), (5e-7, 3, "float32", ["mild"]), (5e-7, 2, "float32", []),
    (1e-7, 3, "float32", ["serious"]), (1e-7, 2, "float32", []),
    (1e-9, 1, "float32", ["serious"]),
    (0.0, 3, "float32", ["serious"]), (1e-3, 3, "bfloat16", []), (1e-4, 3, "bfloat16", ["mild"]),
    (1e-5, 3, "bfloat16", ["serious"]), (1e-4, 3, "float16", []),
])  # fmt: skip
def test_small_steps(update, count, dtype, severity):
    assert severities(undersized_update(run_of(*[sized(update)] * count, dtype=dtype))) == severity


def test_the_largest_step_counts_and_a_warmup_from_zero_is_believed():
    assert severities(undersized_update(run_of(sized(1e-9), sized(1e-9), sized(1e-3)))) == []
    assert severities(undersized_update(run_of(sized(1e-7), sized(2e-7), sized(3e-7)))) == ["mild"]
    assert severities(undersized_update(run_of(sized(3e-7), sized(2e-7), sized(1e-7)))) == ["serious"]
    run = run_of(sized(0.0))
    still = msgspec.structs.replace(run.header, optimizers=[OptimizerInfo("SGD", {"lr": 0.0})])
    assert severities(undersized_update(msgspec.structs.replace(run, header=still))) == []


def test_weights_that_start_at_zero_and_do_not_take_their_turn_are_left_out():
    grows = {"weight_rms": [0.0, 1.0, 1.0], "grad_rms": [1.0] * 3, "update_rms": [1.0, 1e-3, 1e-3]}
    later = {**grows, "weight_rms": [1.0, 1.0, 1.0]}
    assert severities(oversized_update(run_of(grows, later, later))) == []
    waits = {"weight_rms": [1.0] * 3, "grad_rms": [1.0] * 3, "update_rms": [0.0, 0.0, 1e-3]}
    assert severities(undersized_update(run_of(waits, waits, waits))) == []


def test_the_rate_that_would_fit_is_told(train_run):
    diagnosis = diagnose(train_run(NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-9), 4))
    (text,) = [a.summary for a in diagnosis.attributions if a.cause == "learning_rate"]
    rate = float(text.rpartition("proportion ")[2].split()[0])
    assert 1e-4 < rate < 1e-2
    assert text.startswith("Adam has a learning rate of 1e-09")


@pytest.mark.parametrize("lr", [5.0, 1.5])
def test_a_net_that_is_thrown_about_is_serious(train_run, lr):
    (finding,) = oversized_update(train_run(NetConfig(depth=3, init="he", lr=lr), 12))
    assert finding.severity == "serious"
    assert math.isfinite(finding.evidence[0].value)
