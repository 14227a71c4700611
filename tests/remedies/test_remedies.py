"""Every remedy is a page with code that compiles, and speaks of what the contract names."""

import inspect

import pytest
import torch
from torch import nn

from gradwell.records.run import Header, OptimizerInfo, Run, Site, Step
from gradwell.records.verdict import Attribution, Evidence, Finding, Where
from gradwell.remedies._advice import prescribe
from gradwell.remedies._case import Treats
from gradwell.shelf import shelf

HEADINGS = ["What it does", "In your code", "What it costs", "When it fails", "Source"]
REMEDIES = [
    "swap_activation", "reinit", "add_norm", "add_shortcut", "scale_residual",
    "clip_norm", "clip_value", "adaptive_clip", "sign_update", "switch_optimizer",
    "scale_lr", "warmup", "weight_decay", "dropout", "gate_recurrence",
    "orthogonal_recurrence", "truncate_bptt", "temporal_regularizer", "auxiliary_loss", "standardize_input",
    "loss_scaling", "skip_bad_batch",
]  # fmt: skip
SYMPTOMS = [
    "vanishing_gradient", "exploding_gradient", "vanishing_through_time", "exploding_through_time", "nonfinite_value",
    "dead_units", "saturated_units", "saturated_output", "symmetric_units", "rank_collapse",
    "unreached_parameter", "oversized_update", "undersized_update", "gradient_underflow", "slow_loss",
    "loss_plateau", "oscillating_loss", "loss_spike", "diverging_loss",
]  # fmt: skip
CAUSES = [
    "activation_slope", "weight_gain", "normalization_gain", "between_modules", "other_layers",
    "unexplained", "depth_without_shortcut", "shortcut_growth", "long_unroll", "learning_rate",
    "input_scale", "loss_scale", "low_precision", "symmetric_init", "detached_graph",
    "bad_batch",
]  # fmt: skip


# a run as probe would record it, for a net that is a list of (kind, role)


def run_of(model, *, optimizer="SGD", lr=0.05, grad_norm=1.0):
    sites = [
        Site(name, type(m).__name__, order=i, role=role_of(m), source=f"train.py:{10 + i}")
        for i, (name, m) in enumerate((n, m) for n, m in model.named_modules() if not list(m.children()))
    ]
    header = Header("gradwell test", sites=sites, optimizers=[OptimizerInfo(optimizer, {"lr": lr})])
    return Run(header, [Step(0, loss=2.3, grad_norm=grad_norm)])


def role_of(module):
    name = type(module).__name__
    if name in {"Linear", "Conv2d"}:
        return "weight"
    if "Norm" in name:
        return "norm"
    return "activation" if name in {"Sigmoid", "ReLU", "Tanh", "GELU", "SiLU", "Hardsigmoid"} else "other"


def finding(symptom, severity="serious", *evidence):
    return Finding(symptom, severity, [Where("0", "Linear", "train.py:10")], 0, 0, list(evidence), "")


def causes(*conditions, index=0, **decades):
    total = sum(decades.values())
    shares = [Attribution(index, name, "share", value, value / total, "") for name, value in decades.items()]
    return [*shares, *(Attribution(index, name, "condition", None, None, "") for name in conditions)]


