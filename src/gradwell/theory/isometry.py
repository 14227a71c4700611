"""Dynamical isometry: how evenly a deep net stretches different directions."""

from __future__ import annotations

from gradwell.errors import UsageError
from gradwell.theory.meanfield import slope_kurtosis
from gradwell.theory.nonlinearity import Activation


def eigenvalue_variance(activation: Activation, depth: int, *, q: float = 1.0, orthogonal: bool = False) -> float:
    """Variance of the eigenvalues of J J^T over their mean squared, after `depth` layers at variance q.

    L (kappa - 1 - s1), with kappa = E phi'^4 / (E phi'^2)^2, s1 = -1 for Gaussian and 0 for orthogonal weights. 0 is
    a perfect isometry: only orthogonal weights with a slope of constant size reach it (linear; tanh and
    hardtanh as q -> 0); ReLU never does. In the limit of infinite width at constant q.
    Source: Pennington, Schoenholz, Ganguli 2017.

    >>> round(eigenvalue_variance("relu", 8, orthogonal=True), 9)
    8.0
    """
    if depth < 0:
        raise UsageError(f"depth is a number of layers and was given as {depth}; give 0 or more.")
    # Var = L (mu_2 / mu_1^2 - 1 - s_1), mu_k = E phi'^(2k)
    return depth * (slope_kurtosis(activation, q) - 1 - (0.0 if orthogonal else -1.0))
