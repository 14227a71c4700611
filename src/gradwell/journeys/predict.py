"""`gradwell predict`: how deep a network can be, told before any training and without torch.

Mean-field theory at finite depth (`gradwell.theory`): the recursion of q and of the gradient's gain layer by layer,
norms, shortcuts, dropout and time steps, and what finite width adds. One call takes some milliseconds.

Axis letters: L layers, T time steps, S values of sigma_w2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from gradwell.errors import GradwellError, UsageError
from gradwell.records.numbers import decades, times, to_json
from gradwell.shelf import shelf
from gradwell.theory import meanfield, norms, recurrent
from gradwell.theory import width as finite_width
from gradwell.theory.inits import Variances
from gradwell.theory.nonlinearity import Nonlinearity, centred, resolve
from gradwell.theory.quadrature import Floats

SEVERITIES = ("mild", "serious", "fatal")
CRITICAL = 0.01
"""chi within this of 1 counts as critical: a hundred layers for an e-fold of the squared norm."""
SETTLING = 40
"""Layers after which q is looked at: most nets have settled by then."""
REMEMBERED = {
    "gelu": (1.9830582574375488, 0.17292239075606508),
    "gelu_tanh": (1.9828882398210932, 0.17289519826381605),
    "silu": (1.9880046782694931, 0.5551431707215233),
    "mish": (2.01352406971953, 0.09452178737066519),
    "hardswish": (1.9732895836424704, 0.5071458487885154),
}
"""sigma_w2 and sigma_b2 of the critical points whose quadrature takes longer than all the rest of a call; the tests
compare them with the quadrature."""
NORMS = ("", "batch", "layer", "rms")


class Prediction(msgspec.Struct, frozen=True):
    """What the theory expects of a net at its start; sizes in decades (log10), non-finite numbers allowed.

    `chi` is the factor on the squared gradient norm per layer at q*; `depth_scale` is xi, layers per e-fold of the
    slowest signal; `trainable_depth` about 6 xi. `log10_gain` is log10 |delta_1| / |delta_out|, root mean square over
    draws of the weights, and `log10_gain_by_layer` its parts, first layer first (time steps, with `rnn`); single nets
    of this width scatter by `log10_gain_sd` around `typical_log10_gain`. `verdict` is the severity under a plain
    optimizer, with the bounds of `vanishing_gradient` and `exploding_gradient`.
    """

    activation: str
    init: str
    depth: int
    width: int
    sigma_w2: float
    sigma_b2: float
    q_star: float
    chi: float
    depth_scale: float
    trainable_depth: float
    log10_gain: float
    log10_gain_sd: float
    log10_gain_by_layer: list[float]
    phase: str
    verdict: str
    advice: str

    @property
    def typical_log10_gain(self) -> float:
        """The mean of log10 gain over single nets of this width: lower than `log10_gain`, for gains are log-normal."""
        if self.activation in ("relu", "identity") and self.log10_gain_sd:
            law = finite_width.relu_log_gain if self.activation == "relu" else finite_width.linear_log_gain
            mean, variance = law(self.width)
            # E ln X / (2 ln 10) for each layer; the number of layers is in the sd
            return self.log10_gain + mean / variance * 2 * math.log(10) * self.log10_gain_sd**2
        # ln X ~ N(-beta/2, beta): shift = -beta / (4 ln 10), sd^2 = beta / (4 ln^2 10)
        return self.log10_gain - math.log(10) * self.log10_gain_sd**2

    def to_dict(self) -> dict[str, Any]:
        """The fields with non-finite numbers as the strings of the contract."""
        plain: dict[str, Any] = to_json(msgspec.structs.asdict(self))
        return plain

    def to_json(self) -> str:
        """One JSON object with exactly the fields of this record."""
        return msgspec.json.encode(self.to_dict()).decode()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from gradwell.report import notebook  # late: pictures are not needed to predict

        return notebook.prediction_mimebundle(str(self), self.log10_gain_by_layer)

    def __str__(self) -> str:
        steps = len(self.log10_gain_by_layer)
        unit = "layers" if steps == self.depth else "time steps"
        where = f"{steps} {unit} of {self.width} units, {self.activation}, init {self.init}"
        lines = [
            f"{self.verdict}: {_effect(self.log10_gain, 'layer' if unit == 'layers' else 'step')} ({where})",
            f"  gain        {decades(self.log10_gain)} decades in all; a single net {decades(self.typical_log10_gain)} "
            f"+- {self.log10_gain_sd:.1f}",
            f"  each        chi {self.chi:.4g} at q* {self.q_star:.4g}: {self.phase}",
            f"  reach       {_reach(self)}",
            f"  variances   sigma_w2 {self.sigma_w2:.4g}, sigma_b2 {self.sigma_b2:.4g}",
            f"  advice      {self.advice}",
        ]
        return "\n".join(lines)


def _effect(gain: float, what: str) -> str:
    if not math.isfinite(gain):
        return f"no gradient reaches the first {what}" if gain < 0 else "the gradient overflows"
    if abs(gain) < 0.3:
        return "the gradient keeps its size"
    return f"the gradient is {times(gain)} {'smaller' if gain < 0 else 'larger'} at the first {what}"


def _reach(p: Prediction) -> str:
    if p.depth_scale == math.inf:
        return "no limit of depth from the theory (xi is infinite)"
    return f"xi {p.depth_scale:.3g}, trainable to about {p.trainable_depth:.3g} (6 xi)"


class _Flow(msgspec.Struct, frozen=True):
    """What a wiring does: decades by layer, their sd, and the numbers at its fixed point."""

    q_star: float
    chi: float
    xi: float
    gains: Floats
    sd: float
    phase: str


def predict(
    depth: int,
    activation: str = "relu",
    init: str = "torch_default",
    *,
    width: int = 64,
    sigma_w2: float | None = None,
    sigma_b2: float | None = None,
    norm: str = "",
    batch_size: int | None = None,
    shortcut: float | None = None,
    dropout: float = 0.0,
    rnn: int | None = None,
) -> Prediction:
    """What happens to the gradient of a net of `depth` hidden layers, at its start, without building it.

    `sigma_w2`, `sigma_b2` replace the init's variances (fan_in Var W and Var b). `norm` is "batch", "layer" or "rms",
    between linear layer and activation; `batch_size` counts for batch norm (None: infinite). `shortcut` is the scale
    a of blocks x + a F(x), F = norm - linear - activation - linear, as the lab builds them: depth counts blocks.
    `dropout` is the probability to drop a unit. `rnn` is a number of time steps: the net is then recurrent and the
    gain is through time, its input white noise of `width` features. The input has second moment 1.

    Errors: UsageError for a value that means nothing, UnknownId for an id on no shelf.
    When not to use it: for a model with convolutions, attention or data far from second moment 1: `gradwell check`.

    >>> round(predict(50, "relu", "he").log10_gain, 9)
    0.0
    >>> predict(32, "tanh").verdict
    'fatal'
    """
    _check({"depth": depth, "width": width, "rnn": rnn, "batch_size": batch_size}, norm, dropout)
    unit, spread = _weights(activation, init, width, sigma_w2, sigma_b2)
    case = _Case(activation, unit, depth, width, spread, norm, batch_size, shortcut, 1 - dropout)
    flow = _flow(case, rnn)
    gains = flow.gains
    total = float(gains.sum()) + 0.0
    verdict = severity(gains)
    return Prediction(
        activation=activation,
        init="custom" if sigma_w2 is not None else init,
        depth=depth,
        width=width,
        sigma_w2=spread.sigma_w2,
        sigma_b2=spread.sigma_b2,
        q_star=flow.q_star,
        chi=flow.chi,
        depth_scale=flow.xi,
        trainable_depth=6 * flow.xi,
        log10_gain=total,
        log10_gain_sd=flow.sd,
        log10_gain_by_layer=[float(g) + 0.0 for g in gains],
        phase=flow.phase,
        verdict=verdict,
        advice=_advice(case, flow, verdict, total, rnn),
    )


class _Case(msgspec.Struct, frozen=True):
    """The net that is asked about."""

    activation: str
    unit: Nonlinearity
    depth: int
    width: int
    spread: Variances
    norm: str
    batch: int | None
    shortcut: float | None
    keep: float


def _check(counts: dict[str, int | None], norm: str, dropout: float) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is a number of things and was given as {value}; give 1 or more.")
    if norm not in NORMS:
        raise UsageError(f"norm is 'batch', 'layer' or 'rms' and was given as {norm!r}; leave it out for none.")
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout is the probability to drop a unit and was given as {dropout}; give 0 <= p < 1.")
    if counts["rnn"] is not None and norm:
        raise UsageError("rnn with a norm is not in the theory; leave out one of them.")


def _weights(
    activation: str, init: str, width: int, sigma_w2: float | None, sigma_b2: float | None
) -> tuple[Nonlinearity, Variances]:
    """The activation as the init's bias makes it, and the variances with what the caller replaces."""
    if sigma_w2 is None and init == "critical" and activation in REMEMBERED:
        spread = Variances(*REMEMBERED[activation])
    elif sigma_w2 is None:
        spread = shelf("gradwell.theory.inits")[init](width, width, activation=activation)
    else:
        shelf("gradwell.theory.inits")[init]
        spread = Variances(sigma_w2)
    if sigma_b2 is not None:
        spread = msgspec.structs.replace(spread, sigma_b2=sigma_b2)
    unit = resolve(activation)
    return (centred(unit) if spread.centred else unit), spread


