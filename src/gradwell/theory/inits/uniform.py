"""A fixed range, whatever the width."""

from __future__ import annotations

from gradwell.errors import UsageError
from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.uniform_(layer.weight, -0.1, 0.1)
nn.init.zeros_(layer.bias)
"""


def uniform(fan_in: int, fan_out: int, *, activation: str = "tanh", low: float = -0.1, high: float = 0.1) -> Variances:
    """Uniform weights in a fixed range, as people type it by hand.

    Formula:
        W ~ U(low, high), b = 0; sigma_w2 = fan_in (high - low)^2 / 12, mean_w = (low + high) / 2.

    When to use it:
        In small exercises, to show what goes wrong.

    When it fails:
        The gain depends on the width: at -0.1 .. 0.1 it is right for tanh near width 300 only. A range that
        is not symmetric (torch's nn.init.uniform_ draws from 0 to 1) adds an outlier of size fan_in *
        mean_w, which drives all units the same way.

    Source:
        torch nn.init.uniform_.
    """
    check_layer(fan_in, fan_out, activation)
    if not high >= low:
        raise UsageError(f"A range runs from low to high and was given as {low} to {high}; swap them.")
    return Variances(fan_in * (high - low) ** 2 / 12, mean_w=(low + high) / 2)
