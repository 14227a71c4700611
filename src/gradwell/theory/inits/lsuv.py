"""Layer-sequential unit variance."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer
from gradwell.theory.meanfield import second_moment

CODE = """\
for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    seen = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.detach().std()))
    for _ in range(10):
        model(x)
        if abs(seen[-1] - 1) < 0.1:
            break
        with torch.no_grad():
            layer.weight /= seen[-1]
    hook.remove()
"""


def lsuv(fan_in: int, fan_out: int, *, activation: str = "relu") -> Variances:
    """LSUV: orthonormal weights, then each layer scaled on data until its output has variance 1.

    Formula:
        W <- W / std(W x) layer by layer, in forward order; b = 0. Its fixed point has q = 1 in every layer,
        so sigma_w2 = 1 / V(1): that is what is returned, for all layers but the first.

    When to use it:
        Any feed-forward net, when one batch of data is at hand at the start.

    When it fails:
        It mends the forward signal only: the gradient keeps chi = D(1) / V(1), above 1 for tanh and GELU
        and 0.15 for sigmoid. With shared weights the second use undoes the first.

    Source:
        Mishkin and Matas 2016. The returned value is the mean-field limit, not a measurement.
    """
    check_layer(fan_in, fan_out, activation)
    # q = sigma_w^2 V(1) = 1
    return Variances(1 / second_moment(activation, 1.0))