def _flow(case: _Case, rnn: int | None) -> _Flow:
    if rnn is not None:
        return _through_time(case, rnn)
    if case.shortcut is not None:
        return _residual(case)
    return _normed(case) if case.norm else _plain(case)


def _plain(case: _Case) -> _Flow:
    w2, b2 = case.spread.sigma_w2, case.spread.sigma_b2
    q, gains = _signal(case.unit, case.depth, w2, b2, case.keep)
    at, chi, xi = _fixed(case.unit, w2, b2, case.keep)
    return _Flow(at, chi, xi, gains, _spread(case, q), _phase(chi))


def _signal(unit: Nonlinearity, depth: int, w2: float, b2: float, keep: float) -> tuple[Floats, Floats]:
    """q and the decades of each layer; the recursion stops where q has settled."""
    first = min(depth, SETTLING)
    signal = meanfield.signal_by_layer(unit, first, w2, b2, keep=keep)
    if first < depth and abs(signal.q[-1] - signal.q[-2]) > 1e-13 * signal.q[-1]:
        signal = meanfield.signal_by_layer(unit, depth, w2, b2, keep=keep)
    rest = depth - signal.q.size
    return np.pad(signal.q, (0, rest), mode="edge"), np.pad(signal.log10_gain, (0, rest), mode="edge")


