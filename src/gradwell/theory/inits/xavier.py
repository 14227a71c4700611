"""Glorot's compromise between fan_in and fan_out."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.xavier_uniform_(layer.weight)
nn.init.zeros_(layer.bias)
"""


def xavier(fan_in: int, fan_out: int, *, activation: str = "tanh", gain: float = 1.0) -> Variances:
    """Xavier (Glorot): keeps the size of signals and of gradients of a linear net, as far as both can be kept.

    Formula:
        Var W = 2 gain^2 / (fan_in + fan_out), b = 0; sigma_w2 = 2 gain^2 fan_in / (fan_in + fan_out), 1 for
        square layers.

    When to use it:
        With tanh, softsign, hardtanh and other odd activations of slope 1 at zero.

    When it fails:
        With ReLU (chi = 1/2 a layer) and sigmoid (0.056); torch's gain of 5/3 for tanh is chaotic (chi =
        1.21).

    Source:
        Glorot and Bengio 2010.
    """
    check_layer(fan_in, fan_out, activation)
    # fan_in Var W = 2 g^2 fan_in / (fan_in + fan_out)
    return Variances(2 * gain**2 * fan_in / (fan_in + fan_out))
