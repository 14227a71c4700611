"""What finite width adds: the gain of one net scatters around the mean-field value.

ln |J u|^2 over Gaussian draws of the weights, u a fixed unit vector. Means and variances add up over
layers. In log10 of the norm divide the sd by 2 ln 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, polygamma, psi

from gradwell.errors import UsageError
from gradwell.theory.meanfield import slope_kurtosis
from gradwell.theory.nonlinearity import Activation
from gradwell.theory.quadrature import Floats

RELU_BETA = 5.0
"""n * variance of ln |J u|^2 a layer for wide ReLU nets (Hanin 2018)."""


def _check_width(width: int) -> None:
    if width < 1:
        raise UsageError(f"width is a number of units and was given as {width}; give 1 or more.")


def linear_log_gain(width: int) -> tuple[float, float]:
    """Exact mean and variance of ln |J u|^2 for one linear layer with sigma_w2 = 1.

    |J u|^2 = chi^2_n / n, so the mean is psi(n/2) + ln(2/n) and the variance psi_1(n/2), about 2/n.
    """
    _check_width(width)
    return float(psi(width / 2) + math.log(2 / width)), float(polygamma(1, width / 2))


def _active_units(width: int) -> tuple[Floats, Floats]:
    """The numbers K >= 1 of active ReLU units out of n and their probabilities, given that not all are dead."""
    k = np.arange(1, width + 1)
    log_p = gammaln(width + 1) - gammaln(k + 1) - gammaln(width - k + 1) - width * math.log(2)
    p = np.exp(log_p)
    return k.astype(float), p / p.sum()


def relu_log_gain(width: int) -> tuple[float, float]:
    """Exact mean and variance of ln |J u|^2 for one ReLU layer under He initialisation (sigma_w2 = 2).

    |J u|^2 = (2/n) chi^2_K, K ~ Binomial(n, 1/2) the number of active units; given K >= 1 (the layer is dead
    with probability 2^-n). Asymptotically -5/(2n) and 5/n. Source: Hanin 2018, Hanin and Nica 2020 for the
    asymptote; the exact law is derived here.

    >>> tuple(round(v, 6) for v in relu_log_gain(64))
    (-0.040109, 0.082997)
    """
    _check_width(width)
    k, p = _active_units(width)
    # E ln X = E[psi(K/2)] + ln 2 + ln(2/n),  Var ln X = E psi_1(K/2) + Var psi(K/2)
    centre = psi(k / 2)
    mean = float(p @ centre)
    variance = float(p @ polygamma(1, k / 2)) + float(p @ np.square(centre - mean))
    return mean + math.log(4 / width), variance


def dead_layer_probability(width: int) -> float:
    """Probability that every unit of a ReLU layer is off for a given input at initialisation: 2^-n."""
    _check_width(width)
    return 0.5**width


def log_gain(activation: Activation, width: int, q: float = 1.0) -> tuple[float, float]:
    """Mean and variance of ln(|J u|^2 / chi) for one layer of `width` units at pre-activation variance q.

    Exact for identity and ReLU. For the others the leading order in 1/n: variance (3 kappa - 1)/n and
    mean minus half of it, with kappa = E phi'^4 / (E phi'^2)^2; too small by some 10 % at n = 32.
    """
    name = activation if isinstance(activation, str) else activation.id
    if name == "identity":
        return linear_log_gain(width)
    if name == "relu":
        return relu_log_gain(width)
    _check_width(width)
    # beta = (3 kappa - 1)/n: linear 2/n, ReLU 5/n
    beta = (3 * slope_kurtosis(activation, q) - 1) / width
    return -beta / 2, beta


def log10_gain_spread(activation: Activation, widths: Sequence[int], q: float | Floats = 1.0) -> tuple[float, float]:
    """Mean shift and standard deviation, in decades of gradient norm, over the layers of a net.

    `widths` holds the units of each layer; `q` is one number or one for each layer. Add the shift to the
    mean-field `log10_gain`; two thirds of single nets then lie within one sd.

    >>> shift, sd = log10_gain_spread("relu", [64] * 20)
    >>> round(shift, 3), round(sd, 3)
    (-0.174, 0.28)
    """
    each = np.broadcast_to(np.asarray(q, dtype=float), (len(widths),))
    cases = list(zip(widths, each.tolist(), strict=True))
    law = {case: log_gain(activation, *case) for case in set(cases)}
    mean = sum(law[case][0] for case in cases)
    variance = sum(law[case][1] for case in cases)
    # ln |J u|^2 = 2 ln 10 log10 |J u|
    return mean / (2 * math.log(10)), math.sqrt(variance) / (2 * math.log(10))
