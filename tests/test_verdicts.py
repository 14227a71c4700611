"""The verdict benchmark: its labels are sound, the peers' rules do what they say, the score counts right."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

cases = importlib.import_module("benchmarks.verdicts.cases")
families = importlib.import_module("benchmarks.verdicts.families")
labels = importlib.import_module("benchmarks.verdicts.labels")
ours = importlib.import_module("benchmarks.verdicts.ours")
peers = importlib.import_module("benchmarks.verdicts.peers")
score = importlib.import_module("benchmarks.verdicts.score")
training = importlib.import_module("benchmarks.verdicts.training")
command = importlib.import_module("benchmarks.verdicts.__main__")

CASES = cases.CASES


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ------------------------------------------------------------------ trainings and labels


def test_there_are_enough_trainings_and_half_of_them_are_healthy() -> None:
    assert len(CASES) == len(cases.HEALTHY) + len(cases.SICK) >= 120
    assert len(cases.HEALTHY) >= len(cases.SICK)
    assert {case.family for case in CASES.values()} == set(families.FAMILIES)
    assert 3 * len(families.HELD_ASIDE) >= len(families.FAMILIES)
    assert {case.optimizer for case in CASES.values()} >= {"sgd", "momentum", "adam", "lbfgs"}


def test_every_run_has_the_label_of_its_training() -> None:
    known = labels.read()
    assert set(known) == set(CASES)
    for name, case in CASES.items():
        for seed in cases.SEEDS:
            assert known[name][str(seed)]["mark"] == cases.mark(case), f"{name}: make it anew with --label"


def test_most_faults_are_fatal_in_training_and_what_has_none_learns() -> None:
    known = labels.read()
    found = [(case, known[name][str(seed)]) for name, case in CASES.items() for seed in cases.SEEDS]
    assert sum(run["class"] == "healthy" for case, run in found if not case.fault) >= 0.97 * 3 * len(cases.HEALTHY)
    assert sum(run["class"] == "fatal" for case, run in found if case.fault) >= 0.6 * 3 * len(cases.SICK)


def test_the_float64_pass_sees_the_faults_that_were_built_in() -> None:
    known = labels.read()
    seen = {"vanishing_gradient", "exploding_gradient", "symmetric_units", "dead_units", "unreached_parameter"}
    for case in cases.SICK:
        wanted = seen & set(case.names)
        if case.fault != "structure" or len(wanted) != 1 or len(case.names) > 2:
            continue
        for run in known[case.id].values():
            if run["class"] == "fatal":
                assert labels.symptoms(run["measured"]) & set(case.names), case.id


@pytest.mark.parametrize("name", ["mlp momentum", "mlp dead momentum", "mlp NaN in a batch adam"])
def test_a_label_made_anew_is_the_label_in_the_file(name: str) -> None:
    again, known = labels.label(CASES[name], 1), labels.read()[name]["1"]
    assert again["class"] == known["class"]
    for key, value in known["measured"].items():
        assert again["measured"][key] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value)


@torch.no_grad()
def product_of_matrices(case: Any) -> float:
    """log10 of the product of W^T diag(phi') on a sigmoid net's gradient, without autograd."""
    model = training.built(case, 0).model.double()
    x, y = next(training.built(case, 0).batches)
    layers = [m for m in model if isinstance(m, torch.nn.Linear)]
    slopes, hidden = [], x.double()
    for layer in layers[:-1]:
        hidden = torch.sigmoid(hidden @ layer.weight.T + layer.bias)
        slopes.append(hidden * (1 - hidden))
    logits = hidden @ layers[-1].weight.T + layers[-1].bias
    delta = (logits.softmax(1) - torch.nn.functional.one_hot(y, 10)) / len(y)
    last = delta.norm()
    for layer, slope in zip(layers[:0:-1], slopes[::-1], strict=True):
        delta = (delta @ layer.weight) * slope
    return math.log10(float(delta.norm() / last))


def test_the_float64_gain_is_that_of_explicit_matrices() -> None:
    case = CASES["mlp sigmoid 6 momentum"]
    found = labels.measure(case, 0)
    assert found["gain"] == pytest.approx(product_of_matrices(case), abs=1e-3)
    assert found["activation"] + found["weight"] == pytest.approx(found["gain"], abs=5e-3)


# ------------------------------------------------------------------ the peers' rules


def recorded(name: str, steps: int | None = None) -> Any:
    case = CASES[name]
    seen = peers.Recorder(command.epoch_of(case))
    training.train(case, 0, steps=steps, observer=seen)
    return seen


def rules(alarms: list[Any]) -> set[str]:
    return {alarm.rule for alarm in alarms}


def test_autotrainer_sees_a_deep_sigmoid_net_and_is_late() -> None:
    case, alarms = CASES["mlp sigmoid 10 adam"], peers.autotrainer(recorded("mlp sigmoid 10 adam"))
    assert "vanishing" in rules(alarms)
    assert min(alarm.step for alarm in alarms) >= 0.25 * case.steps


def test_autotrainer_is_silent_on_a_healthy_net() -> None:
    assert peers.autotrainer(recorded("mlp tanh adam")) == []


def test_torchmortem_flags_a_healthy_relu_net() -> None:
    """As measured on the tool itself."""
    assert "dead" in rules(peers.torchmortem(recorded("mlp He 12 adam", 60)))


def test_every_peer_sees_nan() -> None:
    seen = recorded("mlp NaN in a batch adam", 60)
    for rule in peers.PEERS.values():
        assert 40 <= min(alarm.step for alarm in rule(seen) if alarm.rule in ("exploding", "NaN loss")) <= 45


def look(**changes: Any) -> Any:
    plain = {
        "step": 0, "grad_norms": [1.0, 1.0], "grad_means": [1e-3], "grad_total": 1.0, "zero_grads": 0.0, "finite": True,
        "ratios": [1e-3], "relu_zero": [0.4], "relu_idle": [0.0], "tanh_flat": [0.0], "sigmoid_flat": [0.0],
        "tanh_in": [0.0], "sigmoid_in": [0.0],
    }  # fmt: skip
    return peers.Look(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"grad_norms": [1e-6, 1.0]}, "vanishing"),
        ({"grad_norms": [71.0, 1.0]}, "exploding"),
        ({"zero_grads": 0.7}, "dying ReLU"),
    ],
)
def test_autotrainers_thresholds(changes: dict[str, Any], rule: str) -> None:
    assert rule in peers.at_epoch([0.3, 0.5], [0.3, 0.5], look(**changes))
    assert peers.at_epoch([0.3, 0.5], [0.3, 0.5], look()) == []
    assert peers.at_epoch([0.3, 0.71], [0.3, 0.5], look(**changes)) == []  # the accuracy is good enough


def test_autotrainers_curves() -> None:
    assert peers.at_epoch([0.3, 0.305], [0.3, 0.3], look()) == ["slow convergence"]
    assert peers.at_epoch([0.8, 0.9, 0.8, 0.9, 0.8], [0.8] * 5, look()) == ["oscillating loss"]


@pytest.mark.parametrize(
    ("changes", "name", "rule"),
    [
        ({"grad_norms": [0.009, 1.0]}, "torchmortem-like", "vanishing"),
        ({"grad_total": 1001.0}, "torchmortem-like", "exploding"),
        ({"relu_zero": [0.6]}, "torchmortem-like", "dead"),
        ({"ratios": [0.2]}, "torchmortem-like", "update"),
        ({"grad_means": [1e-3, 1e-8]}, "SageMaker-like", "vanishing"),
        ({"relu_idle": [0.6]}, "SageMaker-like", "dead ReLU"),
        ({"tanh_in": [0.6]}, "SageMaker-like", "saturated"),
        ({"ratios": [1e-9]}, "SageMaker-like", "update"),
    ],
)
def test_thresholds_of_the_others(changes: dict[str, Any], name: str, rule: str) -> None:
    seen = peers.Recorder(10)
    seen.losses = [1.0 - n / 100 for n in range(40)]
    seen.looks = [look(step=n) for n in range(6)]
    assert peers.PEERS[name](seen) == []
    seen.looks = [look(step=n, **changes) for n in range(6)]
    assert rules(peers.PEERS[name](seen)) == {rule}


# ------------------------------------------------------------------ the score


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    torch.set_num_threads(1)
    names = ("tanh adam", "sigmoid 10 momentum", "NaN in a batch adam")
    others = ("mixture zeros adam", "autoencoder adam", "gan dead adam", "mixture tanh adam")
    known = labels.read()
    return [command.judge(command.see(CASES[name], 0), known) for name in (*(f"mlp {name}" for name in names), *others)]


def test_the_losses_are_the_same_with_and_without_us(rows: list[Any]) -> None:
    assert all(row.same_losses for row in rows)


def test_runs_that_anybody_can_judge_are_judged_right(rows: list[Any]) -> None:
    """Among them a GAN of which only one net is sick, and a mixture with an expert that comes into use later."""
    assert [row.label for row in rows] == ["healthy", "fatal", "fatal", "fatal", "healthy", "fatal", "healthy"]
    assert not any(map(score.missed, rows))
    assert not any(map(score.false_alarm, rows))
    assert all(score.named(row) for row in rows if row.label == "fatal")
    assert [score.delay(row) for row in rows[1:4]] == [0, pytest.approx(0, abs=2), 0]
    assert rows[1].causes[0] == "activation_slope"


def test_a_wrong_verdict_counts(rows: list[Any]) -> None:
    healthy, sick = rows[0], rows[1]
    assert score.missed(sick._replace(said=healthy.said))
    assert score.false_alarm(healthy._replace(said=sick.said))
    assert math.isinf(score.delay(sick._replace(told=[])))
    assert not score.named(sick._replace(case=rows[2].case, truth=rows[2].truth))
    other = json.loads(json.dumps(sick.truth))
    other["measured"] |= {"weight": -9.0, "activation": -1.0}
    assert not score.cause_right(sick._replace(truth=other))
    wrong = [sick._replace(said=healthy.said), healthy._replace(said=sick.said)]
    assert [line.split(":")[0] for line in score.problems(wrong) if not line.startswith(" ")] == ["MISS", "FALSE ALARM"]


def test_the_cause_is_that_of_the_pass_that_shows_what_was_named(rows: list[Any]) -> None:
    """tanh with weights too large explodes at the start and, its units saturated, vanishes in the end."""
    start = {"gain": 2.6, "activation": -3.9, "weight": 6.5, "norm": 0.0}
    end = {"gain": -5.7, "activation": -12.2, "weight": 6.5, "norm": 0.0}
    truth = {"class": "fatal", "ratio": 7.0, "measured": start, "ending": end}
    row = rows[1]._replace(case=CASES["mlp tanh x 12 momentum"], truth=truth)
    assert row.said.findings[0].symptom == "vanishing_gradient"
    assert row.right_causes == {"activation_slope"}
    assert row._replace(truth={**truth, "measured": {**start, "gain": -2.6}}).right_causes == {"activation_slope"}
    assert row._replace(truth={**truth, "ending": {**start, "gain": -5.7}}).right_causes == {"activation_slope"}
    healthy = row._replace(said=rows[0].said)
    assert healthy.right_causes == {"weight_gain"}


def test_a_record_tells_again_when_its_findings_were_told(rows: list[Any]) -> None:
    for row in rows:
        heard, again = ([t for t in told if t.severity != "mild"] for told in (row.told, ours.told_again(row.record)))
        assert [(t.symptom, t.severity) for t in again] == [(t.symptom, t.severity) for t in heard]
        assert [t.step for t in again] == pytest.approx([t.step for t in heard], abs=1)
    assert any(told.step > 30 for row in rows for told in row.told)


def test_the_tables_count_what_is_in_the_rows(rows: list[Any]) -> None:
    spoilt = [rows[0]._replace(said=rows[1].said), rows[1]._replace(said=rows[0].said), *rows[2:]]
    good, bad = score.tools(rows)[2], score.tools(spoilt)[2]
    assert good.startswith("| gradwell | 0 of 4 | 0 of 1 | 0 of 3 | 0 of 2 |")
    assert bad.startswith("| gradwell | 1 of 4 | 0 of 1 | 1 of 3 | 0 of 2 |")
    assert score.families(rows)[-1].startswith("| all | 7 | 4 | 0 |")
    assert score.onset(rows)[2].startswith("| in the network | 3 | 3 | 3 | 0 | 0 |")
