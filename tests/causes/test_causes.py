"""Shares add up, conditions name what they should, and the words can be read by a tired person."""

from __future__ import annotations

import math
import re

import pytest
import torch

from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.lab.tasks import setup
from gradwell.records.net import NetConfig
from gradwell.records.verdict import Diagnosis
from gradwell.shelf import shelf

CAUSES = shelf("gradwell.causes")
HEADINGS = ["What it is", "How it is measured", "What changes it", "Source"]
SHARES = {
    "activation_slope", "weight_gain", "normalization_gain", "between_modules", "other_layers", "unexplained",
}  # fmt: skip
NETS = (
    NetConfig(depth=20, activation="sigmoid"),
    NetConfig(depth=12),
    NetConfig(depth=8, activation="gelu", norm="layer", init="torch_default", gain=0.1),
    NetConfig(depth=12, init="he", gain=3.0),
    NetConfig(depth=30, init="he", norm="batch"),
    NetConfig(kind="residual", depth=24, init="he"),
    NetConfig(kind="cnn", depth=12, width=16),
    NetConfig(depth=12, dropout=0.5),
    NetConfig(depth=70, activation="sigmoid"),
)


def checked(config: NetConfig) -> Diagnosis:
    torch.set_num_threads(1)
    return diagnose(measure(*setup(config)))


@pytest.mark.parametrize("cause", CAUSES)
def test_is_a_page(cause):
    page = CAUSES[cause].page
    assert list(page.blocks) == HEADINGS
    assert all(page.blocks.values())
    assert page.title.endswith(".") or page.text.split("\n\n")[0].endswith(".")
    symptoms = shelf("gradwell.symptoms")
    assert CAUSES[cause].fact("EXPLAINS")
    assert all(symptom in symptoms for symptom in CAUSES[cause].fact("EXPLAINS"))


@pytest.mark.parametrize("config", NETS, ids=str)
def test_shares_add_up_to_what_the_profile_lost(config):
    diagnosis = checked(config)
    for index, finding in enumerate(diagnosis.findings):
        shares = [a for a in diagnosis.causes(index) if a.kind == "share"]
        if finding.symptom not in {"vanishing_gradient", "exploding_gradient"}:
            assert not shares
            continue
        assert {a.cause for a in shares} == SHARES
        assert math.fsum(a.share for a in shares) == pytest.approx(1, abs=1e-6)
        gains = [row.log10_gain for row in diagnosis.profile if row.flow and row.flow > 0.5]
        total = next(gain for gain in gains if math.isfinite(gain))
        assert math.fsum(a.decades for a in shares) == pytest.approx(total, abs=1e-6)
        in_order = [a.share for a in shares]
        assert in_order == sorted(in_order, reverse=True)


@pytest.mark.parametrize("config", NETS, ids=str)
def test_summaries_are_words(config):
    diagnosis = checked(config)
    for attribution in diagnosis.attributions:
        assert attribution.summary
        assert not attribution.summary.endswith(".")
        assert "None" not in attribution.summary
        assert "nan" not in re.findall(r"\w+", attribution.summary)
    str(diagnosis)


def summary(diagnosis: Diagnosis, cause: str) -> str:
    return next(a.summary for a in diagnosis.attributions if a.cause == cause)


def test_the_words_of_a_sigmoid_net():
    diagnosis = checked(NetConfig(depth=20, activation="sigmoid"))
    assert summary(diagnosis, "activation_slope") == "Sigmoid passes on 0.25 of the gradient a layer, 20 layers"
    assert summary(diagnosis, "weight_gain") == (
        "|W| of Linear (64 -> 64) passes on 0.58 of the gradient a layer where 1.0 keeps it, 20 layers"
    )
    assert summary(diagnosis, "depth_without_shortcut") == "21 layers in a row without a shortcut, hidden.0 to head"
    first = diagnosis.causes(0)[0]
    assert first.cause == "activation_slope"
    assert first.share == pytest.approx(0.72, abs=0.02)


def test_the_words_of_a_healthy_net_are_few():
    diagnosis = checked(NetConfig(depth=12, init="he"))
    assert diagnosis.findings == []
    assert diagnosis.attributions == []


def test_a_residual_sum_without_a_scale_is_a_condition():
    diagnosis = checked(NetConfig(kind="residual", depth=24, init="he"))
    conditions = {a.cause for a in diagnosis.attributions if a.kind == "condition"}
    assert "shortcut_growth" in conditions
    assert "depth_without_shortcut" not in conditions


def test_an_input_far_off_centre_is_a_condition():
    diagnosis = checked(NetConfig(depth=3, init="he", input_shift=10.0))
    assert diagnosis.findings[0].symptom == "rank_collapse"
    assert [a.cause for a in diagnosis.causes(0)] == ["input_scale"]
    assert summary(diagnosis, "input_scale").startswith("the input has")


def test_conditions_carry_no_decades():
    for config in NETS:
        for attribution in checked(config).attributions:
            if attribution.kind == "condition":
                assert attribution.decades is None
                assert attribution.share is None
