"""`diagnose`: thresholds, ignoring, order, verdicts, profile, messages."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import nn

from gradwell.errors import UnknownId, UsageError
from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.lab.tasks import setup
from gradwell.records.net import NetConfig
from gradwell.records.run import Event, Header, Run
from gradwell.records.verdict import RANK
from gradwell.shelf import shelf


@pytest.fixture(scope="module")
def sick() -> Run:
    torch.set_num_threads(1)
    return measure(*setup(NetConfig(depth=24)))


def test_nothing_measured_is_undecided_not_healthy():
    diagnosis = diagnose(Run(Header("gradwell")))
    assert diagnosis.verdict == "undecided"
    assert {item.symptom for item in diagnosis.not_checked} == set(shelf("gradwell.symptoms"))
    assert diagnosis.not_checked[0].reason.startswith("no training step was recorded")
    assert diagnosis.profile == []


def test_events_without_a_step_are_enough_for_a_verdict():
    assert diagnose(Run(Header("gradwell"), events=[Event("nonfinite_loss", 3, {"loss": "inf"})])).verdict == "fatal"


def test_worst_first_and_what_causes_others_before_them(sick):
    findings = diagnose(sick).findings
    ranks = [-RANK[finding.severity] for finding in findings]
    assert ranks == sorted(ranks)
    assert [finding.symptom for finding in findings][:2] == ["vanishing_gradient", "rank_collapse"]


def test_thresholds_are_set_by_name(sick):
    names = zip(("mild", "serious", "fatal"), (50, "50", 50.0), strict=True)
    changed = diagnose(sick, thresholds={f"vanishing_gradient.{name}": value for name, value in names})
    assert "vanishing_gradient" not in [finding.symptom for finding in changed.findings]


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("mild", 1, UsageError,
         "A threshold is written ID.name=value, such as vanishing_gradient.mild=1.5, not 'mild'."),
        ("vanishing_gradients.mild", 1, UnknownId,
         "There is no 'vanishing_gradients' among the symptoms; did you mean 'vanishing_gradient'?"),
        ("dead_units.wild", 1, UsageError,
         "dead_units has no threshold 'wild'; its thresholds are: mild, serious, fatal, fewest_samples."),
        ("nonfinite_value.x", 1, UsageError, "nonfinite_value has no threshold 'x'; its thresholds are: none."),
        ("dead_units.mild", "much", UsageError, "The threshold dead_units.mild must be a number, not 'much'."),
        ("dead_units.mild", True, UsageError, "The threshold dead_units.mild must be a number, not True."),
        ("dead_units.mild", math.nan, UsageError, "The threshold dead_units.mild must be a number, not nan."),
    ],
)  # fmt: skip
def test_bad_thresholds_are_told_in_one_sentence(sick, key, value, error, message):
    with pytest.raises(error) as caught:
        diagnose(sick, thresholds={key: value})
    assert str(caught.value) == message


def test_ignored_symptoms_are_not_called_checked(sick):
    diagnosis = diagnose(sick, ignore=["vanishing_gradient", "rank_*"])
    assert not {"vanishing_gradient", "rank_collapse"} & {finding.symptom for finding in diagnosis.findings}
    reasons = {item.symptom: item.reason for item in diagnosis.not_checked}
    assert reasons["vanishing_gradient"] == reasons["rank_collapse"] == "ignored on request."


def test_ignored_places_are_noted(sick):
    diagnosis = diagnose(sick, ignore=["vanishing_gradient:hidden.*"])
    assert "vanishing_gradient" not in {finding.symptom for finding in diagnosis.findings}
    assert diagnosis.notes == ["vanishing_gradient at hidden.* is ignored on request."]
    kept = diagnose(sick, ignore=["vanishing_gradient:blocks.*"])
    assert kept.findings[0].symptom == "vanishing_gradient"


def test_an_unknown_symptom_to_ignore_is_an_error(sick):
    with pytest.raises(UnknownId, match="There is no 'vanish' among the symptoms"):
        diagnose(sick, ignore=["vanish"])


def test_the_profile_has_a_row_for_each_site_with_its_weight(sick):
    diagnosis = diagnose(sick)
    step = sick.steps[-1]
    assert [row.site for row in diagnosis.profile] == [site.site for site in sick.sites]
    head = next(row for row in diagnosis.profile if row.site == "head")
    index = next(i for i, p in enumerate(sick.header.params) if p.name == "head.weight")
    assert head.log10_gain == 0
    assert head.update_ratio == pytest.approx(step.of("update_rms", index) / step.of("weight_rms", index))
    assert head.grad_rms == step.of("grad_rms", index)


def test_the_prescriptions_follow_from_the_findings(sick):
    assert diagnose(sick).prescriptions


def test_scaling_the_loss_changes_nothing():
    for config in (NetConfig(depth=12), NetConfig(depth=12, init="he", gain=3.0), NetConfig(depth=3, init="he")):
        model, batch, loss, _ = setup(config)
        plain = diagnose(measure(model, batch, loss))
        for factor in (1e-6, 1024.0):
            scaled = diagnose(measure(model, batch, lambda m, b, f=factor, loss=loss: f * loss(m, b)))
            assert scaled.verdict == plain.verdict
            assert [(f.symptom, f.severity, f.where) for f in scaled.findings] == [
                (f.symptom, f.severity, f.where) for f in plain.findings
            ]
            shares = [a.share for a in plain.attributions if a.share is not None]
            assert [a.share for a in scaled.attributions if a.share is not None] == pytest.approx(shares, abs=1e-4)


def test_a_single_layer_has_no_depth_to_judge():
    model = nn.Linear(8, 2)
    x, y = torch.randn(16, 8), torch.randint(0, 2, (16,))
    diagnosis = diagnose(measure(model, (x, y), lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])))
    assert diagnosis.verdict == "healthy"
    reasons = {item.symptom: item.reason for item in diagnosis.not_checked}
    assert reasons["vanishing_gradient"].startswith("no backward pass went through two weight layers")


def test_a_dead_layer_is_named_as_such_not_as_underflow():
    config = NetConfig(depth=4, init="he", bias_value=-4.0)
    diagnosis = diagnose(measure(*setup(config)))
    assert diagnosis.findings[0].symptom == "dead_units"
    assert "underflow" not in str(diagnosis)


def test_json_round_trip(sick):
    body = msgspec.json.decode(diagnose(sick).to_json())
    assert body["verdict"] == "fatal"
    assert body["findings"][0]["evidence"][0]["unit"] == "decades"
