"""Variance 1 / fan_in."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
nn.init.zeros_(layer.bias)
"""


def lecun(fan_in: int, fan_out: int, *, activation: str = "tanh") -> Variances:
    """LeCun: unit variance of the pre-activations for inputs of unit second moment.

    Formula:
        Var W = 1 / fan_in, b = 0; sigma_w2 = 1.

    When to use it:
        With SELU (its own choice), tanh, and linear layers.

    When it fails:
        With ReLU: half of the squared gradient is lost at each layer.

    Source:
        LeCun, Bottou, Orr, Mueller 1998; Klambauer et al. 2017 for SELU.
    """
    check_layer(fan_in, fan_out, activation)
    return Variances(1.0)
