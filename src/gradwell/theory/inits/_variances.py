"""What an initialisation is to the theory."""

from __future__ import annotations

import msgspec

from gradwell.errors import UsageError
from gradwell.shelf import shelf


class Variances(msgspec.Struct, frozen=True):
    """Spread of the weights and biases of one layer at initialisation.

    sigma_w2 = fan_in * Var(W_ij) and sigma_b2 = Var(b). `mean_w` is E W_ij: the mean-field maps assume 0
    and do not see the outlier of size fan_in * mean_w that another value brings. `centred` says that the bias
    is b_i = -phi(0) sum_j W_ij: read the numbers with `gradwell.theory.nonlinearity.centred(activation)`.
    """

    sigma_w2: float
    sigma_b2: float = 0.0
    mean_w: float = 0.0
    centred: bool = False


def check_layer(fan_in: int, fan_out: int, activation: str) -> None:
    """Raise UsageError unless both fans are 1 or more, UnknownId unless the activation is on its shelf."""
    shelf("gradwell.theory.activations")[activation]
    if fan_in < 1 or fan_out < 1:
        raise UsageError(f"fan_in and fan_out count units and were given as {fan_in} and {fan_out}; give 1 or more.")