def _spread(case: _Case, q: Floats) -> float:
    """sd of log10 gain over nets of this width: exact for identity and ReLU, else to leading order in 1/width."""
    if case.activation in ("relu", "identity"):
        _, variance = finite_width.log_gain(case.activation, case.width)
        total = variance * q.size
    else:
        # variance of ln |J u|^2 a layer: (3 kappa - 1)/n, kappa = E phi'^4 / (E phi'^2)^2
        found = meanfield.moments(case.unit, np.clip(q, 1e-12, 1e6))
        kappa = found.fourth_slope / np.maximum(np.square(found.squared_slope), 1e-300)
        total = float(np.sum((3 * np.clip(kappa, 1.0, 1e6) - 1) / case.width))
    # ln |J u|^2 = 2 ln 10 log10 |J u|
    return math.sqrt(total) / (2 * math.log(10))


@lru_cache(maxsize=512)
def _fixed(unit: Nonlinearity, sigma_w2: float, sigma_b2: float, keep: float) -> tuple[float, float, float]:
    """q*, chi and the depth scale xi: that of correlations in the chaotic phase, of the gradient elsewhere.

    In the ordered phase both are one number: c* = 1, where the slope of the c map is chi.
    """
    if sigma_w2 == 0:
        return sigma_b2, 0.0, 0.0
    q = meanfield.fixed_point(unit, sigma_w2, sigma_b2, keep=keep)
    chi = meanfield.chi_perp(unit, sigma_w2, q, keep=keep)
    settled = 0 < q < 1e6 and unit.density is None and (keep < 1 or chi > 1 + CRITICAL)
    if not settled:
        return q, chi, abs(meanfield.depth_scale(chi))
    reach = meanfield.depth_scales(unit, sigma_w2, sigma_b2, keep=keep).trainable_depth
    return q, chi, abs(reach) / 6


