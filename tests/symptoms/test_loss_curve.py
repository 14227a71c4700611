"""The loss curve's symptoms on records made by hand and on trainings: what they say, when, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from gradwell.errors import NotMeasurable
from gradwell.journeys.check import measure
from gradwell.journeys.log import Log
from gradwell.lab.tasks import batches, setup
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Names
from gradwell.records.net import NetConfig
from gradwell.records.run import Event, Header, OptimizerInfo, Param, Run, Site, Step
from gradwell.records.verdict import Diagnosis, Finding
from gradwell.shelf import shelf
from gradwell.symptoms.loss_spike import SLOW, loss_spike, steps_slowed

CURVES = ("slow_loss", "loss_plateau", "oscillating_loss", "loss_spike", "diverging_loss")
Batch = tuple[Tensor, Tensor]


def said(run: Run) -> dict[str, Finding]:
    """What the curve's symptoms find, by id."""
    found: dict[str, Finding] = {}
    for symptom in CURVES:
        try:
            found |= {finding.symptom: finding for finding in shelf("gradwell.symptoms")[symptom](run)}
        except NotMeasurable:
            continue
    return found


# ------------------------------------------------------------------ records made by hand


def made(
    losses: Sequence[float], *, update: float | Sequence[float] = 3e-3, spread: float | Sequence[float] = 0.5
) -> Run:
    """A record with these losses, every tenth step sampled: one weight, one output."""
    steps = range(0, len(losses), 10)
    updates = [update] * len(steps) if isinstance(update, float) else list(update)
    spreads = [spread] * len(steps) if isinstance(spread, float) else list(spread)
    header = Header(
        "gradwell",
        optimizers=[OptimizerInfo("Adam", {"lr": 1e-3})],
        sites=[Site("head", "Linear", role="weight")],
        params=[Param("head.weight", "head", [4, 4])],
    )
    sampled = [
        Step(step, loss=losses[step], output=0, sites={"spread": [alike]},
             params={"weight_rms": [1.0], "grad_rms": [1.0], "update_rms": [size]})
        for step, size, alike in zip(steps, updates, spreads, strict=True)
    ]  # fmt: skip
    return Run(header, sampled, [Event("losses", 0, {"values": list(map(float, losses))})])


def noisy(curve: np.ndarray, part: float = 0.02) -> np.ndarray:
    return curve * np.exp(part * np.random.default_rng(0).standard_normal(len(curve)))


FALLING = 2.3 * np.exp(-np.arange(200) / 40)
LINE = np.linspace(2.3, 2.0, 200)
FLAT = np.full(200, 2.3)
WAVES = 1.3 + np.cos(2 * np.pi * np.arange(200) / 50)
JUMP = np.concatenate([FALLING[:150], FALLING[150:] + 30 * (np.arange(50) < 1)])
STAYS = np.concatenate([FALLING[:100], FALLING[:100] + 12])
GONE = np.concatenate([FALLING[:100], np.geomspace(1, 500, 100)])

