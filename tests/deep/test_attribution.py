"""Aumann-Shapley attribution: it adds up on every wiring, and equals a brute-force twin."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradwell.errors import NotMeasurable
from gradwell.journeys.check import measure
from gradwell.journeys.diagnose import diagnose
from gradwell.measure.attribution import deep_ledger, follow
from gradwell.measure.flow import ledger
from gradwell.probe import gates
from gradwell.records.run import Run

from . import nets

LEFT = 1e-3 / math.log(10)
"""What the quadrature may leave, decades."""
CAUSES = ("activation_slope", "weight_gain", "normalization_gain", "between_modules", "other_layers", "unexplained")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@functools.cache
def deep(net: Any) -> Run:
    return measure(*nets.build(net), level="deep")


def told(run: Run) -> float:
    """Wiring and layers together, decades."""
    step = run.steps[0]
    parts = [(step.at("path_flow", i), step.at("leaf_gain", i)) for i in range(len(run.sites))]
    return step.deep.wiring + math.fsum(flow * gain for flow, gain in parts if flow is not None)


@pytest.mark.parametrize("name", nets.NETS)
def test_wiring_and_layers_add_up_to_the_total(name):
    run = deep(nets.NETS[name])
    step = run.steps[0]
    assert "attribution" not in step.deep.not_measured
    assert abs(step.deep.rest) < LEFT
    assert told(run) == pytest.approx(step.total, abs=LEFT)
    book = deep_ledger(run.sites, step)
    assert math.fsum(book.share(cause) for cause in CAUSES) == pytest.approx(step.total, abs=1e-9)


def test_more_nodes_are_taken_where_few_leave_a_rest():
    assert deep(nets.sigmoid_chain).steps[0].deep.nodes == 4
    assert deep(nets.residual_sigmoid).steps[0].deep.nodes > 8


def test_on_a_chain_every_flow_is_1_and_the_wiring_nothing():
    run = deep(nets.sigmoid_chain)
    step = run.steps[0]
    flows = [flow for flow in step.sites["path_flow"] if flow is not None]
    assert len(flows) == 24  # all but the source
    assert flows == pytest.approx([1.0] * 24, abs=1e-5)
    assert step.deep.wiring == pytest.approx(0, abs=1e-5)
    flat, full = ledger(run.sites, step), deep_ledger(run.sites, step)
    for cause in CAUSES:
        assert full.share(cause) == pytest.approx(flat.share(cause), abs=1e-4)


def test_a_healthy_deep_net_stays_healthy_whatever_its_wiring_gives():
    """The wiring of 24 blocks is worth decades, and the layers take as many back: no reason to worry."""
    diagnosis = diagnose(deep(nets.pre_norm))
    assert diagnosis.deep.wiring > 2
    assert diagnosis.verdict in ("healthy", "mild")
    assert not [f for f in diagnosis.findings if f.symptom in ("vanishing_gradient", "exploding_gradient")]


def test_the_causes_of_a_finding_take_their_shares_from_it():
    diagnosis = diagnose(deep(he_residual))
    (finding,) = [f for f in diagnosis.findings if f.symptom == "exploding_gradient"]
    shares = [a for a in diagnosis.causes(diagnosis.findings.index(finding)) if a.kind == "share"]
    source = next(row.log10_gain for row in diagnosis.profile if row.log10_gain is not None)
    assert math.fsum(a.decades for a in shares) == pytest.approx(source)
    between = next(a.decades for a in shares if a.cause == "between_modules")
    assert between == pytest.approx(diagnosis.deep.wiring)


def he_residual() -> Any:
    model, batch, loss = nets.residual_sigmoid(30)
    for block in model[1:-1]:
        block.function = lambda m, x: x + torch.relu(m.a(x))
        nn.init.kaiming_normal_(block.a.weight, nonlinearity="relu")
    return model, batch, loss


# ------------------------------------------------------------------ the twin: explicit matrices, finite differences


class Twin:
    """A residual tanh net by hand: x + Wb tanh(Wa x); every leaf's backward is a matrix times a factor."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        weights = [w.detach().numpy() for name, w in model.named_parameters() if name.endswith("weight")]
        biases = [b.detach().numpy() for name, b in model.named_parameters() if name.endswith("bias")]
        x = batch[0].numpy() @ weights[0].T + biases[0]
        self.layers: list[tuple[Any, Any, Any]] = []
        for k in range(1, len(weights) - 1, 2):
            h = np.tanh(x @ weights[k].T + biases[k])
            self.layers.append((weights[k], 1 - h * h, weights[k + 1]))
            x = x + h @ weights[k + 1].T + biases[k + 1]
        self.last = weights[-1]
        out = x @ self.last.T + biases[-1]
        self.start = 2 * (out - batch[1].numpy()) / out.size
        self.players = 3 * len(self.layers) + 1

    def walk(self, logs: Any) -> tuple[float, list[float]]:
        """ln |d_source| with ln of each gate, in forward order, and the log-gain of each leaf."""
        gates = np.exp(logs)
        d = self.start @ self.last * gates[-1]
        gains = [np.log(np.linalg.norm(d) / np.linalg.norm(self.start))]
        for k in reversed(range(len(self.layers))):
            a, slope, b = self.layers[k]
            sizes = [d]
            for step, gate in zip((lambda v, b=b: v @ b, lambda v, s=slope: v * s, lambda v, a=a: v @ a),
                                  gates[3 * k : 3 * k + 3][::-1], strict=True):  # fmt: skip
                sizes.append(step(sizes[-1]) * gate)
            gains += [np.log(np.linalg.norm(v) / np.linalg.norm(u)) for u, v in itertools.pairwise(sizes)]
            d = d + sizes[-1]
        return float(np.log(np.linalg.norm(d))), gains[::-1]

    def attribute(self, points: int = 401, step: float = 1e-5) -> tuple[list[float], float]:
        """Mean flows by central differences and Simpson's rule, and the wiring."""
        _, gains = self.walk(np.zeros(self.players))
        gamma = np.array(gains)
        simpson = np.array([1, *[4, 2] * (points // 2 - 1), 4, 1]) / (3 * (points - 1))
        flows = np.zeros(self.players)
        for s, weight in zip(np.linspace(0, 1, points), simpson, strict=True):
            at = (s - 1) * gamma
            for m in range(self.players):
                nudge = np.zeros(self.players)
                nudge[m] = step
                flows[m] += weight * (self.walk(at + nudge)[0] - self.walk(at - nudge)[0]) / (2 * step)
        return flows.tolist(), self.walk(-gamma)[0] - math.log(np.linalg.norm(self.start))


def test_equals_brute_force_on_a_small_residual_net(monkeypatch):
    monkeypatch.setattr(gates, "follow", functools.partial(follow, tolerance=1e-8))
    torch.manual_seed(0)
    blocks = [
        nets.Free(lambda m, x: x + m.b(m.act(m.a(x))), a=nn.Linear(4, 4), act=nn.Tanh(), b=nn.Linear(4, 4))
        for _ in range(3)
    ]
    model = nn.Sequential(nn.Linear(4, 4), *blocks, nn.Linear(4, 2)).double()
    batch = (torch.randn(3, 4).double(), torch.randn(3, 2).double())
    run = measure(model, batch, nets.fit, level="deep")
    flows, wiring = Twin(model, batch).attribute()
    step = run.steps[0]
    assert [flow for flow in step.sites["path_flow"] if flow is not None] == pytest.approx(flows, abs=1e-7)
    assert step.deep.wiring == pytest.approx(wiring / math.log(10), abs=1e-8)
    assert step.deep.rest == pytest.approx(0, abs=LEFT)


# ------------------------------------------------------------------ properties


def test_the_scale_of_the_loss_changes_nothing():
    model, batch, loss = nets.build(lambda: nets.residual_sigmoid(8))
    one = measure(model, batch, loss, level="deep").steps[0]
    other = measure(model, batch, lambda m, b: 1e-9 * loss(m, b), level="deep").steps[0]
    assert one.sites["path_flow"] == pytest.approx(other.sites["path_flow"], abs=1e-4)
    assert one.sites["chi"] == pytest.approx(other.sites["chi"])
    assert one.deep.wiring == pytest.approx(other.deep.wiring, abs=1e-5)


def test_a_layer_of_gain_1_gets_nothing_and_its_gate_changes_nothing():
    torch.manual_seed(0)
    turn = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8, bias=False))
    model = nn.Sequential(nn.Linear(8, 8), turn, nn.Tanh(), nn.Linear(8, 2)).double()
    batch = (torch.randn(5, 8).double(), torch.randn(5, 2).double())
    run = measure(model, batch, nets.fit, level="deep")
    i = next(i for i, site in enumerate(run.sites) if site.site == "1")
    step = run.steps[0]
    assert step.at("path_flow", i) * step.at("leaf_gain", i) == pytest.approx(0, abs=1e-6)
    assert step.at("chi", i) == pytest.approx(1, rel=1e-5)


def test_forty_decades_fit_into_float32():
    """The loss is scaled so that neither the gradient nor its inverse leaves the format."""
    model, batch, loss = nets.build(lambda: nets.sigmoid_chain(40))
    run = measure(model, batch, lambda m, b: 1e-7 * loss(m, b), level="deep")
    step = run.steps[0]
    smallest = min(value for value in step.sites["delta_norm"] if value is not None)
    assert smallest < 1e-40  # 1 over it is no float32
    assert abs(step.deep.rest) < LEFT
    assert told(run) == pytest.approx(step.total, abs=0.02)


# ------------------------------------------------------------------ what cannot be differentiated twice


def test_a_gate_without_gradient_is_named_and_its_part_not_hidden():
    run = deep(nets.once)
    (item,) = [item for item in diagnose(run).not_checked if item.symptom == "attribution"]
    assert "comes through c:" in item.reason
    step = run.steps[0]
    i = next(i for i, site in enumerate(run.sites) if site.site == "c")
    assert step.at("path_flow", i) == 0
    assert step.deep.rest == pytest.approx(step.at("leaf_gain", i), abs=1e-4)
    book = deep_ledger(run.sites, step)
    assert math.fsum(book.share(cause) for cause in CAUSES) == pytest.approx(step.total)


def test_a_rest_that_stays_is_told_and_counts_as_unexplained():
    run = deep(nets.once_in_a_branch)
    step = run.steps[0]
    assert abs(step.deep.rest) > LEFT
    assert step.deep.nodes == 32
    assert "after 32 nodes and count as unexplained" in step.deep.not_measured["attribution"]
    book = deep_ledger(run.sites, step)
    assert math.fsum(book.share(cause) for cause in CAUSES) == pytest.approx(step.total)


# ------------------------------------------------------------------ the quadrature alone


def test_nodes_are_doubled_until_the_rest_is_small():
    """ln of a branch e^(g s) beside a 1: the flow is a logistic curve, its integral known."""
    gain = -30.0

    def evaluate(s: float) -> tuple[float, list[float]]:
        branch = math.exp(gain * (s - 0.4))
        return math.log1p(branch), [branch / (1 + branch)]

    rise = evaluate(1.0)[0] - evaluate(0.0)[0]
    path = follow([gain], rise, evaluate)
    assert path.nodes > 4
    assert path.flows == pytest.approx([rise / gain], abs=1e-3 / abs(gain))
    assert follow([gain], rise, evaluate, most=4).rest != pytest.approx(0, abs=1e-3)


def test_what_is_not_finite_is_not_integrated():
    with pytest.raises(NotMeasurable, match="range of its number format"):
        follow([1.0], 1.0, lambda s: (math.inf, [1.0]))
