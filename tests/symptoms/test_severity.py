"""Severity means training: the table of THEORY 2.3, the optimizer, several steps, exact zero."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import nn

from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.records.net import NetConfig
from gradwell.records.run import Event, OptimizerInfo, Run
from gradwell.symptoms.saturated_units import saturated_units
from gradwell.symptoms.vanishing_gradient import lost, quietest, vanishing_gradient

ADAM = {"optimizer": "Adam", "lr": 1e-3}
TABLE = [  # depth, activation, classes under Adam, classes under SGD
    (2, "relu", {"healthy"}, {"healthy"}),
    (4, "relu", {"mild"}, {"mild"}),
    (8, "relu", {"mild"}, {"serious", "fatal"}),
    (12, "relu", {"serious", "fatal"}, {"serious", "fatal"}),
    (24, "relu", {"serious", "fatal"}, {"serious", "fatal"}),
    (12, "gelu", {"serious", "fatal"}, {"serious", "fatal"}),
    (20, "tanh", {"serious", "fatal"}, {"serious", "fatal"}),
]


def severity(run: Run) -> str:
    return next((finding.severity for finding in vanishing_gradient(run)), "healthy")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("depth", "activation", "adam", "sgd"), TABLE)
def test_the_table_of_training_costs(check_run, depth, activation, adam, sgd, seed):
    config = NetConfig(depth=depth, activation=activation, seed=seed)
    assert severity(check_run(config)) in sgd
    assert severity(check_run(msgspec.structs.replace(config, **ADAM))) in adam


@pytest.mark.parametrize("depth", [12, 24])
def test_without_an_optimizer_it_is_at_most_serious_and_says_so(check_run, depth):
    (finding,) = vanishing_gradient(check_run(NetConfig(depth=depth), with_optimizer=False))
    assert finding.severity == "serious"
    assert finding.summary.endswith("; without an optimizer judged as under Adam; under plain SGD it would be fatal")


def test_a_training_loop_by_hand_is_told_from_its_updates(check_run):
    run = check_run(NetConfig(depth=12))
    nameless = msgspec.structs.replace(run, header=msgspec.structs.replace(run.header, optimizers=[]))
    assert severity(nameless) == "fatal"


def test_adam_stops_helping_where_the_gradient_drowns_in_eps(check_run):
    run = check_run(NetConfig(depth=12, **ADAM))
    quiet = quietest(run, run.steps[0])
    assert severity(run) == "serious"
    loud = OptimizerInfo("Adam", {"eps": quiet * 100})
    (finding,) = vanishing_gradient(
        msgspec.structs.replace(run, header=msgspec.structs.replace(run.header, optimizers=[loud]))
    )
    assert finding.severity == "fatal"
    assert "too small for Adam's eps" in finding.summary


def test_the_loss_scale_is_taken_off_before_comparing_with_eps(check_run):
    run = check_run(NetConfig(depth=12, **ADAM))
    scaled = msgspec.structs.replace(run.steps[0], loss_scale=65536.0)
    assert quietest(run, scaled) == pytest.approx(quietest(run, run.steps[0]) / 65536)


def test_an_exact_zero_is_fatal_and_names_where_and_in_which_dtype(check_run):
    run = check_run(NetConfig(depth=60, activation="sigmoid"), with_optimizer=False)
    assert run.steps[0].total == -math.inf
    (finding,) = vanishing_gradient(run)
    assert finding.severity == "fatal"
    gains = {site.site: run.steps[0].at("delta_norm", i) for i, site in enumerate(run.sites)}
    assert gains[finding.where[0].site] == 0
    assert f"to {finding.where[0].site}" in finding.summary
    assert "becomes exactly 0 in float32 (underflow)" in finding.summary
    diagnosis = diagnose(run)
    shares = [a for a in diagnosis.attributions if a.finding == 0 and a.kind == "share"]
    assert math.fsum(a.share for a in shares) == pytest.approx(1, abs=1e-6)
    assert -45 < math.fsum(a.decades for a in shares) < -30


def test_a_gradient_that_zero_weights_stop_is_no_underflow():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())), nn.Linear(8, 4))
    for weight in model.parameters():
        nn.init.zeros_(weight)
    batch = (torch.randn(16, 8), torch.randint(4, (16,)))
    run = measure(model, batch, lambda net, b: nn.functional.cross_entropy(net(b[0]), b[1]))
    for finding in vanishing_gradient(run):
        assert "the weights there are exactly 0" in finding.summary
        assert "underflow" not in finding.summary
        break
    else:
        pytest.fail("the zero was not seen")


def steps_of(run: Run, many: int, gain) -> Run:
    """A run of many steps whose gradients are scaled layer by layer: step n has gain(n) decades at the source."""
    first = run.steps[0]
    deltas = first.sites["delta_norm"]
    here = deltas[first.output]
    size = -math.log10(deltas[first.source] / here)
    steps = []
    for number in range(many):
        factor = gain(number) / size
        column = [d and here * (d / here) ** factor for d in deltas]
        sites = {**first.sites, "delta_norm": column}
        steps.append(msgspec.structs.replace(first, step=10 * number, sites=sites, total=-gain(number)))
    return msgspec.structs.replace(run, steps=steps)


def test_the_end_of_a_run_counts(check_run):
    base = check_run(NetConfig(depth=12))
    (finding,) = vanishing_gradient(steps_of(base, 30, lambda n: 3.0 + 0.1 * n))
    assert finding.severity == "fatal"
    assert (finding.first_step, finding.last_step) == (0, 290)


def test_a_run_that_recovers_is_mild_and_says_when(check_run):
    base = check_run(NetConfig(depth=12))
    (finding,) = vanishing_gradient(steps_of(base, 30, lambda n: 5.0 if n < 10 else 0.5))
    assert finding.severity == "mild"
    assert (finding.first_step, finding.last_step) == (0, 90)
    assert "recovered by step 100, now 0.5" in finding.summary


def test_a_mild_start_that_recovers_is_no_finding(check_run):
    base = check_run(NetConfig(depth=12))
    assert list(vanishing_gradient(steps_of(base, 30, lambda n: 1.5 if n < 10 else 0.5))) == []


def test_few_steps_are_judged_by_their_median(check_run):
    base = check_run(NetConfig(depth=12))
    assert list(vanishing_gradient(steps_of(base, 5, lambda n: 5.0 if n == 4 else 0.5))) == []


def test_pooling_is_no_vanishing(check_run):
    run = check_run(NetConfig(kind="cnn", depth=3, width=16, init="he"))
    step = run.steps[0]
    pool = next(i for i, site in enumerate(run.sites) if site.kind == "AdaptiveAvgPool2d")
    assert step.at("leaf_gain", pool) == pytest.approx(-0.5 * math.log10(64), abs=1e-4)
    plain = -step.total
    assert lost(run, step) == pytest.approx(max(0.0, plain - 0.5 * math.log10(64)), abs=0.15)


def test_nan_is_found_where_it_is_born(check_run):
    diagnosis = diagnose(check_run(NetConfig(depth=12, init="he", gain=1e5)))
    finding = diagnosis.findings[0]
    assert (finding.symptom, finding.severity) == ("nonfinite_value", "fatal")
    run = check_run(NetConfig(depth=12, init="he", gain=1e5))
    counts = [run.steps[0].at("nonfinite", i) for i in range(len(run.sites))]
    assert finding.where[0].site == run.sites[next(i for i, c in enumerate(counts) if c)].site
    assert finding.summary.endswith("at step 0")


def test_a_loss_that_was_nan_between_the_samples_counts(check_run):
    run = check_run(NetConfig(depth=2))
    event = Event("nonfinite_loss", 17, {"loss": "nan"})
    diagnosis = diagnose(msgspec.structs.replace(run, events=[event]))
    assert diagnosis.verdict == "fatal"
    assert "the loss is nan at step 17" in diagnosis.findings[0].summary


def test_weights_that_are_nan_happened_earlier(check_run):
    run = check_run(NetConfig(depth=2))
    params = {**run.steps[0].params, "weight_rms": [math.nan] * len(run.header.params)}
    broken = msgspec.structs.replace(run, steps=[msgspec.structs.replace(run.steps[0], params=params)])
    (finding,) = diagnose(broken).findings[:1]
    assert finding.summary == (
        "the weights of hidden.0.weight and 5 more were not finite any more before the forward pass: it happened "
        "before step 0"
    )


def test_a_gradient_overflow_under_a_loss_scaler_is_its_daily_work(check_run):
    run = check_run(NetConfig(depth=2))
    params = {**run.steps[0].params, "grad_nonfinite": [1.0] * len(run.header.params)}
    over = msgspec.structs.replace(run.steps[0], params=params, grad_norm=math.inf, loss_scale=65536.0)
    fine = [msgspec.structs.replace(run.steps[0], step=n, loss_scale=32768.0) for n in range(1, 8)]
    assert diagnose(msgspec.structs.replace(run, steps=[over, *fine])).verdict == "healthy"
    assert diagnose(msgspec.structs.replace(run, steps=[over])).verdict == "fatal"


@pytest.mark.parametrize("seed", range(3))
def test_deep_he_nets_are_never_seriously_dead(check_run, seed):
    diagnosis = diagnose(check_run(NetConfig(depth=30, init="he", seed=seed)))
    assert diagnosis.verdict in {"healthy", "mild"}


def test_small_batches_cannot_tell_a_dead_unit(check_run):
    run = check_run(NetConfig(depth=3, init="he", batch_size=4))
    reasons = {item.symptom: item.reason for item in diagnose(run).not_checked}
    assert reasons["dead_units"].startswith("a batch of 4 is too small")


def test_one_sample_has_no_spread(check_run):
    run = check_run(NetConfig(depth=3, init="he", batch_size=1))
    reasons = {item.symptom: item.reason for item in diagnose(run).not_checked}
    assert reasons["rank_collapse"].startswith("a batch of one sample has no spread")


class SigmoidStep(nn.Module):
    """x + sigmoid(W x + b), all of W and b positive (the XOR tutorial of THEORY 2.1)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.sigmoid(self.linear(x))