def _phase(chi: float) -> str:
    return "critical" if abs(chi - 1) <= CRITICAL else "ordered" if chi < 1 else "chaotic"


def _normed(case: _Case) -> _Flow:
    """Linear - norm - activation: after the first layer the same factor at every layer."""
    found, spread = meanfield.moments(case.unit, 1.0), case.spread
    if case.norm == "batch":
        chi = norms.batchnorm_rate(case.unit, case.batch) / case.keep
        # the first layer sees the data, of variance 1: chi = sigma_w2 D(1) / (sigma_w2 * 1)
        first = float(found.squared_slope[0]) / case.keep
    else:
        _needs_weights(spread)
        chi = norms.layernorm_rate(case.unit, sigma_w2=spread.sigma_w2 / case.keep, sigma_b2=spread.sigma_b2)
        first = spread.sigma_w2 / case.keep * float(found.squared_slope[0]) / (spread.sigma_w2 + spread.sigma_b2)
    gains = np.full(case.depth, 0.5 * math.log10(chi))
    gains[0] = 0.5 * math.log10(first)
    sd = _spread(case, np.ones(case.depth))
    return _Flow(1.0, chi, abs(meanfield.depth_scale(chi)), gains, sd, _phase(chi))


def _needs_weights(spread: Variances) -> None:
    if not spread.sigma_w2 > 0:
        raise UsageError("A norm divides by the spread of its input, and these weights are zero; take another init.")


def _residual(case: _Case) -> _Flow:
    """x + a F(x), F = norm? - linear - activation - linear, after a linear stem; gain^2 = prod (1 + a^2 chi_F)."""
    spread, a2 = case.spread, float(case.shortcut or 0.0) ** 2
    gain2 = np.empty(case.depth)
    stream = spread.sigma_w2 + spread.sigma_b2
    q = stream
    for block in range(case.depth):
        q, chi_branch, out = _branch(case, stream)
        gain2[block] = 1 + a2 * chi_branch
        stream = min(stream + a2 * out, 1e250)
    far = 1 + a2 * _branch(case, max(stream, 1.0) * 1e8)[1]
    chi = float(gain2[-1])
    gains = 0.5 * np.log10(gain2)
    total = float(np.log(gain2).sum())
    # growth by a power of depth only, or less than half a decade in all, is no chaos
    phase = "critical" if far - 1 <= CRITICAL or gains.sum() < 0.5 else "chaotic"
    xi = case.depth / total if phase == "chaotic" else math.inf
    kappa = _branch_spread(case, gain2)
    return _Flow(q, chi, xi, gains, kappa, phase)


def _branch(case: _Case, stream: float) -> tuple[float, float, float]:
    """q, chi and output variance of the branch, its input of second moment `stream`."""
    spread = case.spread
    size = 1.0 if case.norm else stream
    q = spread.sigma_w2 * size + spread.sigma_b2
    found = meanfield.moments(case.unit, q)
    chi = spread.sigma_w2**2 * float(found.squared_slope[0]) * (1 / stream if case.norm else 1.0) / case.keep
    out = (spread.sigma_w2 * float(found.second[0]) + spread.sigma_b2) / case.keep
    return q, chi, out


def _branch_spread(case: _Case, gain2: Floats) -> float:
    """sd of log10 gain: the cross term of shortcut and branch, 4 (g - 1) / n a block, in leading order."""
    share = (gain2 - 1) / gain2
    # ln(1 + 2 rho g + g^2): rho ~ N(0, 1/n) is what scatters
    variance = float(np.sum(4 * share * (1 - share))) / case.width
    return math.sqrt(variance) / (2 * math.log(10))


