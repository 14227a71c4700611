"""Mean-field theory of plain deep nets: the q map, the c map, their fixed points and the gradient's gain.

For a layer h = W phi(h') + b with Var W_ij = sigma_w2 / fan_in and Var b = sigma_b2, both Gaussian and of
mean zero, in the limit of infinite width (Poole et al. 2016; Schoenholz et al. 2017). `keep` is the
probability that dropout keeps a unit (1 = no dropout). All gains are of L2 norms, so changes of width
drop out. What finite width adds is in `gradwell.theory.width`.

Axis letters: Q values of q, L layers, K nodes of the quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from gradwell.errors import UsageError
from gradwell.theory.nonlinearity import Activation, Nonlinearity, resolve
from gradwell.theory.quadrature import Floats, gaussian_nodes

Q_TINY = 1e-200
"""Stands for q = 0 in averages of slopes, so that an activation's corner at 0 is seen from both sides."""

Q_HUGE = 1e60
"""Stands for q = infinity."""

Q_SMALL = 1e-8
"""Stands for q = 0 where a ratio of small numbers is taken; its error is of this order."""

NOISE = 1e-11
"""A relative drift of q below this is rounding."""


# -- averages over the pre-activation ------------------------------------------------------------


def _nodes(unit: Nonlinearity, q: Floats, tiny: float) -> tuple[Floats, Floats]:
    """x = sqrt(q) z and weights, both (Q, K)."""
    std = np.sqrt(np.clip(q, tiny, Q_HUGE))
    z, weights = gaussian_nodes(np.zeros_like(std), std, unit.kinks, z_max=unit.z_max, wavelength=unit.wavelength)
    if unit.density is not None:
        weights = weights * unit.density(z)
    return std[:, None] * z, weights


def _sum(weights: Floats, values: Floats) -> Floats:
    total: Floats = np.einsum("qk,qk->q", weights, values)
    return total


def _v(unit: Nonlinearity, q: Floats) -> Floats:
    x, weights = _nodes(unit, q, Q_TINY)
    # V(q) = E[phi(sqrt(q) z)^2]
    return _sum(weights, np.square(unit.phi(x)))


def _v_d(unit: Nonlinearity, q: Floats) -> tuple[Floats, Floats]:
    x, weights = _nodes(unit, q, Q_TINY)
    return _sum(weights, np.square(unit.phi(x))), _sum(weights, np.square(unit.slope(x)))


def moments(activation: Activation, q: npt.ArrayLike) -> Moments:
    """All averages of an activation over N(0, q), for many q at once.

    Shapes: q (Q,) or a number (read as Q = 1) -> arrays (Q,). Unit: that of phi to the named power.
    At q = 0 the averages are the limit from above; `second_growth` is then taken at q = 1e-8 for
    an activation with phi(0) other than 0.
    """
    unit = resolve(activation)
    many = np.atleast_1d(np.asarray(q, dtype=float))
    x, weights = _nodes(unit, many, Q_TINY)
    phi, slope = unit.phi(x), unit.slope(x)
    squared_slope = np.square(slope)
    return Moments(
        q=many,
        mean=_sum(weights, phi),
        second=_sum(weights, np.square(phi)),
        squared_slope=_sum(weights, squared_slope),
        fourth_slope=_sum(weights, np.square(squared_slope)),
        second_growth=_v_growth(unit, many),
    )


def _v_growth(unit: Nonlinearity, q: Floats) -> Floats:
    # Where phi(0) is not 0, E[phi phi' x] is a difference of large numbers: no smaller q then.
    tiny = Q_SMALL if abs(unit.at_zero) > 1e-12 else Q_SMALL**4
    x, weights = _nodes(unit, q, tiny)
    # dV/dq = E[phi'^2 + phi phi''] = E[phi phi' x] / q: the second form needs no phi''
    return _sum(weights, unit.phi(x) * unit.slope(x) * x) / np.clip(q, tiny, Q_HUGE)


def mean_value(activation: Activation, q: float) -> float:
    """E[phi(sqrt(q) z)]."""
    return float(moments(activation, q).mean[0])


def second_moment(activation: Activation, q: float) -> float:
    """V(q) = E[phi(sqrt(q) z)^2].

    >>> round(second_moment("relu", 3.0), 12)
    1.5
    """
    return float(_v(resolve(activation), np.array([q], dtype=float))[0])