def chain(depth, activation, *, norm=None, width=32):
    parts = []
    for _ in range(depth):
        parts += [nn.Linear(width, width), *([norm(width)] if norm else []), activation()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def advice(model, symptom, *conditions, severity="serious", evidence=(), lr=0.05, optimizer="SGD", **decades):
    run = run_of(model, lr=lr, optimizer=optimizer)
    return prescribe(run, [finding(symptom, severity, *evidence)], causes(*conditions, **decades))


def ids(prescriptions):
    return [[remedy.id for remedy in p.remedies] for p in prescriptions]


# the shelf


def test_the_shelf_holds_the_remedies_of_the_contract():
    assert sorted(shelf("gradwell.remedies")) == sorted(REMEDIES)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_the_page_has_its_headings_and_names_of_the_contract(remedy):
    entry = shelf("gradwell.remedies")[remedy]
    assert list(entry.page.blocks) == HEADINGS
    assert all(entry.page.blocks.values())
    treats = entry.fact("TREATS")
    assert treats
    for item in treats:
        assert isinstance(item, Treats)
        assert item.symptom in SYMPTOMS
        assert item.cause in ["", *CAUSES]
        assert item.rank >= 1
    assert len({(t.symptom, t.cause) for t in treats}) == len(treats)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_the_code_of_the_page_compiles(remedy):
    compile(shelf("gradwell.remedies")[remedy].page.blocks["In your code"], remedy, "exec")


def test_remedies_need_no_torch_to_load():
    for entry in shelf("gradwell.remedies").values():
        assert not hasattr(entry.module, "torch")


NETS = {
    "relu": chain(4, nn.ReLU),
    "sigmoid": nn.Sequential(*chain(4, nn.Sigmoid), nn.Sigmoid()),
    "tanh_batchnorm": chain(4, nn.Tanh, norm=nn.BatchNorm1d),
    "gelu_layernorm": chain(4, nn.GELU, norm=nn.LayerNorm),
    "cnn": nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
    "lstm": nn.Sequential(nn.LSTM(4, 8), nn.Linear(8, 4)),
    "rnn": nn.Sequential(nn.RNN(4, 8), nn.Linear(8, 4)),
    "bare": nn.Sequential(),
}


@pytest.mark.parametrize("symptom", SYMPTOMS)
@pytest.mark.parametrize("net", NETS)
def test_every_symptom_has_a_way_to_advice_that_compiles(symptom, net):
    found = advice(NETS[net], symptom)
    assert 1 <= len(found) <= 4
    for prescription in found:
        compile(prescription.in_your_code, symptom, "exec")
        assert prescription.expected.endswith("; not yet tried")


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_every_symptom_has_a_remedy_that_acts_with_the_settings_it_is_given(symptom):
    for net in NETS.values():
        for prescription in advice(net, symptom):
            for remedy in prescription.remedies:
                act = shelf("gradwell.remedies")[remedy.id].fact("apply")
                inspect.signature(act).bind(None, **remedy.settings)


@pytest.mark.parametrize("symptom", SYMPTOMS)
@pytest.mark.parametrize("cause", CAUSES)
def test_no_cause_breaks_the_advice(symptom, cause):
    for decades in (-8.0, 8.0):
        for net in NETS.values():
            for prescription in advice(net, symptom, **{cause: decades}) + advice(net, symptom, cause):
                compile(prescription.in_your_code, symptom, "exec")


# who goes with whom


def test_sigmoid_at_the_default_needs_activation_and_init_together():
    found = advice(chain(20, nn.Sigmoid), "vanishing_gradient", activation_slope=-12.0, weight_gain=-4.8)
    assert ids(found) == [["swap_activation", "reinit"], ["reinit"], ["add_norm"], ["add_shortcut"]]
    assert found[0].remedies[1].settings == {"init": "he"}
    assert found[1].remedies[0].settings == {"init": "centred_sigmoid"}
    assert found[2].remedies[0].settings == {"norm": "batch"}  # layer norm does not cure sigmoids
    assert found[0].expected.startswith("together should give back about 17 of the 17 decades, neither alone does")


@pytest.mark.parametrize(
    ("activation", "init"), [(nn.ReLU, "he"), (nn.Tanh, "xavier"), (nn.GELU, "he"), (nn.SiLU, "he")]
)
def test_others_at_the_default_need_the_init_alone(activation, init):
    found = advice(chain(20, activation), "vanishing_gradient", weight_gain=-4.8, activation_slope=-3.0)
    assert ids(found)[:2] == [["reinit"], ["add_norm"]]
    assert found[0].remedies[0].settings["init"] == init
    assert found[0].expected.startswith("should give back about 7.8 of the 7.8 decades")
    assert "train.py:10" in found[0].in_your_code


def test_clipping_never_treats_what_vanishes():
    for symptom in ("vanishing_gradient", "vanishing_through_time"):
        for remedy in ("clip_norm", "clip_value", "adaptive_clip"):
            assert all(t.symptom != symptom for t in shelf("gradwell.remedies")[remedy].fact("TREATS"))


def test_weights_too_large_are_drawn_again_and_clipping_is_a_stopgap():
    found = advice(chain(10, nn.Tanh), "exploding_gradient", weight_gain=6.0, activation_slope=-1.0)
    assert ids(found)[:3] == [["reinit"], ["clip_norm"], ["add_norm"]]
    assert "should take away about 5.0 of the 5.0 decades" in found[0].expected
    assert "stopgap" in found[1].expected


def test_batch_norm_without_shortcuts_needs_shortcuts():
    net = chain(30, nn.ReLU, norm=nn.BatchNorm1d)
    found = advice(net, "exploding_gradient", "depth_without_shortcut", weight_gain=-9.0, normalization_gain=11.5)
    assert ids(found)[0] == ["add_shortcut"]
    assert ["reinit"] not in ids(found)  # the scale of weights cancels before a norm


def test_a_residual_net_that_grows_gets_smaller_branches_or_norms():
    found = advice(chain(16, nn.ReLU), "exploding_gradient", "shortcut_growth", between_modules=4.0)
    assert ids(found)[:2] == [["scale_residual"], ["add_norm"]]
    assert found[0].remedies[0].settings == {"scale": pytest.approx(17**-0.5, abs=1e-3)}


def test_weights_at_the_right_scale_are_not_drawn_again():
    net = chain(16, nn.ReLU)
    grown = {"between_modules": 2.2, "weight_gain": 17 * 0.15, "activation_slope": -1.7}
    assert ids(advice(net, "exploding_gradient", "shortcut_growth", **grown))[0] == ["scale_residual"]
    assert ["reinit"] not in ids(advice(net, "exploding_gradient", "shortcut_growth", **grown))
    assert ids(advice(net, "exploding_gradient", weight_gain=17 * 0.5, activation_slope=-1.7))[0] == ["reinit"]


def test_nonfinite_values():
    assert ids(advice(chain(3, nn.ReLU), "nonfinite_value"))[:3] == [["scale_lr"], ["clip_norm"], ["skip_bad_batch"]]
    assert ["standardize_input"] in ids(advice(chain(3, nn.ReLU), "nonfinite_value", "input_scale"))[:2]
    assert ids(advice(chain(3, nn.ReLU), "nonfinite_value", "bad_batch"))[0] in (["scale_lr"], ["skip_bad_batch"])


def test_dead_units_get_a_leak_and_a_lower_rate_or_a_new_draw():
    assert ids(advice(chain(3, nn.ReLU), "dead_units"))[0] == ["swap_activation", "reinit"]
    assert ids(advice(chain(3, nn.ReLU), "dead_units", "learning_rate"))[0] == ["swap_activation", "scale_lr"]


def test_a_saturated_output_gets_the_loss_that_contains_it():
    found = advice(NETS["sigmoid"], "saturated_output")
    assert ids(found)[:2] == [["swap_activation"], ["reinit"]]
    assert "nn.BCEWithLogitsLoss()" in found[0].in_your_code
    assert found[1].remedies[0].settings["where"] == "head"


def test_rank_collapse_gets_shortcuts_init_norm():
    assert ids(advice(chain(12, nn.ReLU), "rank_collapse"))[:3] == [["add_shortcut"], ["reinit"], ["add_norm"]]


def test_time_has_its_own_remedies():
    assert ids(advice(NETS["rnn"], "vanishing_through_time"))[:2] == [["gate_recurrence"], ["orthogonal_recurrence"]]
    assert ids(advice(NETS["rnn"], "exploding_through_time"))[0] == ["clip_norm"]
    assert "nn.LSTM(...) instead" in advice(NETS["rnn"], "vanishing_through_time")[0].in_your_code
    assert "instead" not in advice(NETS["lstm"], "vanishing_through_time")[0].in_your_code


def test_the_rate_follows_the_measured_ratio_and_the_optimizer():
    evidence = [Evidence("update ratio", 0.9, "", 0.03)]
    found = advice(chain(3, nn.ReLU), "oversized_update", evidence=evidence, lr=0.2)
    assert found[0].remedies[0].settings == {"factor": 0.03}
    assert 'group["lr"] = 0.006  # was 0.2' in found[0].in_your_code
    assert ["switch_optimizer"] in ids(advice(chain(3, nn.ReLU), "undersized_update"))
    assert ["switch_optimizer"] not in ids(advice(chain(3, nn.ReLU), "undersized_update", optimizer="AdamW"))


def test_functions_are_named_where_there_is_no_module():
    sites = [Site("fc", "Linear", role="weight"), Site("sigmoid", "sigmoid", order=1, role="activation"),
             Site("head", "Linear", order=2, role="weight")]  # fmt: skip
    run = Run(Header("t", sites=sites), [Step(0)])
    found = prescribe(run, [finding("vanishing_gradient")], causes(activation_slope=-9.0, weight_gain=-3.0))
    assert "in forward(): F.relu(x) instead of sigmoid(x)" in found[0].in_your_code


def test_the_worst_finding_speaks_first_and_echoes_are_silent():
    run = run_of(chain(8, nn.ReLU))
    echo, mild, fatal = finding("slow_loss"), finding("saturated_units", "mild"), finding("vanishing_gradient", "fatal")
    found = prescribe(run, [echo, mild, fatal], causes(index=2, weight_gain=-5.0))
    assert ids(found)[0] == ["reinit"]
    assert ["scale_lr"] not in ids(found)
    assert ids(prescribe(run, [echo], []))[0] == ["scale_lr"]
    assert ids(prescribe(run, [echo, mild], []))[0] == ["scale_lr"]
    assert prescribe(run, [], []) == []
    assert len(prescribe(run, [echo, mild, fatal], [])) == 4


# the code does what it claims


def profile(model, width=32):
    """log10 |delta at the first layer| / |delta at the last one|, by autograd on one batch."""
    torch.manual_seed(1)
    kept = []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(lambda _, __, out: (out.retain_grad(), kept.append(out))[1]) for m in linears]
    loss = nn.functional.cross_entropy(model(torch.randn(64, width)), torch.arange(64) % 10)
    loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return torch.log10(kept[0].grad.double().norm() / kept[-1].grad.double().norm()).item()