def _through_time(case: _Case, steps: int) -> _Flow:
    spread = case.spread
    found = recurrent.rnn_through_time(
        case.unit, steps, spread.sigma_w2 / case.keep, sigma_u2=spread.sigma_w2, sigma_b2=2 * spread.sigma_b2
    )
    sd = _spread(case, np.full(steps, found.q_star))
    return _Flow(found.q_star, found.chi, abs(found.xi), found.log10_gain, sd, _phase(found.chi))


# -- in words ------------------------------------------------------------------------------------


def severity(gains: Floats) -> str:
    """healthy, mild, serious or fatal by the profile from the output down, as the symptoms judge plain SGD."""
    profile = np.cumsum(np.asarray(gains)[::-1])
    if not np.all(np.isfinite(profile)):
        return "fatal"
    lost, grown = max(0.0, -float(profile.min())), max(0.0, float(profile.max()))
    reached = [
        k
        for value, bounds in ((lost, _bounds("vanishing_gradient")), (grown, _bounds("exploding_gradient")))
        for k, bound in enumerate(bounds)
        if value >= bound
    ]
    return SEVERITIES[max(reached)] if reached else "healthy"


@lru_cache(maxsize=2)
def _bounds(symptom: str) -> tuple[float, ...]:
    thresholds = shelf("gradwell.symptoms")[symptom].thresholds
    return tuple(float(thresholds[name]) for name in SEVERITIES)


def _advice(case: _Case, flow: _Flow, verdict: str, total: float, rnn: int | None) -> str:
    """One sentence: what to use instead, with its numbers."""
    if rnn is not None:
        text = _advice_rnn(verdict, total, rnn)
    elif verdict == "healthy" and not case.spread.mean_w:
        text = f"Keep it: {_keep(case, flow)}."
    else:
        text = _advice_layers(case, flow, total)
    return text


def _advice_layers(case: _Case, flow: _Flow, total: float) -> str:
    if case.spread.mean_w:
        return (
            f"The weights have the mean {case.spread.mean_w:g}, which drives all units the same way and is outside "
            f"this theory; {_instead(case, 'use')}."
        )
    if case.shortcut is not None and total > 0:
        scale = case.depth**-0.5
        return f"Scale the branches by 1/sqrt(depth) = {scale:.3g}, or start each branch with a layer norm."
    if case.norm == "batch":
        return (
            f"Batch norm without shortcuts always explodes, here by a factor {math.sqrt(flow.chi):.3g} a layer; "
            "add shortcuts x + F(x) round every two layers, or take a critical init without a norm."
        )
    if case.norm:
        other = "batch norm, which removes the mean" if flow.chi < 1 else "shortcuts x + F(x)"
        instead = _instead(case, "drop it and use")
        return f"This norm leaves chi = {flow.chi:.3g} whatever the init; use {other}, or {instead}."
    return f"{_instead(case, 'Use')}."


def _keep(case: _Case, flow: _Flow) -> str:
    if case.shortcut is not None or case.norm:
        return "the wiring carries the gradient at this depth"
    if flow.phase == "critical":
        return "this is the critical point, where gradients keep their size"
    return f"at this depth chi = {flow.chi:.3g} a layer costs little; {_instead(case, 'deeper nets want')}"


@lru_cache(maxsize=128)
def _critical_words(activation: str) -> tuple[str, float, float] | None:
    """The init to name and its sigma_w2, sigma_b2; None where the activation has no critical point of use."""
    if activation in ("sigmoid", "hard_sigmoid"):
        found = shelf("gradwell.theory.inits")["centred_sigmoid"](64, 64, activation=activation)
        return "centred_sigmoid", found.sigma_w2, found.sigma_b2
    if activation in REMEMBERED:
        return "critical", *REMEMBERED[activation]
    try:
        point = shelf("gradwell.theory.inits")["critical"](64, 64, activation=activation)
    except GradwellError:
        return None
    named = {("relu", 2.0): "he", ("tanh", 1.0): "lecun", ("identity", 1.0): "lecun"}
    return named.get((activation, round(point.sigma_w2, 9)), "critical"), point.sigma_w2, point.sigma_b2