def squared_slope(activation: Activation, q: float) -> float:
    """D(q) = E[phi'(sqrt(q) z)^2], the activation's share in the squared gain of the gradient.

    >>> round(squared_slope("relu", 3.0), 12)
    0.5
    """
    return float(moments(activation, q).squared_slope[0])


def fourth_slope(activation: Activation, q: float) -> float:
    """E[phi'(sqrt(q) z)^4]."""
    return float(moments(activation, q).fourth_slope[0])


def slope_kurtosis(activation: Activation, q: float = 1.0) -> float:
    """kappa = E phi'^4 / (E phi'^2)^2: how unevenly the units pass the gradient (1 = all alike, ReLU 2)."""
    found = moments(activation, q)
    return float(found.fourth_slope[0] / found.squared_slope[0] ** 2)


# -- one layer -----------------------------------------------------------------------------------


def _check_layer(sigma_w2: float, sigma_b2: float, keep: float) -> None:
    for name, value in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is a variance and was given as {value}; give a finite number, zero or above.")
    if not 0 < keep <= 1:
        raise UsageError(f"keep is the probability that a unit stays and was given as {keep}; give 0 < keep <= 1.")


def chi_perp(activation: Activation, sigma_w2: float, q: float, *, keep: float = 1.0) -> float:
    """chi_1: the factor on the squared norm of the gradient through one layer at pre-activation variance q."""
    _check_layer(sigma_w2, 0.0, keep)
    # chi_1 = sigma_w^2 / p  D(q)
    return sigma_w2 / keep * squared_slope(activation, q)


def chi_par(activation: Activation, sigma_w2: float, q: float, *, keep: float = 1.0) -> float:
    """dq'/dq: how a small change of the signal's size grows through one layer; below 1 the q map is stable."""
    _check_layer(sigma_w2, 0.0, keep)
    return sigma_w2 / keep * float(_v_growth(resolve(activation), np.array([q], dtype=float))[0])


def next_q(activation: Activation, q: float, sigma_w2: float, sigma_b2: float = 0.0, *, keep: float = 1.0) -> float:
    """The q map: pre-activation variance of the next layer."""
    _check_layer(sigma_w2, sigma_b2, keep)
    # q' = sigma_w^2 / p  V(q) + sigma_b^2
    return sigma_w2 / keep * second_moment(activation, q) + sigma_b2


def _pair(unit: Nonlinearity, c: float, q: float) -> tuple[float, float]:
    """E[phi(u1) phi(u2)] and E[phi'(u1) phi'(u2)] for u1, u2 of variance q and correlation c."""
    if unit.density is not None:
        raise UsageError(f"The c map of {unit.id!r} is not known: it is no elementwise function; use q and chi only.")
    std = np.sqrt(np.clip(np.array([q], dtype=float), Q_SMALL**2, 1e12))
    spread = float(std[0]) * math.sqrt((1 - c) * (1 + c))
    z, weights = gaussian_nodes(
        np.zeros(1), std, _smeared(unit.kinks, c, spread), z_max=unit.z_max, wavelength=unit.wavelength
    )
    u1, outer = std[0] * z[0], weights[0]
    phi, slope = unit.phi(u1), unit.slope(u1)
    if spread <= 1e-9 * std[0]:
        return float(outer @ (phi * unit.phi(c * u1))), float(outer @ (slope * unit.slope(c * u1)))
    # u2 = c u1 + sqrt(q (1 - c^2)) z2
    z2, inner = gaussian_nodes(
        c * u1,
        np.full_like(u1, spread),
        unit.kinks,
        z_max=unit.z_max,
        wavelength=unit.wavelength,
        order=12,
        step=3.0,
    )
    u2 = c * u1[:, None] + spread * z2
    return (
        float(outer @ (phi * _sum(inner, unit.phi(u2)))),
        float(outer @ (slope * _sum(inner, unit.slope(u2)))),
    )


