"""What repetition does to the gradient: powers of one matrix, the memory of gates, mean field through time.

Axis letters: T time steps, H hidden units.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from gradwell.errors import UsageError
from gradwell.shelf import shelf
from gradwell.theory.meanfield import depth_scale, fixed_point, signal_by_layer, squared_slope
from gradwell.theory.nonlinearity import Activation, resolve
from gradwell.theory.quadrature import Floats


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise UsageError(f"steps is a number of time steps and was given as {steps}; give 0 or more.")


def power_gain(weight: npt.ArrayLike, steps: int) -> float:
    """log10 of the norm gain of a linear recurrence through `steps` steps.

    `weight` is the scalar w (log10 |w|^T) or the matrix (H, H), for which it is the isotropic gain
    1/2 log10(|W^T|_F^2 / H) of the T-th power: the root mean square over random directions.

    >>> round(10 ** power_gain(0.9, 50), 8)
    0.00515378
    """
    _check_steps(steps)
    matrix = np.atleast_2d(np.asarray(weight, dtype=float))
    if matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"A recurrence needs a square matrix and was given shape {matrix.shape}.")
    scale, total = np.eye(matrix.shape[0]), 0.0
    for _ in range(steps):
        # the product is rescaled at each step: |W|^T leaves the range of floats soon
        scale = matrix @ scale
        size = float(np.linalg.norm(scale))
        if size == 0:
            return -math.inf
        scale, total = scale / size, total + math.log10(size)
    return total + math.log10(float(np.linalg.norm(scale)) / math.sqrt(matrix.shape[0]))


def pascanu_bound(activation: str, largest_singular_value: float) -> float:
    """Upper bound on the norm gain per time step: sup |phi'| times the largest singular value of W_hh.

    Below 1 the gradient must vanish through time; above 1 it may explode (necessary, not sufficient).
    Source: Pascanu, Mikolov, Bengio 2013.
    """
    return float(shelf("gradwell.theory.activations")[activation].fact("MAX_SLOPE")) * largest_singular_value


def lstm_forget_path(bias: float, steps: int) -> float:
    """log10 of the gain along the LSTM's cell path: the forget gate sigmoid(bias) to the power of steps.

    With inputs and recurrent weights at zero; real gates scatter around this.

    >>> round(lstm_forget_path(0.0, 100), 3)
    -30.103
    """
    _check_steps(steps)
    # log10 sigmoid(b)^T = -T ln(1 + exp(-b)) / ln 10
    return -steps * float(np.logaddexp(0.0, -bias)) / math.log(10)


def chrono_bias(longest: float) -> float:
    """The largest forget bias of the chrono initialisation, ln(T - 1), for dependencies of up to T steps.

    Chrono draws b_f = ln U(1, T - 1) and sets b_i = -b_f; at this bias the gate is 1 - 1/T, so that T steps keep
    a fraction 1/e. Source: Tallec and Ollivier 2018.

    >>> round(chrono_bias(100), 6)
    4.59512
    """
    if not longest > 2:
        raise UsageError(f"chrono needs dependencies longer than 2 steps and was given {longest}.")
    return math.log(longest - 1)


def rnn_through_time(
    activation: Activation,
    steps: int,
    sigma_w2: float,
    *,
    sigma_u2: float = 0.0,
    input_second_moment: float = 1.0,
    sigma_b2: float = 0.0,
) -> ThroughTime:
    """Mean field of a vanilla RNN h_t = phi(W h_{t-1} + U x_t + b), started at h = 0.

    q_t = sigma_w2 V(q_{t-1}) + sigma_u2 R + sigma_b2, R the input's second moment per element, and
    chi_t = sigma_w2 D(q_t). Approximate: it treats W as redrawn at each step, as the theory of wide nets
    does; at finite width the one matrix repeats and long products follow its spectrum (`power_gain`).
    Source: Chen, Pennington, Schoenholz 2018.
    """
    _check_steps(steps)
    unit, drive = resolve(activation), sigma_u2 * input_second_moment + sigma_b2
    q_star = fixed_point(unit, sigma_w2, drive, start=drive or None)
    chi = sigma_w2 * squared_slope(unit, q_star)
    gains = np.zeros(0)
    if steps:
        # layer 1 of the recursion is linear in an input of size 0: q_1 = drive, q_2 = sigma_w2 V(q_1) + drive ...
        gains = signal_by_layer(unit, steps, sigma_w2, drive, input_second_moment=0.0).log10_gain
    return ThroughTime(q_star, chi, depth_scale(chi), gains)


class ThroughTime(msgspec.Struct, frozen=True):
    """Mean field of an RNN: the settled q and chi, steps until an e-fold, and the decades at each step (T,)."""

    q_star: float
    chi: float
    xi: float
    log10_gain: Floats
