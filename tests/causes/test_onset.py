"""What was there before any step is put down to the network, what came later to the step or the batch that made it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec
import pytest
import torch

import gradwell as gw
from gradwell.causes._onset import came_later
from gradwell.lab.tasks import batches, setup
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.records.verdict import Attribution, Diagnosis

Change = Callable[[int, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
TANH = NetConfig(depth=6, activation="tanh", init="lecun", lr=0.05)
RELU = NetConfig(depth=6, init="he", lr=0.05)


def trained(config: NetConfig, steps: int, change: Change = lambda _step, _optimizer, batch: batch) -> Run:
    """A training under the monitor, every step sampled."""
    torch.set_num_threads(1)
    model, _, loss_fn, optimizer = setup(config)
    with gw.watch(model, optimizer, every=1) as watch:
        for step, batch in enumerate(islice(batches(config), steps)):
            here = change(step, optimizer, batch)
            optimizer.zero_grad()
            loss_fn(model, here).backward()
            optimizer.step()
    return watch.run


def of(diagnosis: Diagnosis, symptom: str) -> list[Attribution]:
    """The causes of the first finding of a symptom."""
    return diagnosis.causes([finding.symptom for finding in diagnosis.findings].index(symptom))


def jump(at: int, rate: float) -> Change:
    def change(step, optimizer, batch):
        if step == at:
            optimizer.param_groups[0]["lr"] = rate
        return batch

    return change


@pytest.fixture(scope="module")
def jumped() -> Run:
    """A sound net whose rate becomes a thousand times too large at step 6."""
    return trained(RELU, 16, jump(6, 50.0))


def test_a_wreck_is_put_down_to_the_steps_that_made_it(jumped):
    diagnosis = jumped.diagnose()
    assert diagnosis.verdict == "fatal"
    first = diagnosis.findings[0]
    assert first.symptom in {"nonfinite_value", "exploding_gradient", "dead_units", "rank_collapse"}
    assert first.first_step >= 7
    assert of(diagnosis, first.symptom)[0].cause == "learning_rate"


def test_the_rate_stands_before_the_shares_of_its_wreck_and_the_shares_still_add_up():
    diagnosis = trained(TANH, 16, jump(6, 20.0)).diagnose()
    wrecks = [f.symptom for f in diagnosis.findings if f.symptom in {"vanishing_gradient", "exploding_gradient"}]
    assert wrecks
    found = of(diagnosis, wrecks[0])
    assert next(a.cause for a in found if a.kind == "condition") == found[0].cause == "learning_rate"
    text = str(diagnosis)
    title = text.index(f"({wrecks[0]})")
    assert title < text.index("condition: SGD has a learning rate", title) < text.index("decades in total", title)
    shares = [a.share for a in found if a.kind == "share"]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("gain", "lr", "rate_named"), [(4.0, 0.05, False), (1.0, 5.0, True)])
def test_large_steps_of_a_gradient_that_exploded_from_the_start_are_not_put_down_to_the_rate(gain, lr, rate_named):
    config = msgspec.structs.replace(RELU, depth=10, gain=gain, lr=lr)
    diagnosis = trained(config, 3).diagnose()
    assert ("learning_rate" in [a.cause for a in of(diagnosis, "oversized_update")]) is rate_named


def test_what_was_there_at_the_first_step_is_not_put_down_to_the_rate():
    diagnosis = trained(msgspec.structs.replace(RELU, depth=12, gain=3.0), 6).diagnose()
    assert {"nonfinite_value", "exploding_gradient"} <= {finding.symptom for finding in diagnosis.findings}
    assert "learning_rate" not in {a.cause for a in of(diagnosis, "nonfinite_value")}
    assert of(diagnosis, "exploding_gradient")[0].cause == "weight_gain"


def test_small_steps_have_wrecked_nothing(jumped):
    finding = jumped.diagnose().findings[0]
    assert came_later(jumped, finding)
    params = {**jumped.steps[0].params, "update_rms": [1e-6] * len(jumped.header.params)}
    small = [msgspec.structs.replace(step, params={**step.params, **params}) for step in jumped.steps]
    diagnosis = msgspec.structs.replace(jumped, steps=small).diagnose()
    assert "learning_rate" not in {a.cause for a in of(diagnosis, finding.symptom)}


def test_a_finding_of_the_first_step_did_not_come_later():
    run = trained(NetConfig(depth=20, activation="sigmoid", lr=0.05), 3)
    for finding in run.diagnose().findings:
        if finding.symptom in {"vanishing_gradient", "rank_collapse"}:
            assert not came_later(run, finding)


def test_an_odd_batch_comes_before_the_rate():
    def change(step, _optimizer, batch):
        return (batch[0] * 3000.0, batch[1]) if step == 40 else batch

    diagnosis = trained(RELU, 60, change).diagnose()
    wrecks = {"dead_units", "exploding_gradient", "vanishing_gradient", "nonfinite_value", "rank_collapse"}
    found = [f.symptom for f in diagnosis.findings if f.symptom in wrecks and f.severity != "mild"]
    assert found
    for symptom in [*found, "oversized_update"]:
        named = [a.cause for a in of(diagnosis, symptom)]
        assert named[0] == "bad_batch"
        assert "input_scale" not in named


def test_a_large_input_comes_before_the_rate():
    diagnosis = trained(msgspec.structs.replace(RELU, input_scale=1000.0), 8).diagnose()
    named = [[a.cause for a in diagnosis.causes(n)] for n, _ in enumerate(diagnosis.findings)]
    assert any("learning_rate" in causes for causes in named)
    for causes in named:
        if "learning_rate" in causes and "input_scale" in causes:
            assert causes.index("input_scale") < causes.index("learning_rate")
    assert next(causes[0] for causes in named if causes) == "input_scale"