MADE: dict[str, tuple[Run, dict[str, str]]] = {
    "falls": (made(noisy(FALLING)), {}),
    "falls in tiny steps, but levels off": (made(noisy(FALLING), update=1e-5), {}),
    "straight down": (made(noisy(LINE)), {}),
    "straight down in small steps": (made(noisy(LINE), update=5e-4), {"slow_loss": "mild"}),
    "straight down in tiny steps": (made(noisy(LINE), update=1e-4), {"slow_loss": "serious"}),
    "still, steps small": (made(noisy(FLAT), update=1e-4), {}),
    "still, steps tiny": (made(noisy(FLAT), update=1e-5), {"slow_loss": "serious"}),
    "still, in a warmup": (made(noisy(FLAT), update=np.geomspace(1e-7, 1e-5, 20).tolist()), {}),
    "flat, outputs alike": (made(noisy(FLAT), spread=1e-6), {"loss_plateau": "serious"}),
    "flat for less long": (made(noisy(FLAT, 0.005)[:100], spread=1e-6), {"loss_plateau": "mild"}),
    "flat, and the outputs were not always alike": (
        made(noisy(FLAT, 0.005)[:100], spread=[0.1] + [1e-6] * 9), {"loss_plateau": "serious"},
    ),
    "flat, and the outputs a little more alike than at the start": (
        made(noisy(FLAT, 0.005)[:100], spread=[5e-6] + [1e-6] * 9), {"loss_plateau": "mild"},
    ),
    "flat at its optimum": (made(noisy(FLAT / 100)), {}),
    "done, outputs alike": (made([50, 9, 4, 1, 1, *noisy(FLAT)], update=3e-3, spread=1e-6), {}),
    "waves": (made(noisy(WAVES)), {"oscillating_loss": "serious"}),
    "jumps": (made(noisy(JUMP)), {"loss_spike": "mild"}),
    "jumps and stays": (made(noisy(STAYS)), {"loss_spike": "serious", "diverging_loss": "serious"}),
    "leaves its start": (made(noisy(GONE)), {"diverging_loss": "fatal"}),
    "below zero": (made(FALLING - 5 + 0.01 * np.sin(np.arange(200) ** 2)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_is_said_of_a_record_made_by_hand(name):
    run, expected = MADE[name]
    found = {symptom: finding.severity for symptom, finding in said(run).items()}
    assert found == expected


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_loss_changes_nothing(name, factor):
    run, _ = MADE[name]
    event = run.events[0]
    values = [factor * value for value in event.detail["values"]]
    scaled = msgspec.structs.replace(run, events=[msgspec.structs.replace(event, detail={"values": values})])
    plain, other = said(run), said(scaled)
    assert {s: (f.severity, f.first_step, f.last_step) for s, f in plain.items()} == {
        s: (f.severity, f.first_step, f.last_step) for s, f in other.items()
    }


def test_the_sampled_step_named_is_one_that_was_sampled():
    for run, _ in MADE.values():
        for finding in said(run).values():
            steps = [e.value for e in finding.evidence if e.unit == "step"]
            assert set(steps) <= {step.step for step in run.steps}
            assert finding.summary.isprintable()


def test_losses_of_adversaries_are_not_judged():
    values = [v for pair in zip(FALLING, GONE, strict=True) for v in pair]
    run = made(values)
    detail = {"values": values, "optimizers": [0, 1] * 200}
    run = msgspec.structs.replace(run, events=[Event("losses", 0, detail)])
    for symptom in CURVES:
        with pytest.raises(NotMeasurable, match="optimizers step in turn"):
            list(shelf("gradwell.symptoms")[symptom](run))


def test_trainings_one_after_the_other_are_judged_each():
    values = [*noisy(FALLING), *noisy(GONE)]
    detail = {"values": values, "optimizers": [0] * 200 + [1] * 200}
    run = msgspec.structs.replace(made(values), events=[Event("losses", 0, detail)])
    found = said(run)["diverging_loss"]
    assert (found.severity, found.first_step >= 300) == ("fatal", True)


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_steps_are_told_in_one_sentence(steps):
    diagnosis = made(FALLING[:steps]).diagnose()
    reasons = {item.reason for item in diagnosis.not_checked if item.symptom in CURVES}
    assert reasons == {"these are too few steps for a loss curve; `gradwell run` records the loss of every step."}


def test_check_names_no_curve():
    run = measure(*setup(NetConfig(depth=3, init="he")))
    assert said(run) == {}


# ------------------------------------------------------------------ trainings


def trained(
    config: NetConfig, steps: int, change: Callable[[int, torch.optim.Optimizer, Batch], Batch] | None = None
) -> Run:
    torch.set_num_threads(1)
    log = Log(None, argv=[], say=print)
    log.monitor = Monitor(Names(), sink=log, every=20).install()
    try:
        model, _, loss, optimizer = setup(config)
        for step, batch in enumerate(islice(batches(config), steps)):
            pair = batch if change is None else change(step, optimizer, batch)
            optimizer.zero_grad()
            loss(model, pair).backward()
            optimizer.step()
    finally:
        log.monitor.remove()
    return log.run()


def one_bad(scale: float) -> Callable[[int, torch.optim.Optimizer, Batch], Batch]:
    return lambda step, _, batch: (scale * batch[0], batch[1]) if step == 70 else batch


def causes(diagnosis: Diagnosis, symptom: str) -> list[str]:
    index = next(i for i, finding in enumerate(diagnosis.findings) if finding.symptom == symptom)
    return [cause.cause for cause in diagnosis.causes(index)]


def bad_batch(diagnosis: Diagnosis) -> str:
    return next(cause.summary for cause in diagnosis.attributions if cause.cause == "bad_batch")


PLAIN = NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3)


def test_one_bad_batch_is_named_within_ten_steps_and_its_twin_is_healthy():
    diagnosis = trained(PLAIN, 80, one_bad(300.0)).diagnose()
    first = diagnosis.findings[0]
    assert (first.symptom, first.first_step) == ("loss_spike", 70)
    assert causes(diagnosis, "loss_spike") == ["bad_batch"]
    assert "the batch of step 70 has an RMS of" in next(
        a.summary for a in diagnosis.attributions if a.cause == "bad_batch"
    )
    assert [remedy.id for plan in diagnosis.prescriptions[:2] for remedy in plan.remedies] == [
        "skip_bad_batch",
        "clip_norm",
    ]
    assert trained(PLAIN, 80).diagnose().verdict == "healthy"


def test_wrong_labels_of_one_batch_are_laid_at_its_door():
    run = trained(NetConfig(depth=3, init="he"), 130, lambda step, _, b: (b[0], (b[1] + 1) % 10) if step == 120 else b)
    diagnosis = run.diagnose()
    assert diagnosis.findings[0].symptom == "loss_spike"
    assert "look at its labels" in bad_batch(diagnosis)


def test_a_batch_that_is_not_finite_is_the_reason_for_what_follows():
    diagnosis = trained(PLAIN, 80, one_bad(float("nan"))).diagnose()
    assert diagnosis.findings[0].symptom == "nonfinite_value"
    assert "bad_batch" in causes(diagnosis, "nonfinite_value")
    assert "learning_rate" not in causes(diagnosis, "nonfinite_value")


def test_a_rate_that_becomes_far_too_high_is_named_within_ten_steps():
    def change(step: int, optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
        if step == 60:
            optimizer.param_groups[0]["lr"] = 30.0
        return batch

    plain = NetConfig(depth=5, activation="tanh", init="lecun")
    found = said(trained(plain, 70, change))
    assert found["diverging_loss"].severity == "fatal"
    assert 60 <= found["diverging_loss"].first_step <= 70


def test_a_rate_that_is_too_high_from_the_start_is_put_down_to_it():
    diagnosis = trained(NetConfig(depth=5, activation="tanh", init="lecun", lr=2.0), 40).diagnose()
    assert causes(diagnosis, "diverging_loss") == ["learning_rate"]
    remedies = [remedy.id for plan in diagnosis.prescriptions for remedy in plan.remedies]
    assert "scale_lr" in remedies


def test_a_rate_that_is_far_too_low_is_put_down_to_it():
    diagnosis = trained(msgspec.structs.replace(PLAIN, lr=1e-6), 60).diagnose()
    assert diagnosis.findings[0].symptom == "slow_loss"
    assert causes(diagnosis, "slow_loss") == ["learning_rate"]
    (first, *_) = diagnosis.prescriptions
    assert first.remedies[0].id == "scale_lr"
    assert first.remedies[0].settings["factor"] >= 10


@pytest.mark.parametrize("config", [PLAIN, NetConfig(depth=3, init="he", batch_size=4, lr=5e-3)], ids=str)
def test_a_healthy_run_is_healthy_at_any_stage(config):
    run = trained(config, 160)
    (whole,) = run.losses()
    for end in (1, 3, 5, 8, 13, 20, 30, 45, 60, 80, 100, 120, 140, 160):
        part = msgspec.structs.replace(
            run,
            steps=[step for step in run.steps if step.step < end],
            events=[Event("losses", 0, {"values": whole.values[:end]})],
        )
        assert said(part) == {}, end


# ------------------------------------------------------------------ a spike under Adam


@pytest.mark.parametrize(("times", "before"), [(50.0, 40), (1e3, 40), (1e5, 10), (1e4, 3000), (20.0, 5000)])
def test_the_steps_after_one_large_gradient_are_those_of_torchs_adam(times, before):
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.0, 0.99), eps=0.0)

    def step(gradient: float) -> float:
        old, weight.grad = weight.item(), torch.full_like(weight, gradient)
        adam.step()
        return abs(weight.item() - old)

    for _ in range(before):
        step(1.0)
    step(times)
    small = 0
    while step(1.0) < 1 / SLOW:
        small += 1
    assert steps_slowed(times, memory=0.99, before=before) == pytest.approx(small, abs=2)


def test_rmsprop_has_no_bias_correction_and_a_usual_gradient_slows_nothing():
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.RMSprop([weight], lr=1.0, alpha=0.99, eps=0.0)
    gradients = [*[1.0] * 3000, 1e3, *[1.0] * 3000]
    moved = []
    for gradient in gradients:
        old, weight.grad = weight.item(), torch.full_like(weight, gradient)
        optimizer.step()
        moved.append(abs(weight.item() - old))
    small = sum(size < 1 / SLOW for size in moved[3001:])
    assert steps_slowed(1e3, memory=0.99) == pytest.approx(small, abs=2)
    assert steps_slowed(1.0, memory=0.99) == steps_slowed(3.0, memory=0.999) == 0


CLIMBS = np.concatenate([FALLING[:40], [1e5], FALLING[40], FALLING[40] + np.linspace(0, 0.8, 20)], axis=None)


@pytest.mark.parametrize(("kind", "settings", "norm", "losses", "severity"), [
    ("Adam", {"beta2": 0.999}, 1e5, CLIMBS, "serious"),
    ("RMSprop", {"alpha": 0.99}, 1e5, CLIMBS, "serious"),
    ("SGD", {"momentum": 0.9}, 1e5, CLIMBS, "mild"),
    ("Adam", {"beta2": 0.999}, 1.5, CLIMBS, "mild"),  # a usual gradient
    ("Adam", {"beta2": 0.999}, 1e5, CLIMBS[:44], "mild"),  # nothing to see yet
    ("Adam", {"beta2": 0.999}, 1e5, np.concatenate([FALLING[:40], [1e5], FALLING[41:90]]), "mild"),  # it goes on
    ("Adam", {"beta2": 0.5}, 1e5, CLIMBS, "mild"),  # forgotten within 40 steps
])  # fmt: skip
def test_a_spike_whose_gradient_stays_in_the_second_moment_is_serious(kind, settings, norm, losses, severity):
    run = made(losses)
    header = msgspec.structs.replace(run.header, optimizers=[OptimizerInfo(kind, settings)])
    steps = [msgspec.structs.replace(step, grad_norm=1.0) for step in run.steps]
    events = [*run.events, Event("unusual_loss", 40, {"loss": 1e5, "usual": 1.0, "grad_norm": norm})]
    (finding,) = loss_spike(msgspec.structs.replace(run, header=header, steps=steps, events=events))
    assert finding.severity == severity
    assert ("keeps the steps small" in finding.summary) is (severity == "serious")


@pytest.mark.parametrize(("times", "severity"), [(1000.0, "serious"), (1.0, None)])
def test_one_batch_a_thousand_times_too_large_under_adam_is_serious_within_ten_steps(times, severity):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 8), torch.nn.Linear(8, 20)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = torch.randn(64, 6) @ torch.randn(6, 20)
    log = Log(None, argv=[], say=print)
    log.monitor = Monitor(Names(), sink=log).install()
    try:
        for number in range(91):
            x = data[torch.randperm(64)[:32]] * (times if number == 80 else 1.0)
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
    finally:
        log.monitor.remove()
    found = said(log.run())
    assert (found["loss_spike"].severity if "loss_spike" in found else None) == severity
