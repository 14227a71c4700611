"""The unit matrix."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.eye_(layer.weight)
nn.init.zeros_(layer.bias)
"""


def identity(fan_in: int, fan_out: int, *, activation: str = "relu", gain: float = 1.0) -> Variances:
    """Starts a layer as the identity map (the IRNN recipe for recurrent weights).

    Formula:
        W = gain * I, b = 0; sigma_w2 = gain^2 min(fan_in, fan_out) / fan_out, the mean squared row norm.

    When to use it:
        Hidden-to-hidden weights of a ReLU RNN (IRNN, with clipping), and layers behind a shortcut.

    When it fails:
        In a plain stack: all units of a row of layers do the same, and the mean-field maps, which assume
        random weights, are approximate.

    Source:
        Le, Jaitly, Hinton 2015.
    """
    check_layer(fan_in, fan_out, activation)
    return Variances(gain**2 * min(fan_in, fan_out) / fan_out)
