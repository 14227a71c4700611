"""Residual nets without norms."""

from __future__ import annotations

from gradwell.errors import UsageError
from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
blocks = 16  # residual blocks in the net; branches of two layers
nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
layer.weight.data.mul_(blocks**-0.5)  # the last layer of each branch: nn.init.zeros_(layer.weight)
nn.init.zeros_(layer.bias)
"""


def fixup(
    fan_in: int, fan_out: int, *, activation: str = "relu", blocks: int = 16, layers_per_branch: int = 2
) -> Variances:
    """Fixup: branches of a residual net start so small that L of them add up to order one.

    Formula:
        In a branch of m layers: the last layer is 0, the others are He's times L^(-1/(2m - 2)), so sigma_w2
        = 2 L^(-1/(m - 1)). Returned are the layers that are not last; biases are 0.

    When to use it:
        Residual nets without BatchNorm: with a scalar bias before each layer and activation and one scalar
        factor for each branch.

    When it fails:
        Without shortcuts (it is simply too small there). It wants strong regularisation (mixup), and its
        lowest layers start slowly.

    Source:
        Zhang, Dauphin, Ma 2019.
    """
    check_layer(fan_in, fan_out, activation)
    if blocks < 1 or layers_per_branch < 2:
        raise UsageError(
            f"fixup needs at least 1 block of at least 2 layers and was given {blocks} blocks of {layers_per_branch}; "
            "count the residual blocks and the layers in each branch."
        )
    # std factor L^(-1/(2m - 2)), squared
    return Variances(2.0 * blocks ** (-1 / (layers_per_branch - 1)))