def test_the_joint_code_brings_the_decades_back():
    torch.manual_seed(0)
    model = chain(20, nn.Sigmoid)
    before = profile(model)
    plan = advice(model, "vanishing_gradient", activation_slope=-12.0, weight_gain=-4.8)[0]
    exec(plan.in_your_code, {"model": model})
    assert not any(isinstance(m, nn.Sigmoid) for m in model.modules())
    assert before < -15
    assert profile(model) - before > 14


def reach(model, width=32):
    """log10 |dLoss/dx| of the input: what arrives at the far end, past the layers or through them."""
    torch.manual_seed(1)
    x = torch.randn(64, width, requires_grad=True)
    nn.functional.cross_entropy(model(x), torch.arange(64) % 10).backward()
    model.zero_grad()
    return torch.log10(x.grad.double().norm()).item()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_other_ways_for_sigmoids_work_too(number):
    torch.manual_seed(0)
    model = chain(20, nn.Sigmoid)
    before = reach(model)
    plan = advice(model, "vanishing_gradient", activation_slope=-12.0, weight_gain=-4.8)[number]
    exec(plan.in_your_code, {"model": model})
    assert reach(model) - before > 5


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU, 5), (nn.Tanh, 3), (nn.GELU, 5)])
@pytest.mark.parametrize("number", [0, 1])
def test_reinit_and_add_norm_flatten_the_default_profile(activation, gain, number):
    torch.manual_seed(0)
    model = chain(20, activation)
    before = profile(model)
    plan = advice(model, "vanishing_gradient", weight_gain=-4.8, activation_slope=-3.0)[number]
    exec(plan.in_your_code, {"model": model})
    assert profile(model) - before > gain


