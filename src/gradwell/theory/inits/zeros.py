"""All weights zero."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.zeros_(layer.weight)
nn.init.zeros_(layer.bias)
"""


def zeros(fan_in: int, fan_out: int, *, activation: str = "tanh") -> Variances:
    """All weights and biases zero: every unit of a layer computes the same and no gradient comes through.

    Formula:
        W = 0, b = 0; sigma_w2 = sigma_b2 = 0.

    When to use it:
        On the last layer of a residual branch, on the factor of a branch (ReZero, SkipInit), on a
        classifier.

    When it fails:
        Anywhere else: the gradient to the layers below is exactly zero, and units stay alike.

    Source:
        Goyal et al. 2017 (zero-gamma); Bachlechner et al. 2020 (ReZero).
    """
    check_layer(fan_in, fan_out, activation)
    return Variances(0.0)