def _instead(case: _Case, verb: str) -> str:
    """`use init 'he' (sigma_w2 = 2): chi = 1`."""
    if case.keep < 1 and case.activation == "relu":
        return f"{verb} sigma_w2 = {2 * case.keep:.4g} (2 x the kept share), the critical point of ReLU with dropout"
    found = _critical_words(case.activation)
    if found is None:
        return f"{verb} another activation or batch norm, for {case.activation} has no stable critical point"
    name, w2, b2 = found
    bias = ", b_i = -phi(0) sum_j W_ij" if name == "centred_sigmoid" else f", sigma_b2 = {b2:.4g}" if b2 else ", b = 0"
    drop = "; dropout still costs depth, so lower it" if case.keep < 1 else ""
    return f"{verb} init {name!r}, the critical point of {case.activation} (sigma_w2 = {w2:.4g}{bias}){drop}"


def _advice_rnn(verdict: str, total: float, steps: int) -> str:
    bias = recurrent.chrono_bias(max(steps, 3))
    cell = recurrent.lstm_forget_path(bias, steps)
    if verdict == "healthy":
        return f"Keep it for {steps} steps; for longer memories use an LSTM with forget bias {bias:.2g}."
    if total > 0:
        return (
            f"Clip the gradient by its norm and start W_hh orthogonal; or use an LSTM with forget bias {bias:.2g}, "
            f"whose cell path changes by {decades(cell)} decades in {steps} steps."
        )
    return (
        f"Use an LSTM with forget bias {bias:.2g} (chrono), whose cell path loses {abs(cell):.2f} decades in {steps} "
        "steps, or start W_hh orthogonal with a small input."
    )


# -- many nets at once ---------------------------------------------------------------------------


class PhaseDiagram(msgspec.Struct, frozen=True):
    """Decades of gradient over sigma_w2 (S) and depth (D), with the guide line of about 6 xi."""

    activation: str
    sigma_b2: float
    sigma_w2s: list[float]
    depths: list[int]
    log10_gain: list[list[float]]
    """(S, D): log10 of the norm gain of a net of that depth"""
    chi: list[float]
    """(S,) at q*"""
    trainable_depth: list[float]
    """(S,): about 6 xi"""
    critical_sigma_w2: float | None
    """where chi = 1 at this sigma_b2; None where no such point is"""


def phase_diagram(
    activation: str, sigma_w2s: Sequence[float], depths: Sequence[int], sigma_b2: float = 0.0
) -> PhaseDiagram:
    """The gain of plain nets of many variances and depths at once: 24 x 100 in under a second."""
    if not len(sigma_w2s) or not len(depths) or min(depths) < 1:
        raise UsageError("A phase diagram needs at least one sigma_w2 and one depth of 1 or more; give both.")
    unit, w2 = resolve(activation), np.asarray(sigma_w2s, dtype=float)
    if not (np.all(np.isfinite(w2)) and np.all(w2 > 0)):
        raise UsageError("sigma_w2 is a variance: every one of them must be finite and above zero.")
    now = w2 + sigma_b2
    gains = np.empty((w2.size, max(depths)))
    for layer in range(max(depths)):
        found = meanfield.moments(unit, now)
        gains[:, layer] = 0.5 * np.log10(w2 * found.squared_slope)
        now = np.minimum(w2 * found.second + sigma_b2, 1e250)
    totals = np.cumsum(gains, axis=1)[:, np.asarray(depths, dtype=int) - 1]
    fixed = [_fixed(unit, float(s), float(sigma_b2), 1.0) for s in w2]
    try:
        critical = meanfield.critical_line(activation, sigma_b2).sigma_w2
    except GradwellError:
        critical = None
    return PhaseDiagram(
        activation, sigma_b2, [float(s) for s in w2], [int(d) for d in depths],
        [[float(g) for g in row] for row in totals], [chi for _, chi, _ in fixed], [6 * xi for _, _, xi in fixed],
        critical,
    )  # fmt: skip


PRELOADED = tuple(len(shelf(f"gradwell.{name}")) for name in ("theory.activations", "theory.inits", "symptoms"))
"""The shelves are read with this module, so that the first call is as quick as the others."""

__all__ = ["PRELOADED", "PhaseDiagram", "Prediction", "phase_diagram", "predict", "severity"]
