"""A fixed standard deviation, whatever the width."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.normal_(layer.weight, std=0.01)
nn.init.zeros_(layer.bias)
"""


def normal(fan_in: int, fan_out: int, *, activation: str = "relu", std: float = 0.01) -> Variances:
    """Gaussian weights of a fixed standard deviation, 0.01 in many old recipes.

    Formula:
        W ~ N(0, std^2), b = 0; sigma_w2 = fan_in std^2.

    When to use it:
        Where a paper's recipe says so (0.02 in GPT-2 and DCGAN, both with norms).

    When it fails:
        In plain deep nets: with 0.01 the signal and the gradient of any net narrower than 10,000 vanish.

    Source:
        Krizhevsky, Sutskever, Hinton 2012 (0.01).
    """
    check_layer(fan_in, fan_out, activation)
    return Variances(fan_in * std**2)