@pytest.mark.parametrize("seed", range(3))
def test_the_residual_xor_net_has_a_saturated_output_and_no_vanishing_profile(seed):
    """Trap 4: ten positive increments push the output to 1.000; the profile is flat, |delta_out| itself is tiny."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2, 4), nn.Sigmoid(), *[SigmoidStep() for _ in range(10)], nn.Linear(4, 1), nn.Sigmoid()
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    batch = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    loss = lambda m, b: 0.5 * (m(b[0]) - b[1]).square().sum()  # noqa: E731
    diagnosis = diagnose(measure(model, batch, loss, torch.optim.Adam(model.parameters())))
    severities = {finding.symptom: finding.severity for finding in diagnosis.findings}
    assert severities["saturated_output"] in {"serious", "fatal"}
    assert "vanishing_gradient" not in severities
    assert diagnosis.findings[0].symptom == "saturated_output"
    conditions = {a.cause for a in diagnosis.causes(0)}
    assert "shortcut_growth" in conditions


def test_a_right_answer_is_no_saturated_output(train_run):
    config = NetConfig(depth=2, init="he", output_activation="sigmoid", loss="mse", optimizer="Adam", lr=3e-3)
    run = train_run(config, steps=300, every=20)
    flat = run.steps[-1].at("saturated_frac", len(run.sites) - 1)
    assert flat > 0.8
    assert diagnose(run).verdict == "healthy"


def test_a_run_in_training_ends_healthy(train_run):
    diagnosis = diagnose(train_run(NetConfig(depth=3, init="he"), steps=60, every=5))
    assert diagnosis.verdict == "healthy"
    assert diagnosis.overhead.steps == 56


def test_two_ways_of_the_gradient_are_judged_apart(check_run):
    """A GAN's two losses: one net is saturated, the other is sound and was sampled more often."""
    sick = check_run(NetConfig(depth=3, activation="tanh", init="lecun", gain=15.0))
    step = sick.steps[0]
    many = len(sick.sites)
    sites = [
        *sick.sites,
        *(msgspec.structs.replace(s, site=f"other.{s.site}", order=s.order + many) for s in sick.sites),
    ]
    one = msgspec.structs.replace(step, sites={n: [*c, *[None] * many] for n, c in step.sites.items()})
    sound = {**step.sites, "saturated_frac": [None if x is None else 0.0 for x in step.sites["saturated_frac"]]}
    two = msgspec.structs.replace(
        step, source=step.source + many, output=step.output + many,
        sites={name: [*[None] * many, *column] for name, column in sound.items()},
    )  # fmt: skip
    run = msgspec.structs.replace(
        sick,
        header=msgspec.structs.replace(sick.header, sites=sites),
        steps=[one, two, two, one, two, two, one, two, two],
    )
    (alone,) = saturated_units(sick)
    (finding,) = saturated_units(run)
    assert (finding.severity, finding.evidence[0].value) == (alone.severity, alone.evidence[0].value)
    assert finding.where == alone.where
    assert list(saturated_units(msgspec.structs.replace(run, steps=[two] * 4))) == []
