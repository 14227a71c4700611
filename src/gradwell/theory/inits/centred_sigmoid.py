"""The old `4 times Glorot` with the bias that makes it exact."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer
from gradwell.theory.meanfield import squared_slope
from gradwell.theory.nonlinearity import centred

CODE = """\
nn.init.normal_(layer.weight, std=4 * layer.in_features**-0.5)
with torch.no_grad():
    layer.bias.copy_(-0.5 * layer.weight.sum(1))
"""


def centred_sigmoid(fan_in: int, fan_out: int, *, activation: str = "sigmoid") -> Variances:
    """Gives a sigmoid net biases that take out the mean of 1/2, and the weights that then make it critical.

    Formula:
        b_i = -phi(0) sum_j W_ij, so that the next layer sees phi(x) - phi(0); Var W = 1 / (D(0) fan_in):
        sigma_w2 = 16 for sigmoid, 36 for hard_sigmoid.

    When to use it:
        Plain deep nets that must keep their sigmoids.

    When it fails:
        In the first layer, whose input is data and not a sigmoid's output (set its bias to 0). It drifts
        away in training as W and b move.

    Source:
        Derived here; the factor 4 on the weights is in Glorot's 2010 code for sigmoid layers.
    """
    check_layer(fan_in, fan_out, activation)
    # sigma_w^2 = 1 / phi'(0)^2 = 1 / D(0)
    return Variances(1 / squared_slope(centred(activation), 0.0), centred=True)
