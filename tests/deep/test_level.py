"""Level deep as a person meets it: records, text, fallbacks."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from gradwell.errors import UsageError
from gradwell.journeys.check import check, measure
from gradwell.journeys.diagnose import diagnose
from gradwell.records.run import DEEP_PARAM_COLUMNS, DEEP_SITE_COLUMNS, header_line, load, step_line
from gradwell.records.text import deep_words
from gradwell.report.html import report_html

from . import nets

MEASUREMENTS = {"attribution", "chi", "forward gain", "random gradient", "rank", "signal to noise"}
KEYS = ("chi", "random_gain", "alignment", "forward_gain", "path_flow", "rank", "gsnr")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def reasons(diagnosis: Any) -> dict[str, str]:
    return {item.symptom: item.reason for item in diagnosis.not_checked if item.symptom in MEASUREMENTS}


def test_the_flow_part_is_the_same_at_both_levels():
    flow = measure(*nets.build(nets.sigmoid_chain)).steps[0]
    deep = measure(*nets.build(nets.sigmoid_chain), level="deep").steps[0]
    for column, values in flow.sites.items():
        assert deep.sites[column] == values
    assert deep.params["grad_rms"] == flow.params["grad_rms"]
    assert flow.deep is None
    assert not set(DEEP_SITE_COLUMNS) & set(flow.sites)


def test_json_has_the_new_keys_and_null_at_level_flow():
    model, batch, loss = nets.build(nets.sigmoid_chain)
    deep = json.loads(check(model, batch, loss, None, "deep").to_json())
    flow = json.loads(check(model, batch, loss).to_json())
    assert all(isinstance(deep["profile"][2][key], float) for key in KEYS)
    assert all(flow["profile"][2][key] is None for key in KEYS)
    assert flow["deep"] is None
    assert deep["deep"]["nodes"] == 4


def test_a_record_read_back_gives_the_same_diagnosis(tmp_path):
    run = measure(*nets.build(nets.mixture), level="deep")
    (tmp_path / "run.jsonl").write_bytes(header_line(run.header) + step_line(run.steps[0]))
    again = load(tmp_path)
    assert again.steps[0] == run.steps[0]
    assert set(again.header.columns) >= {*DEEP_SITE_COLUMNS, *DEEP_PARAM_COLUMNS}
    assert diagnose(again) == diagnose(run)


def test_the_text_says_what_the_model_alone_does():
    diagnosis = check(*nets.build(nets.sigmoid_chain), None, "deep")
    assert "\nDeeper\n" in str(diagnosis)
    said = deep_words(diagnosis)
    chi = 10 ** (2 * diagnosis.deep.random_total / 12)
    assert chi == pytest.approx(0.0193, rel=0.1)  # of a sigmoid at PyTorch's default init and width 16
    assert said[0].startswith("the model alone: -")
    assert f"(chi {chi:.2g} a layer); this loss adds " in said[0]
    assert said[1] == "the wiring alone: 0.0 decades if every layer had gain 1"
    assert said[2].startswith("signal to noise of one sample's gradient: ")
    assert said[3].startswith("rank of the last hidden layer: the samples differ in ")
    assert "(chi " not in deep_words(diagnose(measure(*nets.build(nets.unet), level="deep")))[0]
    assert "Deeper" not in str(check(*nets.build(nets.sigmoid_chain)))
    page = report_html(diagnosis)
    assert f"<li>{said[1]}</li>" in page


def test_an_unknown_level_is_refused():
    with pytest.raises(UsageError, match="'flow' or 'deep'"):
        check(*nets.build(nets.sigmoid_chain), None, "molecular")


# ------------------------------------------------------------------ what can go wrong


def test_a_model_that_runs_only_once_falls_back_to_level_flow():
    model, batch, loss = nets.build(nets.sigmoid_chain)
    calls = []

    def once(m: Any, b: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("only once")
        return loss(m, b)

    diagnosis = check(model, batch, once, None, "deep")
    plain = check(model, batch, loss)
    assert diagnosis.findings == plain.findings
    assert diagnosis.attributions == plain.attributions
    assert set(reasons(diagnosis)) == MEASUREMENTS
    assert all("ValueError: only once" in reason for reason in reasons(diagnosis).values())


def test_the_models_own_exception_passes_in_the_first_pass():
    model, batch, _ = nets.build(nets.sigmoid_chain)

    def fails(m: Any, b: Any) -> Tensor:
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        check(model, batch, fails, None, "deep")


def test_a_fault_of_ours_costs_only_what_it_was_about(monkeypatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("gradwell.probe.gates.follow", fails)
    monkeypatch.setattr("gradwell.probe.ranks._rank", fails)
    diagnosis = check(*nets.build(nets.sigmoid_chain), None, "deep")
    assert set(reasons(diagnosis)) == {"attribution", "rank"}
    assert diagnosis.deep.random_total is not None
    assert diagnosis.findings


def test_a_gradient_that_differs_from_pass_to_pass_is_not_attributed():
    source = torch.Generator().manual_seed(1)
    model = nets.Free(lambda m, x: m.b(m.a(x) * torch.randn(16, generator=source).exp()), a=nets.linear(),
                      b=nets.linear(fan_out=3))  # fmt: skip
    diagnosis = check(model, nets.labelled(), nets.classify, None, "deep")
    assert "another gradient" in reasons(diagnosis)["attribution"]
    assert diagnosis.deep.wiring is None


def test_where_the_gradient_is_exactly_zero_the_rest_is_measured():
    diagnosis = check(*nets.build(lambda: nets.sigmoid_chain(70)), None, "deep")
    assert set(reasons(diagnosis)) == {"attribution"}
    assert diagnosis.deep.random_total < -50
    assert diagnosis.profile[1].chi == pytest.approx(0.06, rel=0.3)
    shares = [a for a in diagnosis.attributions if a.kind == "share"]
    assert shares  # those of level flow


def test_two_models_in_a_compiled_wrapping_are_not_looked_into():
    class OptimizedModule(nn.Module):
        """What torch.compile returns, by name; a real one needs a compiler."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner

        def forward(self, x: Tensor) -> Tensor:
            return self._orig_mod(x)

    model, batch, loss = nets.build(nets.sigmoid_chain)
    diagnosis = check(OptimizedModule(model), batch, loss, None, "deep")
    assert "compiled" in reasons(diagnosis)["attribution"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_off_in_the_second_pass_and_back_afterwards(reentrant):
    before = [checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator]
    model, batch, loss = nets.build(lambda: nets.pre_norm(3))
    plain = measure(model, batch, loss, level="deep").steps[0]
    inner = model[1:-1]
    wrapped = nets.Free(
        lambda m, x: m.last(checkpoint.checkpoint(m.inner, m.first(x), use_reentrant=reentrant)),
        first=model[0], inner=inner, last=model[-1],
    )  # fmt: skip
    run = measure(wrapped, batch, loss, level="deep")
    step = run.steps[0]
    assert "attribution" not in step.deep.not_measured
    parts = [(step.at("path_flow", i), step.at("leaf_gain", i)) for i in range(len(run.sites))]
    layers = math.fsum(flow * gain for flow, gain in parts if flow is not None)
    assert step.deep.wiring + layers + step.deep.rest == pytest.approx(step.total, abs=1e-4)
    if not reentrant:  # the first pass does not see into the other kind, which stays one piece of the wiring
        assert step.deep.wiring == pytest.approx(plain.deep.wiring, abs=1e-5)
    assert [checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator] == before


def test_fused_attention_is_computed_in_a_form_that_can_be_differentiated():
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        return m.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0])

    torch.manual_seed(0)
    model = nets.Free(forward, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16))
    diagnosis = check(model, (torch.randn(4, 6, 16), torch.randn(4, 6, 16)), nets.fit, None, "deep")
    assert reasons(diagnosis) == {}
    assert abs(diagnosis.deep.rest) < 1e-3 / math.log(10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_an_accelerator_gives_the_same_numbers():
    model, batch, loss = nets.build(nets.transformer)
    model.eval()
    here = measure(model, batch, loss, level="deep").steps[0]
    there = measure(model.cuda(), batch.cuda(), loss, level="deep").steps[0]
    assert there.deep.not_measured == here.deep.not_measured == {}
    assert there.deep.wiring == pytest.approx(here.deep.wiring, abs=1e-3)
    for column in DEEP_SITE_COLUMNS:
        assert there.sites[column] == pytest.approx(here.sites[column], rel=1e-2, abs=1e-3)
    assert there.params["gsnr"] == pytest.approx(here.params["gsnr"], rel=0.1, abs=1e-3)
