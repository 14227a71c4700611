"""How far back in time a recurrent cell's gradient reaches."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from gradwell.lab.experiment import Ask, Outcome, Table, disagreements
from gradwell.report.figures import Spec
from gradwell.report.lessons import PALETTE, Line, lines, predicted
from gradwell.theory import recurrent
from gradwell.theory.quadrature import Floats

OPTIONS = ("seeds",)
T, H, B = 100, 64, 32


def rnn_jacobian(ask: Ask) -> Outcome:
    """|dh_t/dh_k| against the lag: a tanh RNN forgets in a few steps, an LSTM as slowly as its forget bias says.

    What you see:
        Straight lines on a log axis: how much of the gradient is left. A default tanh RNN loses about a third of a
        decade a step; a linear one follows the powers of W_h; an LSTM whose gates stay at a forget bias of 0 loses 30
        decades in 100 steps, at 1 half of that, at 5 less than one. With random weights the gates scatter and h
        carries some gradient past the cell: 22 decades, not 30. Chrono spreads its units over all time scales. So the
        weight gradient of the RNN is made of the last few steps alone: long-term effects are there, and too small to
        see.

    Why:
        dh_t/dh_k is a product of t - k Jacobians W_h^T diag(phi'); along the LSTM's cell it is a product of forget
        gates.

    Formula:
        Linear: W_h^(t-k). Tanh: chi = sigma_w2 D(q*) a step. LSTM: sigma(b_f)^(t-k); b_f = 0: .5^100 = 7.9e-31, 1:
        2.5e-14, 5: .511; chrono b_f = ln U(1, T - 1). GRU: no closed form, measured only.

    Source:
        Bengio, Simard and Frasconi 1994; Pascanu et al. 2013; Jozefowicz et al. 2015; Tallec and Ollivier 2018.
    """
    seeds = ask.seeds or ask.pick(10, 2)
    cases = [
        "linear RNN",
        "tanh RNN",
        "tanh RNN, orthogonal W_h",
        "GRU",
        "LSTM, forget bias 0",
        "LSTM, forget bias 1",
        "LSTM, forget bias 5",
        "LSTM, chrono",
    ]
    rows: list[list[object]] = []
    checks: list[tuple[str, float, float]] = []
    curves: list[Line] = []
    facts: dict[str, float] = {}
    dotted: list[Line] = []
    for k, name in enumerate(ask.track(cases, "cells")):
        runs = [_lags(name, seed) for seed in range(seeds)]
        measured = np.array([r[0] for r in runs])
        low, mid, high = np.percentile(measured, [10, 50, 90], axis=0)
        theory = _theory(name)
        near = float(np.mean([r[1] for r in runs]))
        at = [None if theory is None else float(theory[lag]) for lag in (50, 100)]
        rows.append([name, at[0], float(mid[50]), at[1], float(mid[100]), float(mid[100]) / 100, near])
        facts[name] = float(mid[100])
        facts[f"near: {name}"] = near
        lags = list(range(T + 1))
        curves.append(Line(name, lags, list(mid), color=PALETTE[k], band=(list(low), list(high))))
        if theory is not None:
            facts[f"predicted: {name}"] = float(theory[100])
            dotted.append(predicted("predicted" if not dotted else " " * len(dotted), lags, list(theory)))
            checks.append((name, float(theory[100]), float(mid[100])))
    quiet: list[list[object]] = []
    for bias in (0.0, 1.0, 2.0, 5.0):
        left = _lags(f"LSTM, quiet, forget bias {bias:g}", 0)[0]
        quiet.append([bias, recurrent.lstm_forget_path(bias, T), float(left[-1])])
    columns = [
        "cell",
        "predicted, lag 50",
        "measured",
        "predicted, lag 100",
        "measured ",
        "decades a step",
        "share of |dL/dW_h| terms from the last 5 steps",
    ]
    said = "; ".join(f"{c.name}: {c.y[-1]:.1f}" for c in curves)
    figure = lines(
        [*curves, *dotted],
        title="How much of the gradient is left, by lag",
        x="steps back in time",
        y="log10 |dL/dh_k| / |dL/dh_T| (decades)",
        said=f"Decades after 100 steps: {said}.",
        height=340,
    )
    return Outcome(
        tables=[
            Table(f"{H} units, white noise of {H} features, T = {T}", columns, rows),
            Table(
                "LSTM with its gates at their bias alone, decades after 100 steps",
                ["forget bias", "predicted", "measured"],
                quiet,
            ),
        ],
        figures={"lags": figure, "linear-powers": _powers()},
        lines=[f"{r[0]}: {r[5]:+.3f} decades a step" for r in rows],
        deviations=disagreements(checks, within=4.0),
        facts={**facts, "quiet error": max(abs(float(str(p)) - float(str(m))) for _, p, m in quiet)},
    )


def _cell(name: str) -> nn.RNNCellBase:
    if name == "GRU":
        return nn.GRUCell(H, H)
    if not name.startswith("LSTM"):
        cell = nn.RNNCell(H, H)
        if "orthogonal" in name:
            nn.init.orthogonal_(cell.weight_hh)
        return cell
    lstm = nn.LSTMCell(H, H)
    bias = torch.zeros(4 * H)
    if "chrono" in name:
        # b_f = ln U(1, T - 1), b_i = -b_f
        bias[H : 2 * H] = torch.log(torch.empty(H).uniform_(1, T - 1))
        bias[:H] = -bias[H : 2 * H]
    else:
        bias[H : 2 * H] = float(name.rsplit(" ", 1)[1])
    lstm.bias_ih.data.copy_(bias)
    lstm.bias_hh.data.zero_()
    if "quiet" in name:
        lstm.weight_ih.data.zero_()
        lstm.weight_hh.data.zero_()
    return lstm


def _lags(name: str, seed: int) -> tuple[Floats, float]:
    """log10 of what is left of a random cotangent at the last state after each lag, and the share of near terms.

    For an LSTM the state is the cell c; for the others h.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cell = _cell(name).double()
        x = torch.randn(T, B, H, dtype=torch.float64)
        states, hidden = _run(cell, x, linear=name.startswith("linear"))
        cotangent = torch.randn(B, H, dtype=torch.float64)
        grads = torch.autograd.grad((states[-1] * cotangent).sum(), states)
    left = np.array([math.log10(max(float(g.norm() / cotangent.norm()), 1e-320)) for g in reversed(grads)])
    # a step's term in dL/dW_h is delta_t h_{t-1}^T
    terms = np.array([float(g.norm()) * float(h.norm()) for g, h in zip(grads[1:], hidden, strict=True)])
    return left, float(terms[-5:].sum() / max(terms.sum(), 1e-300))


def _run(cell: nn.RNNCellBase, x: Tensor, *, linear: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The states (T + 1) that the gradient is taken by, and h before each step (T)."""
    h = torch.zeros(B, H, dtype=torch.float64, requires_grad=True)
    c = torch.zeros(B, H, dtype=torch.float64, requires_grad=True)
    lstm = isinstance(cell, nn.LSTMCell)
    states, hidden = [c if lstm else h], []
    for step in x:
        hidden.append(h.detach())
        if lstm:
            h, c = cell(step, (h, c))
        elif linear:
            h = step @ cell.weight_ih.T + h @ cell.weight_hh.T
        else:
            h = cell(step, h)
        states.append(c if lstm else h)
    return states, hidden


def _theory(name: str) -> Floats | None:
    lags = np.arange(T + 1)
    if name == "GRU":
        return None
    if name == "linear RNN":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weight = _cell(name).weight_hh.detach().double().numpy()
        return np.array([recurrent.power_gain(weight, int(k)) for k in lags])
    if "tanh" in name:
        w2 = 1.0 if "orthogonal" in name else 1 / 3
        found = recurrent.rnn_through_time("tanh", T, w2, sigma_u2=1 / 3, sigma_b2=2 / (3 * H))
        return np.concatenate([[0.0], np.cumsum(found.log10_gain[::-1])])
    if "chrono" in name:
        biases = np.log(np.linspace(1, T - 1, 2000))
        # root mean square over units of sigma(b_f)^k
        gates = -np.logaddexp(0.0, -biases)
        return np.array([0.5 * math.log10(float(np.mean(np.exp(2 * k * gates)))) for k in lags])
    bias = float(name.rsplit(" ", 1)[1])
    return np.array([recurrent.lstm_forget_path(bias, int(k)) for k in lags])


def _powers() -> Spec:
    steps = list(range(T + 1))
    curves = [Line(f"w = {w:g}", steps, [recurrent.power_gain(w, t) for t in steps]) for w in (0.5, 0.9, 1.0, 1.1, 1.5)]
    return lines(
        curves,
        title="The powers of one number",
        x="steps",
        y="decades (log10)",
        said="0.9^50 = 0.00515 and 1.1^50 = 117: only w = 1 keeps the gradient.",
    )
