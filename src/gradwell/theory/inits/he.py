"""He's initialisation for ReLU."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
nn.init.zeros_(layer.bias)
"""


def he(fan_in: int, fan_out: int, *, activation: str = "relu", negative_slope: float = 0.0) -> Variances:
    """He (Kaiming): makes up for the half that ReLU throws away.

    Formula:
        Var W = 2 / ((1 + a^2) fan_in) with a = negative_slope, b = 0; sigma_w2 = 2 / (1 + a^2), whatever
        the activation.

    When to use it:
        With ReLU and its leaky variants (give their slope as negative_slope).

    When it fails:
        With GELU, SiLU and Mish (50 layers lose 2 to 7 decades: see `critical`) and with sigmoid; with tanh
        it is chaotic (chi = 1.1). At width n the log of the squared gain still scatters with variance 5 L /
        n.

    Source:
        He et al. 2015, equations 10 and 14.
    """
    check_layer(fan_in, fan_out, activation)
    # sigma_w^2 = 2 / (1 + a^2)
    return Variances(2 / (1 + negative_slope**2))
