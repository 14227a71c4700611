"""Weights that turn but do not stretch."""

from __future__ import annotations

from gradwell.theory.inits._variances import Variances, check_layer

CODE = """\
nn.init.orthogonal_(layer.weight)
nn.init.zeros_(layer.bias)
"""


def orthogonal(fan_in: int, fan_out: int, *, activation: str = "tanh", gain: float = 1.0) -> Variances:
    """Random orthogonal weights: in a linear net every direction keeps its length, not only the average one.

    Formula:
        W = gain * Q, Q from the QR of a Gaussian with the signs of diag R; b = 0. For fan_out <= fan_in
        sigma_w2 = gain^2; for wider outputs the columns are orthonormal and sigma_w2 = gain^2 fan_in /
        fan_out.

    When to use it:
        Deep linear nets, tanh and hardtanh with small q, hidden-to-hidden weights of RNNs.

    When it fails:
        It cannot make ReLU isometric (give it gain sqrt 2 to be critical at least); a convolution reshaped
        to a matrix is not isometric (see `delta_orthogonal`).

    Source:
        Saxe, McClelland, Ganguli 2014.
    """
    check_layer(fan_in, fan_out, activation)
    # |W|_F^2 = gain^2 min(fan_in, fan_out), shared by the rows
    return Variances(gain**2 * fan_in / max(fan_in, fan_out))