def test_shortcuts_dilute_the_growth_of_batch_norm():
    torch.manual_seed(0)
    model = chain(30, nn.ReLU, norm=nn.BatchNorm1d)
    before, there = profile(model), reach(model)
    exec(advice(model, "exploding_gradient", normalization_gain=2.5)[0].in_your_code, {"model": model})
    assert before > 2
    assert reach(model) < there - 1


@pytest.mark.parametrize(("remedy", "settings"), [("clip_norm", {"max_norm": 0.5}), ("clip_value", {"value": 0.01})])
def test_clipping_bounds_the_gradient(remedy, settings):
    model = chain(3, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {p.remedies[0].id: p for p in _all(model, "exploding_gradient", **{remedy: settings})}
    loss = 1000 * model(torch.randn(8, 32)).square().sum()
    exec(found[remedy].in_your_code, {"model": model, "loss": loss, "optimizer": optimizer})
    grads = [p.grad for p in model.parameters()]
    if remedy == "clip_norm":
        assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])).item() == pytest.approx(0.5, rel=1e-3)
    else:
        assert max(g.abs().max().item() for g in grads) <= 0.01


def _all(model, symptom, **settings):
    from gradwell.remedies._case import Case

    run = run_of(model)
    case = Case(run, run.steps[0], finding(symptom), [])
    entries = shelf("gradwell.remedies")
    plans = [entries[name](case, **chosen) for name, chosen in settings.items()]
    return [plan for plan in plans if plan is not None]