def _smeared(kinks: tuple[float, ...], c: float, spread: float) -> tuple[float, ...]:
    # The inner average smears a kink at k over a width spread / c around u1 = k / c: borders go there too.
    if abs(c) < 0.2:
        return kinks
    around = [(k + spread * step) / c for k in kinks for step in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
    return (*kinks, *around)


def next_c(
    activation: Activation, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0, *, keep: float = 1.0
) -> float:
    """The c map: correlation of two inputs after one more layer, both with pre-activation variance q before.

    The new covariance is divided by the new variance q' (equal to q at the fixed point); independent
    dropout masks leave the covariance alone and enlarge the variance. Error of the double average about
    1e-9.

    >>> round(next_c("relu", 0.0, 1.0, 2.0), 6)
    0.31831
    """
    return _c_step(resolve(activation), c, q, sigma_w2, sigma_b2, keep=keep)[0]


def _c_step(
    unit: Nonlinearity, c: float, q: float, sigma_w2: float, sigma_b2: float, *, keep: float
) -> tuple[float, float]:
    """c' and dc'/dc."""
    _check_layer(sigma_w2, sigma_b2, keep)
    if not -1 <= c <= 1:
        raise UsageError(f"c is a correlation and was given as {c}; give a number from -1 to 1.")
    variance = float(np.clip(q, Q_SMALL**2, 1e12))
    value, slope = _pair(unit, c, variance)
    # c' = (sigma_w^2 E[phi(u1) phi(u2)] + sigma_b^2) / q';   dc'/dc = sigma_w^2 q E[phi'(u1) phi'(u2)] / q'
    after = next_q(unit, variance, sigma_w2, sigma_b2, keep=keep)
    return (sigma_w2 * value + sigma_b2) / after, sigma_w2 * variance * slope / after


# -- fixed points --------------------------------------------------------------------------------


def _zoom(f: Callable[[Floats], Floats], lo: float, hi: float) -> float:
    """The first sign change of f between lo and hi (of different signs), by repeated scans in log scale."""
    while hi / lo > 1 + 1e-14:
        grid = np.geomspace(lo, hi, 24)
        changed = np.flatnonzero(np.sign(f(grid)) != np.sign(f(grid[:1])))
        if not changed.size or grid[1] <= lo:
            break
        lo, hi = float(grid[changed[0] - 1]), float(grid[changed[0]])
    return math.sqrt(lo) * math.sqrt(hi)


def _roots(f: Callable[[Floats], Floats], lo: float, hi: float, points: int = 300) -> list[float]:
    grid = np.geomspace(lo, hi, points)
    signs = np.sign(f(grid))
    return [_zoom(f, float(grid[k]), float(grid[k + 1])) for k in np.flatnonzero(signs[1:] * signs[:-1] < 0)]


def _touch(f: Callable[[Floats], Floats], grid: Floats, size: Floats) -> float | None:
    """Where |f| touches zero without crossing it (a half-stable fixed point); None if it does not."""
    for k in range(1, grid.size - 1):
        sides = min(size[:k].max(), size[k + 1 :].max())
        if size[k] <= min(size[k - 1], size[k + 1]) and size[k] < min(1e-3, 0.9 * sides) and sides > 1e-5:
            lo, hi = float(grid[k - 1]), float(grid[k + 1])
            while hi / lo > 1 + 1e-7:
                fine = np.geomspace(lo, hi, 24)
                best = int(np.clip(np.argmin(np.abs(f(fine))), 1, 22))
                lo, hi = float(fine[best - 1]), float(fine[best + 1])
            if abs(f(np.array([lo]))[0]) < 1e-8:
                return lo
    return None


def fixed_point(
    activation: Activation,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    keep: float = 1.0,
    start: float | None = None,
) -> float:
    """q*: where the pre-activation variance settles after many layers.

    The limit of the q map from `start` (default: the first layer's q for an input of second moment 1).
    Returns 0.0 when the signal dies out, `inf` when it grows without bound, and `start` itself when every q
    is a fixed point (ReLU at sigma_w2 = 2). Assumes that V grows with q, as it does for every shelved activation.

    >>> round(fixed_point("tanh", 1.5, 0.05), 6)
    0.418037
    """
    _check_layer(sigma_w2, sigma_b2, keep)
    unit = resolve(activation)
    q0 = sigma_w2 + sigma_b2 if start is None else start

    def drift(q: Floats) -> Floats:
        # relative change of q in one layer: q'/q - 1
        return (sigma_w2 / keep * _v(unit, q) + sigma_b2) / q - 1

    if q0 <= 0:
        q0 = sigma_w2 / keep * unit.at_zero**2 + sigma_b2
    if q0 <= 0:
        return 0.0
    here = float(drift(np.array([q0]))[0])
    if abs(here) < NOISE:
        return q0
    floor = sigma_w2 / keep * unit.at_zero**2 + sigma_b2
    return _descend(drift, q0, floor) if here < 0 else _ascend(drift, q0)


def _descend(drift: Callable[[Floats], Floats], q0: float, floor: float) -> float:
    # q* is at least floor = q'(0), because V grows with q; what lies near the end of the floats counts as 0.
    lowest = 0.5 * floor if floor > 1e-250 else 1e-14 * min(q0, 1.0)
    return _settle(drift, np.geomspace(q0, lowest, 240), -1.0, 0.0) if lowest > 1e-300 else floor


def _ascend(drift: Callable[[Floats], Floats], q0: float) -> float:
    return _settle(drift, np.geomspace(q0, max(q0, 1.0) * 1e15, 240), 1.0, math.inf)


def _settle(drift: Callable[[Floats], Floats], grid: Floats, sign: float, otherwise: float) -> float:
    ahead = sign * drift(grid)
    crossed = np.flatnonzero(ahead < -NOISE)
    stop = int(crossed[0]) if crossed.size else grid.size
    touched = _touch(drift, grid[:stop], np.abs(ahead[:stop]))
    if touched is not None:
        return touched
    if not crossed.size:
        return otherwise
    lo, hi = sorted((float(grid[stop - 1]), float(grid[stop])))
    return _zoom(drift, lo, hi)


def fixed_correlation(
    activation: Activation, sigma_w2: float, sigma_b2: float = 0.0, *, keep: float = 1.0, q: float | None = None
) -> float:
    """c*: the correlation to which two different inputs tend after many layers.

    1 in the ordered phase without dropout (the net forgets which input it saw), below 1 in the chaotic
    phase. `q` defaults to the fixed point q*.
    """
    return _correlation(activation, sigma_w2, sigma_b2, keep, q)[0]


def _correlation(
    activation: Activation, sigma_w2: float, sigma_b2: float, keep: float, q: float | None
) -> tuple[float, float]:
    """c* and the slope of the c map there.

    The c map is convex on [0, 1] (its Taylor coefficients are squares), so Newton's steps from c = 0
    climb to the smallest fixed point and never jump over it.
    """
    unit = resolve(activation)
    at = fixed_point(unit, sigma_w2, sigma_b2, keep=keep) if q is None else q
    top, slope_at_top = _c_step(unit, 1.0, at, sigma_w2, sigma_b2, keep=keep)
    if top > 1 - NOISE and slope_at_top <= 1 + NOISE:
        return 1.0, slope_at_top
    c = 0.0
    for _ in range(60):
        value, slope = _c_step(unit, c, at, sigma_w2, sigma_b2, keep=keep)
        step = (value - c) / (1 - slope)
        if step < 1e-10 or slope >= 1:
            return c, slope
        c = min(c + step, 1.0)
    return c, _c_step(unit, c, at, sigma_w2, sigma_b2, keep=keep)[1]


# -- how deep a signal reaches -------------------------------------------------------------------


def depth_scale(factor: float) -> float:
    """-1 / ln(factor): layers until a quantity that is multiplied by `factor` at each layer changes e-fold.

    Infinite at factor 1, negative where the quantity grows.
    """
    if factor <= 0:
        return 0.0
    rate = math.log(factor)
    return math.inf if abs(rate) < NOISE else -1 / rate


def depth_scales(activation: Activation, sigma_w2: float, sigma_b2: float = 0.0, *, keep: float = 1.0) -> DepthScales:
    """q*, c*, chi and the depth scales xi of a plain net; see `DepthScales`."""
    unit = resolve(activation)
    q = fixed_point(unit, sigma_w2, sigma_b2, keep=keep)
    chi = chi_perp(unit, sigma_w2, q, keep=keep)
    along = chi_par(unit, sigma_w2, q, keep=keep)
    xi_grad = depth_scale(chi)
    settled = 0 < q < math.inf and unit.density is None
    c, slope = _correlation(unit, sigma_w2, sigma_b2, keep, q) if settled else (math.nan, math.nan)
    xi_c = depth_scale(slope) if settled else math.nan
    # Schoenholz et al. 2017, figure 5: accuracy is lost at about 6 xi_c
    reach = 6 * xi_c if settled else 6 * abs(xi_grad)
    return DepthScales(q, c, chi, along, depth_scale(along), xi_c, xi_grad, reach)


def trainable_depth(activation: Activation, sigma_w2: float, sigma_b2: float = 0.0, *, keep: float = 1.0) -> float:
    """About how many layers can be trained: 6 xi_c where q settles, else 6 |xi_grad|; a rule of thumb."""
    return depth_scales(activation, sigma_w2, sigma_b2, keep=keep).trainable_depth


def signal_by_layer(
    activation: Activation,
    depth: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    keep: float = 1.0,
    input_second_moment: float = 1.0,
) -> Signal:
    """The finite-depth recursion: q and the gradient's gain at each of `depth` layers.

    The input has second moment `input_second_moment` per element, and layer 1 is linear in it. Dropout acts
    on the activations, not on the input. Agrees with real nets to 0.01-0.02 decades in 10 layers.
    """
    _check_layer(sigma_w2, sigma_b2, keep)
    if depth < 1:
        raise UsageError(f"depth is a number of layers and was given as {depth}; give 1 or more.")
    unit = resolve(activation)
    q, second, slope = np.empty(depth), np.empty(depth), np.empty(depth)
    now = np.array([sigma_w2 * input_second_moment + sigma_b2])
    for layer in range(depth):
        v, d = _v_d(unit, now)
        q[layer], second[layer], slope[layer] = now[0], v[0], d[0]
        now = np.minimum(sigma_w2 / keep * v + sigma_b2, 1e300)
    # log10 of the norm gain: 1/2 log10(sigma_w^2 / p  D(q))
    with np.errstate(divide="ignore"):
        gain = 0.5 * np.log10(sigma_w2 / keep * slope)
    return Signal(q, second, slope, gain)


def log10_gain_by_layer(
    activation: Activation,
    depth: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    keep: float = 1.0,
    input_second_moment: float = 1.0,
) -> Floats:
    """Decades that the gradient's norm gains (+) or loses (-) at each layer, from the first to the last.

    Shape (L,); the sum is log10(|delta_0| / |delta_L|). The recursion runs at the q of each layer, not at
    q*. Minus infinity where sigma_w2 is 0.

    >>> round(float(log10_gain_by_layer("relu", 50, 1 / 3).sum()), 2)
    -19.45
    """
    return signal_by_layer(
        activation, depth, sigma_w2, sigma_b2, keep=keep, input_second_moment=input_second_moment
    ).log10_gain


# -- criticality ---------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def critical_point(activation: Activation) -> Criticality:
    """The (sigma_w2, sigma_b2) at which signals and gradients neither shrink nor grow; see `Criticality.kind`.

    Follows the classes of Roberts, Yaida, Hanin 2022 (PDLT), section 5.
    """
    unit = resolve(activation)
    found = moments(unit, np.geomspace(1e-6, 1e4, 21))
    # q - V/D = 0 for every q: all q are fixed at sigma_w2 = 1/D
    if np.max(np.abs(1 - found.second / (found.q * found.squared_slope))) < 1e-9:
        return Criticality("scale_invariant", 1 / float(found.squared_slope[0]), 0.0, None, 1.0)
    return _with_zero(unit) if abs(unit.at_zero) < 1e-12 else _without_zero(unit)


def _with_zero(unit: Nonlinearity) -> Criticality:
    near = moments(unit, 1e-4)
    if near.second_growth[0] <= near.squared_slope[0] * (1 + 1e-9):
        # sigma_w^2 = 1 / D(0), q* -> 0
        return Criticality("zero", 1 / squared_slope(unit, 0.0), 0.0, 0.0, 1.0)

    def excess(q: Floats) -> Floats:
        # chi_par = chi_perp where dV/dq = D
        return _v_growth(unit, q) / _v_d(unit, q)[1] - 1

    roots = _roots(excess, 1e-3, 1e4)
    return _critical_at(unit, roots[0], "half_stable") if roots else _none()


def _without_zero(unit: Nonlinearity) -> Criticality:
    stable = [c for c in _line(unit, 0.0) if c.chi_par is not None and c.chi_par < 1]
    return stable[0] if stable else _none()


def _none() -> Criticality:
    return Criticality("none", None, None, None, None)


def _critical_at(unit: Nonlinearity, q: float, kind: str) -> Criticality:
    found = moments(unit, q)
    slope, second = float(found.squared_slope[0]), float(found.second[0])
    # sigma_w^2 = 1/D, sigma_b^2 = q - V/D
    return Criticality(kind, 1 / slope, q - second / slope, q, float(found.second_growth[0]) / slope)


def _line(unit: Nonlinearity, sigma_b2: float) -> list[Criticality]:
    def excess(q: Floats) -> Floats:
        second, slope = _v_d(unit, q)
        # chi = 1 and q fixed: q - V/D = sigma_b^2
        return 1 - second / (q * slope) - sigma_b2 / q

    found = [_critical_at(unit, q, "finite") for q in _roots(excess, 1e-6, 1e6)]
    return [msgspec.structs.replace(c, sigma_b2=sigma_b2) for c in found]


def critical_line(activation: Activation, sigma_b2: float) -> Criticality:
    """The sigma_w2 with chi = 1 at the fixed point, for a given bias variance.

    Where several exist, the first that is stable (chi_par < 1); with sigma_b2 = 0 it is `critical_point`.
    Raises UsageError where none exists: scale-invariant activations are critical at sigma_b2 = 0 only, and
    softplus nowhere.

    >>> round(critical_line("tanh", 0.05).sigma_w2, 6)
    1.760955
    """
    _check_layer(1.0, sigma_b2, 1.0)
    unit = resolve(activation)
    if sigma_b2 == 0:
        return critical_point(unit)
    found = _line(unit, sigma_b2)
    if not found:
        raise UsageError(
            f"The activation {unit.id!r} has no critical sigma_w2 at sigma_b2 = {sigma_b2}; "
            "see critical_point for where it has one."
        )
    return next((c for c in found if c.stable), found[0])


# -- what comes back -----------------------------------------------------------------------------


class Moments(msgspec.Struct, frozen=True):
    """Averages of an activation over N(0, q); each an array over q."""

    q: Floats
    mean: Floats
    """E phi"""
    second: Floats
    """V = E phi^2"""
    squared_slope: Floats
    """D = E phi'^2"""
    fourth_slope: Floats
    """E phi'^4"""
    second_growth: Floats
    """dV/dq"""

    @property
    def variance(self) -> Floats:
        """Var phi."""
        return self.second - np.square(self.mean)


class DepthScales(msgspec.Struct, frozen=True):
    """Fixed points of a plain net and the depth over which each quantity changes e-fold.

    `c_star` and `xi_c` are nan where q does not settle at a finite value above zero. A negative xi means
    growth. `trainable_depth` is a rule of thumb: 6 xi_c, or 6 |xi_grad| where xi_c is not known.
    """

    q_star: float
    c_star: float
    chi_perp: float
    chi_par: float
    xi_q: float
    xi_c: float
    xi_grad: float
    trainable_depth: float


class Signal(msgspec.Struct, frozen=True):
    """What a plain net does layer by layer; arrays (L,), first layer first."""

    q: Floats
    """pre-activation variance"""
    second: Floats
    """V(q), second moment of the layer's output"""
    squared_slope: Floats
    """D(q)"""
    log10_gain: Floats
    """decades that the gradient's norm gains passing back through the layer"""


class Criticality(msgspec.Struct, frozen=True):
    """Where an activation neither loses nor amplifies gradients.

    kind: `scale_invariant` every q is fixed (ReLU family; q_star None); `zero` q* -> 0 slowly, gradients fall
    by a power of depth (tanh, ELU); `half_stable` needs this bias variance at least, chi_par = 1 (GELU, SiLU,
    Mish): q* attracts from one side only, so the limit from a unit input, `fixed_point`, may be another (GELU
    stops at 3.03 with chi = 0.994, Mish slowly runs away), while 50 layers stay within 1 decade; `finite` at a
    q* of its own (sigmoid: sigma_w2 of 103, of theoretical interest); `none` no stable point exists (softplus),
    the numbers are None.
    """

    kind: str
    sigma_w2: float | None
    sigma_b2: float | None
    q_star: float | None
    chi_par: float | None

    @property
    def stable(self) -> bool:
        """Whether the fixed point attracts the q of nearby inputs."""
        return self.chi_par is not None and self.chi_par <= 1 + 1e-9
