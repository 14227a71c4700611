"""What PyTorch does if nobody asks."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
layer.reset_parameters()
"""


def torch_default(fan_in: int, fan_out: int, *, activation: str = "tanh") -> Variances:
    """PyTorch's own default for Linear, Conv and RNN layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), weights and biases.

    Formula:
        Var W = Var b = 1 / (3 fan_in), so sigma_w2 = 1/3 and sigma_b2 = 1 / (3 fan_in); the activation is
        not looked at.

    When to use it:
        For shallow nets, and behind norms, where the scale of the weights cancels.

    When it fails:
        In any plain deep net: chi is 1/6 for ReLU, 1/3 for tanh and 0.02 for sigmoid, so 50 layers of ReLU
        lose 19 decades of gradient norm and 50 of sigmoid 43.

    Source:
        torch 2.13, nn.Linear.reset_parameters (kaiming_uniform_ with a = sqrt 5); the `standard` init of
        Glorot and Bengio 2010.
    """
    check_layer(fan_in, fan_out, activation)
    # Var U(-a, a) = a^2 / 3
    return Variances(1 / 3, 1 / (3 * fan_in))