def test_the_pages_of_steps_run_as_they_stand():
    for remedy in ("clip_norm", "clip_value", "adaptive_clip", "sign_update", "skip_bad_batch"):
        model = chain(2, nn.ReLU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(torch.randn(8, 32)).square().sum()
        before = [p.detach().clone() for p in model.parameters()]
        page = shelf("gradwell.remedies")[remedy].page.blocks["In your code"]
        exec(page, {"torch": torch, "model": model, "loss": loss, "optimizer": optimizer})
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), remedy


def test_skip_bad_batch_leaves_the_weights_alone():
    model = chain(2, nn.ReLU)
    before = [p.detach().clone() for p in model.parameters()]
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    names["loss"] = model(torch.full((2, 32), float("inf"))).sum()
    exec(shelf("gradwell.remedies")["skip_bad_batch"].page.blocks["In your code"], names)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_recurrent_code_sets_the_gates_and_turns_the_weights():
    for kind in (nn.LSTM, nn.GRU):
        model = nn.ModuleDict({"cell": kind(4, 8)})
        for plan in _all(
            nn.Sequential(kind(4, 8)), "vanishing_through_time", gate_recurrence={}, orthogonal_recurrence={}
        ):
            exec(plan.in_your_code, {"model": model})
        cell = model["cell"]
        assert (cell.bias_ih_l0[8:16] == 2).all()
        gate = cell.weight_hh_l0[:8]
        assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)


def test_logits_replace_the_squashed_output():
    model = NETS["sigmoid"]
    names = {"model": model}
    exec(advice(model, "saturated_output")[0].in_your_code, names)
    assert isinstance(model[-1], nn.Identity)
    assert sum(isinstance(m, nn.Sigmoid) for m in model) == 4  # the hidden ones stay
    assert isinstance(names["loss_fn"], nn.BCEWithLogitsLoss)
