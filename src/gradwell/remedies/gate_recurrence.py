"""A gated cell, or gates that start open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_through_time", "", 1),
    Treats("exploding_through_time", "", 3),
)

_PLAIN = {"RNN", "RNNCell", ""}


def gate_recurrence(
    case: Case, *, to: str = "lstm", forget_bias: float | None = None, chrono: int = 0
) -> Prescription | None:
    """Gives the recurrent state a path with gain near 1: an LSTM instead of a plain RNN, with its forget gate open.

    `to`: "lstm" or "gru", in place of a plain RNN. `forget_bias`: start of the forget gate's bias (the update gate's
    for a GRU); None takes 2, and more where the loss asks about a long lag T: log(T - 1), at which the state keeps 1/e
    of itself over T steps. `chrono`: longest lag T; above 2 it draws the biases for lags up to T instead.

    What it does:
        Along the cell state the gradient is multiplied by the forget gate only. Over 100 steps: bias 0 gives 0.5^100 =
        8e-31, bias 1 gives 2.5e-14, bias 2 gives 3e-6, bias 5 gives 0.51. For lags up to T the chrono rule takes
        log of U(1, T - 1), and minus that for the input gate: the mean memory is then spread over 1 to T.

    In your code:
        from torch import nn

        # nn.LSTM(...) instead of nn.RNN(...); then, after `model = ...`:
        for m in model.modules():
            if isinstance(m, (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)):
                keep = slice(m.hidden_size, 2 * m.hidden_size)  # the second quarter (LSTM) or third (GRU)
                for name, bias in m.named_parameters():
                    if name.startswith("bias"):
                        bias.data[keep] = 2.0 if name.startswith("bias_ih") else 0.0

    What it costs:
        An LSTM has four times the weights of a plain RNN of the same size, a GRU three times.

    When it fails:
        With bias 0, where it forgets in a few steps. Beyond some hundred steps attention or shortcuts through time are
        needed. An open gate remembers the noise too. An LSTM's state is two tensors: where your code hands the state on
        by itself, take the GRU.

    Source:
        Hochreiter and Schmidhuber 1997; Jozefowicz et al. 2015; Tallec and Ollivier 2018 (chrono).
    """
    plain = case.recurrent in _PLAIN
    forget_bias = _open_for(case) if forget_bias is None else forget_bias
    to = "gru" if case.recurrent == "RNNCell" else to
    text = _IMPORT + (_swap(to, case.recurrent) if plain else "") + _bias(forget_bias, chrono)
    kept = f"the state keeps about {_keep(forget_bias):.0%} a step"
    expected = f"the state keeps what it holds for up to {chrono} steps" if chrono else kept
    places = [site.source for site in case.run.sites if site.kind == case.recurrent and site.source]
    settings = ({"to": to} if plain else {}) | ({"chrono": chrono} if chrono else {"forget_bias": forget_bias})
    return advise(gate_recurrence, expected=expected, code=text, at=places, **settings)


def _open_for(case: Case) -> float:
    """The bias for the lag that the loss asks about; 2 where none is known."""
    lag = next((e.value for e in case.finding.evidence if e.quantity == "lag that the loss asks about"), None)
    return 2.0 if not lag or lag < 2 else max(2.0, round(math.log(lag - 1), 1))


def _keep(bias: float) -> float:
    """Value of a gate at its bias, the logistic function."""
    return 1 / (1 + math.exp(-bias))


_IMPORT = """import torch
from torch import nn
"""


def _swap(to: str, kind: str) -> str:
    """Gated layers in place of plain ones, by name."""
    if kind == "RNNCell":
        made, like_rnn = "nn.GRUCell(m.input_size, m.hidden_size, m.bias)", ""
    else:
        made = f"""{"nn.GRU" if to == "gru" else "LSTM"}(
        m.input_size, m.hidden_size, m.num_layers, bias=m.bias, batch_first=m.batch_first, dropout=m.dropout,
        bidirectional=m.bidirectional,
    )"""
        like_rnn = "" if to == "gru" else _LIKE_RNN
    return f"""
# nn.{to.upper()}(...) instead of nn.{kind or "RNN"}(...) where the model is built, or from outside:
{like_rnn}names = [n for n, m in model.named_modules() if type(m) is nn.{kind or "RNN"}]
for name in names:
    m = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    new = {made}
    setattr(model.get_submodule(parent), child, new)
"""


_LIKE_RNN = """class LSTM(nn.LSTM):  # called like an RNN, with no state or zeros: what it hands out is h alone
    def forward(self, input, hx=None):
        assert hx is None or not hx.any(), "a state is handed on: take nn.GRU"
        out, (last, _) = super().forward(input)
        return out, last


"""


def _bias(value: float, chrono: int) -> str:
    if not chrono:
        return f"""
for m in model.modules():
    if isinstance(m, (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)):
        keep = slice(m.hidden_size, 2 * m.hidden_size)  # the second quarter (LSTM) or third (GRU) keeps
        for name, bias in m.named_parameters():
            if name.startswith("bias"):
                bias.data[keep] = {value:g} if name.startswith("bias_ih") else 0.0"""
    return f"""
for m in model.modules():
    if isinstance(m, (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)):
        size = m.hidden_size
        for name, bias in m.named_parameters():
            if name.startswith("bias"):  # input gate, then the gate that keeps
                keep = torch.zeros(size)
                if name.startswith("bias_ih"):
                    keep.uniform_(1, {chrono} - 1).log_()
                bias.data[size : 2 * size] = keep
                if isinstance(m, (nn.LSTM, nn.LSTMCell)):
                    bias.data[:size] = -keep"""


GRID = (
    {"to": "lstm", "forget_bias": 1.0},
    {"to": "lstm", "forget_bias": 2.0},
    {"to": "gru"},
    {"to": "lstm", "chrono": 50},
)


@acting
def apply(setup: TrainSetup, *, to: str = "lstm", forget_bias: float = 2.0, chrono: int = 0) -> None:
    """Gated layers in place of plain ones, with the gate that keeps open; gated ones only get their biases."""
    from gradwell.surgery.recurrent import gate

    gate(setup, to, forget_bias, chrono)
