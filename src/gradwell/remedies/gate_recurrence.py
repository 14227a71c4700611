"""A gated cell, or gates that start open."""

from __future__ import annotations

import math

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

TREATS = (
    Treats("vanishing_through_time", "", 1),
    Treats("exploding_through_time", "", 3),
)

_PLAIN = {"RNN", "RNNCell", ""}


def gate_recurrence(case: Case, *, forget_bias: float = 2.0) -> Prescription | None:
    """Gives the recurrent state a path with gain near 1: an LSTM instead of a plain RNN, with its forget gate open.

    `forget_bias`: start of the forget gate's bias (the update gate's for a GRU).

    What it does:
        Along the cell state the gradient is multiplied by the forget gate only. Over 100 steps: bias 0 gives 0.5^100 =
        8e-31, bias 1 gives 2.5e-14, bias 2 gives 3e-6, bias 5 gives 0.51. For lags up to T the chrono rule takes
        log of U(1, T - 1).

    In your code:
        from torch import nn

        # nn.LSTM(...) instead of nn.RNN(...); then, after `model = ...`:
        for m in model.modules():
            if isinstance(m, (nn.LSTM, nn.GRU)):
                for name, bias in m.named_parameters():
                    if name.startswith("bias_ih"):  # the second quarter (LSTM) or third (GRU) is the gate that keeps
                        bias.data[m.hidden_size : 2 * m.hidden_size] = 2.0

    What it costs:
        An LSTM has four times the weights of a plain RNN of the same size, a GRU three times.

    When it fails:
        With bias 0, where it forgets in a few steps. Beyond some hundred steps attention or shortcuts through time are
        needed. An open gate remembers the noise too.

    Source:
        Hochreiter and Schmidhuber 1997; Jozefowicz et al. 2015; Tallec and Ollivier 2018 (chrono).
    """
    text = _bias(forget_bias)
    if case.recurrent in _PLAIN:
        text = f"# nn.LSTM(...) instead of nn.RNN(...) where the model is built (it returns h and c), then:\n{text}"
    expected = f"the state keeps about {_keep(forget_bias):.0%} a step"
    places = [site.source for site in case.run.sites if site.kind == case.recurrent and site.source]
    return advise(gate_recurrence, expected=expected, code=text, at=places, forget_bias=forget_bias)


def _keep(bias: float) -> float:
    """Value of a gate at its bias, the logistic function."""
    return 1 / (1 + math.exp(-bias))


def _bias(value: float) -> str:
    return f"""from torch import nn

for m in model.modules():
    if isinstance(m, (nn.LSTM, nn.GRU)):
        for name, bias in m.named_parameters():
            if name.startswith("bias_ih"):  # the second quarter (LSTM) or third (GRU) is the gate that keeps
                bias.data[m.hidden_size : 2 * m.hidden_size] = {value:g}"""
