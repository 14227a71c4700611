"""The gradient shrinks on its way from the output to the first layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter

from gradwell.measure.flow import Ledger, ledger
from gradwell.measure.profile import Course, between, course, layers, pooled, through_depth, trunk, weight_of, weights
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades, size, times
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import RANK, Evidence, Finding, Severity
from gradwell.symptoms._words import (
    adaptive,
    bound_of,
    grade,
    judged_at,
    milder,
    needs_depth,
    over_layers,
    place,
    span,
    where,
    worst,
)
from gradwell.symptoms.gradient_underflow import SMALLEST

ORDER = 1
FAR = 1e6
"""Times the smallest number of the format: a gradient above it does not underflow within one step of the way."""
MOVES = 0.3
"""Share of its size by which a step moves a weight that is about to grow out of what it takes."""
CULPRIT = 0.25
"""Share of the total from which on a single site is named."""

SICK = (
    NetConfig(depth=20, activation="sigmoid"),
    NetConfig(depth=12),
    NetConfig(depth=12, activation="gelu", optimizer="Adam", lr=1e-3),
    NetConfig(depth=24, optimizer="Adam", lr=1e-3),
    NetConfig(depth=20, activation="tanh", optimizer="Adam", lr=1e-3),
    NetConfig(kind="cnn", depth=12, width=16),
)
HEALTHY = (
    NetConfig(depth=2),
    NetConfig(depth=2, optimizer="Adam", lr=1e-3),
    NetConfig(depth=12, init="he"),
    NetConfig(depth=20, activation="tanh", init="lecun"),
    NetConfig(depth=10, activation="sigmoid", init="centred_sigmoid"),
    NetConfig(kind="residual", depth=24, norm="layer"),
    NetConfig(kind="residual", depth=6, init="fixup"),
    NetConfig(kind="transformer", depth=6, width=32, optimizer="Adam", lr=1e-3),
    NetConfig(kind="cnn", depth=4, width=16, init="he"),
)


def vanishing_gradient(
    run: Run,
    *,
    mild: float = 1.0,
    serious: float = 2.2,
    fatal: float = 4.0,
    adaptive_mild: float = 1.25,
    adaptive_serious: float = 4.0,
    adaptive_fatal: float = 8.0,
    eps_margin: float = 0.1,
) -> Iterator[Finding]:
    """The gradient shrinks on its way from the output to the first layers.

    What it does to training:
        The first layers hardly learn; the last ones learn on features that stay random. Plain SGD suffers soonest,
        since every layer's step is as small as its gradient. Adam and its kin rescale each layer's step and forgive
        about twice as many decades, until the gradient comes near their eps: below it they stand still as well. At
        the end of the scale the gradient is exactly 0 in the number format (underflow) and nothing is learnt at all.

    How it is measured:
        D = -(smallest log10 |delta_l| / |delta_out|) over the trunk, the sites that carry more than half of the
        gradient's flow; delta_l is dLoss/d(output of l), the L2 norm per sample. What pooling takes is left out:
        weight gradients add up over the positions. Weight gradients are no measure: in a ReLU net they stay equally
        large over depth while everything vanishes. Bounds in decades: `mild`, `serious`, `fatal` for SGD and its kin;
        `adaptive_mild`, `adaptive_serious`, `adaptive_fatal` for adaptive optimizers while the smallest gradient (RMS
        per element, of the weights that are no vectors) is at least `eps_margin` times their eps. Without an optimizer
        the adaptive bounds hold and the finding is at most serious. Weights so small that one step of the optimizer
        moves them by a third of their size grow out of it: what they take counts as mild at most. An exact zero is
        fatal, but for one behind a layer of dead units, which is the business of `dead_units`, one of a branch that
        this batch does not use (a mask of zeros), and one behind a weight that starts at zero and is about to move
        (Fixup's head). Over several sampled steps the median of the last third counts; when only the start was bad, the
        finding is mild and says when it was over.

    When it is no problem:
        Behind shortcuts: the branch may vanish while the trunk does not. Late in training, when the loss is near
        zero, all gradients are small; that is no profile, since each step is compared with its own output.

    What helps first:
        An initialisation that fits the activation (He for ReLU, critical for the rest); a normalisation in each
        layer; shortcuts round every two layers; ReLU instead of sigmoid or tanh.

    Source:
        Hochreiter 1991; Bengio, Simard and Frasconi 1994; Glorot and Bengio 2010; He et al. 2015. Bounds:
        docs/calibration.md.
    """
    plain, forgiving = (mild, serious, fatal), (adaptive_mild, adaptive_serious, adaptive_fatal)
    ways = [_Judge(way, plain, forgiving, eps_margin) for way in needs_depth(run)]
    yield from worst(found for judge in ways for found in judge.findings())


def lost(run: Run, step: Step) -> float | None:
    """D: decades that the trunk loses at most, without what pooling takes; inf for an exact zero, None unmeasured."""
    taken = pooled(run.sites, step)
    gains = [gain - taken[i] for i, gain in _gains(run, step)]
    return None if not gains else max(0.0, -min(gains))


def lasting(run: Run, step: Step) -> float:
    """D without what weights take that are about to grow: weights so small that one step of the optimizer moves them
    by much of their size. The gradient through them, and with it the next step, grows as they do.
    """
    if not any(step.params.get("update_rms", [])):  # no optimizer, no step
        return lost(run, step) or 0.0
    pooling, moving = pooled(run.sites, step), _moving(run, step)
    return max(0.0, *(pooling[i] + moving[i] - gain for i, gain in _gains(run, step)))


def _moving(run: Run, step: Step) -> dict[int, float]:
    """Decades (0 or negative) that weights which are about to grow take between each site and the output."""
    taken: dict[int, float] = {}
    total = 0.0
    for i in reversed(between(run.sites, step)):
        taken[i] = total
        flow, gain = step.at("flow", i), step.at("leaf_gain", i)
        if run.sites[i].role == "weight" and flow and gain is not None and -math.inf < gain < 0 and moves(run, step, i):
            total += flow * gain
    return taken


def moves(run: Run, step: Step, index: int) -> bool:
    """Whether this step changes a site's weight by much of its size."""
    weight = weight_of(run, index)
    if weight is None:
        return False
    size, update = step.of("weight_rms", weight), step.of("update_rms", weight)
    return bool(size and update and update >= MOVES * size)


def _gains(run: Run, step: Step) -> list[tuple[int, float]]:
    """The profile of the trunk without nan, and without what lies behind a layer of dead units."""
    found = through_depth(run.sites, step)
    if all(map(math.isfinite, map(itemgetter(1), found))):
        return found
    found = [(i, gain) for i, gain in found if not math.isnan(gain)]
    zeros = [n for n, (_, gain) in enumerate(found) if gain == -math.inf]
    if zeros and zeros[-1] + 1 < len(found):
        cut = found[zeros[-1] + 1][0]
        if _dead(run, step, cut) or _masked(run, step, cut) or _waits(run, step, cut):
            return found[zeros[-1] + 1 :]
    return found


def _dead(run: Run, step: Step, index: int) -> bool:
    return run.sites[index].role == "activation" and step.at("act_rms", index) == 0


def _waits(run: Run, step: Step, index: int) -> bool:
    """True where a weight is exactly zero and about to move: a head or a branch that starts at zero on purpose."""
    weight = weight_of(run, index)
    return weight is not None and step.of("weight_rms", weight) == 0 and bool(step.of("grad_rms", weight))


def _masked(run: Run, step: Step, index: int) -> bool:
    """True where a site sends on a gradient of ordinary size and nothing of it arrives: something between multiplies
    with zeros or chooses another branch, as `torch.where` does for an input that this batch has not.
    """
    arrived, gain = step.at("delta_norm", index), step.at("leaf_gain", index)
    smallest = SMALLEST.get(run.header.dtype)
    if not arrived or gain is None or smallest is None or not math.isfinite(arrived) or not math.isfinite(gain):
        return False
    return arrived * 10**gain > FAR * smallest


class _Judge:
    """The bounds that hold for the run's optimizer, and the words."""

    def __init__(self, run: Run, plain: Sequence[float], forgiving: Sequence[float], eps_margin: float) -> None:
        self.run = run
        self.plain, self.forgiving = plain, forgiving
        self.eps_margin = eps_margin
        self.adaptive = adaptive(run)

    def findings(self) -> Iterator[Finding]:
        """At most one: how bad it is at the end, or that it was serious at the start."""
        if not self.shrinks():
            return
        whole = course(self.run, lambda step: lost(self.run, step))
        if whole is None:
            return
        end = self(whole.end, whole.last_step)
        if end is not None:
            yield self.finding(whole, end)
            return
        start = self(whole.start, whole.first_step)
        if start is not None and RANK[start] >= RANK["serious"]:
            yield self.recovered(whole, start)

    def shrinks(self) -> bool:
        """Whether any gain reaches a bound before what pooling takes is left out: else nothing does behind it."""
        least, sites = -min(*self.plain, *self.forgiving), self.run.sites
        return any(gain <= least for step in self.run.steps for _, gain in through_depth(sites, step))

    def floor(self) -> float:
        """The gradient below which an adaptive optimizer's eps takes over; 0 for one without eps."""
        eps = self.run.optimizer.settings.get("eps", 0.0) if self.run.optimizer else 0.0
        return self.eps_margin * float(eps) if isinstance(eps, (int, float)) else 0.0

    def bounds(self, step: Step) -> Sequence[float]:
        """The bounds for a step: those of SGD when nothing rescales a gradient of this size."""
        if self.adaptive is None:
            return self.forgiving
        quiet = quietest(self.run, step) if self.adaptive else None
        return self.forgiving if self.adaptive and (quiet is None or quiet >= self.floor()) else self.plain

    def __call__(self, value: float, step: Step) -> Severity | None:
        if value == math.inf:
            return "fatal"
        severity = grade(value, self.bounds(step))
        if severity is not None:
            severity = milder(severity, grade(self.lasting(value, step), self.bounds(step)) or "mild")
        return milder(severity, "serious") if self.adaptive is None else severity

    def lasting(self, value: float, step: Step) -> float:
        """What lasts of the decades that a step has lost: all of them where no step was taken."""
        return lasting(self.run, step) if any(step.params.get("update_rms", ())) else value

    def finding(self, whole: Course, severity: Severity) -> Finding:
        step = whole.last_step
        book = ledger(self.run.sites, step)
        site = _quietest_site(self.run, step)
        culprits = [i for i in _culprits(book) if i != site]
        summary = self._summary(whole, site, book) + self._hint(whole.end, step, severity)
        sites = self.run.sites
        first, last = span(whole, self.bounds(step)[0])
        return Finding(
            "vanishing_gradient", severity, [where(sites[i]) for i in (site, *culprits)], first, last,
            self._evidence(whole.end, step, severity), summary,
        )  # fmt: skip

    def recovered(self, whole: Course, was: Severity) -> Finding:
        site = _quietest_site(self.run, whole.first_step)
        mild = self.bounds(whole.first_step)[0]
        first, last = span(whole, mild)
        summary = (
            f"at the start the gradient shrank by {decades(whole.start, signed=False)} decades on its way to "
            f"{place(self.run.sites[site])} ({was}); recovered by step {_over(whole, mild)}, now "
            f"{decades(whole.end, signed=False)}"
        )
        evidence = [Evidence("log10_gain at the start", -whole.start, "decades", -mild), judged_at(whole.first_step)]
        return Finding("vanishing_gradient", "mild", [where(self.run.sites[site])], first, last, evidence, summary)

    def _evidence(self, value: float, step: Step, severity: Severity) -> list[Evidence]:
        found = [Evidence("log10_gain", -value, "decades", -bound_of(severity, self.bounds(step)))]
        quiet = quietest(self.run, step) if self.adaptive else None
        if quiet is not None:
            found.append(Evidence("smallest grad_rms", quiet, "per element", self.floor()))
        return [*found, judged_at(step)]

    def _summary(self, whole: Course, worst: int, book: Ledger | None) -> str:
        sites, step = self.run.sites, whole.last_step
        assert step.output is not None
        count = over_layers(layers(sites, step, worst))
        way = f"from {sites[step.output].site or 'the output'} to {place(sites[worst])}"
        if whole.end != math.inf:
            text = f"{way} the gradient shrinks by {decades(whole.end, signed=False)} decades ({times(whole.end)})"
            return f"{text}{count}{self._culprit_words(book)}"
        dtype = f" in {self.run.header.dtype}" if self.run.header.dtype else ""
        if self._shut(step, worst):
            return f"{way} the gradient becomes exactly 0: the weights there are exactly 0{count}"
        before = f", after a loss of {decades(book.total, signed=False)} decades" if book is not None else ""
        return f"{way} the gradient becomes exactly 0{dtype} (underflow){before}{count}"

    def _shut(self, step: Step, site: int) -> bool:
        """Whether the gradient is zero because a weight between the site and the output is."""
        way = trunk(self.run.sites, step)
        behind = [weight_of(self.run, i) for i in way[way.index(site) + 1 :] if self.run.sites[i].role == "weight"]
        return any(step.of("weight_rms", i) == 0 for i in behind if i is not None)

    def _culprit_words(self, book: Ledger | None) -> str:
        named = [f"{self.run.sites[i].site} alone takes {decades(d, signed=False)}" for i, d in _taken(book)]
        return f"; {', '.join(named)}" if named else ""

    def _hint(self, value: float, step: Step, severity: Severity) -> str:
        if value == math.inf:
            return ""
        plain = grade(value, self.plain)
        if self.adaptive is None and plain != severity:
            return f"; without an optimizer judged as under Adam; under plain SGD it would be {plain}"
        if grade(value, self.bounds(step)) != grade(self.lasting(value, step), self.bounds(step)):
            ready = [i for i in trunk(self.run.sites, step) if moves(self.run, step, i)]
            names = ", ".join(self.run.sites[i].site for i in ready[:3])
            more = f" and {len(ready) - 3} more" if len(ready) > 3 else ""
            return f"; a step moves the weights of {names}{more} by more than {MOVES:.0%} of their size: they will grow"
        quiet, optimizer = quietest(self.run, step) if self.adaptive else None, self.run.optimizer
        if optimizer and quiet is not None and quiet < self.floor():
            eps = f"{self.floor() / self.eps_margin:g}"
            return f"; gradients of {size(quiet)} are too small for {optimizer.kind}'s eps of {eps} to be rescaled"
        return ""


def quietest(run: Run, step: Step) -> float | None:
    """The smallest gradient (RMS per element, loss scale taken off) of a weight on the trunk; a vector (one number for
    each channel) counts only where there is nothing else.
    """
    owned, params = weights(run.header), run.header.params
    found = [owned[i] for i in trunk(run.sites, step) if run.sites[i].role in ("weight", "source")]
    matrices = [i for i in found if i is not None and sum(axis > 1 for axis in params[i].shape) > 1]
    grads = step.all_of("grad_rms", len(params))
    sizes = finite([grads[i] for i in matrices or found if i is not None])
    return min(sizes) / (step.loss_scale or 1.0) if sizes else None


def _quietest_site(run: Run, step: Step) -> int:
    """The site with the smallest gradient; the first zero from the output where it reaches zero."""
    gains = _gains(run, step)
    zeros = [i for i, gain in gains if gain == -math.inf]
    if zeros:
        return zeros[-1]
    taken = pooled(run.sites, step)
    return min(gains, key=lambda pair: pair[1] - taken[pair[0]])[0]


def _taken(book: Ledger | None) -> list[tuple[int, float]]:
    """The (at most two) sites that take at least a quarter of the decades each, when the way is longer than that."""
    if book is None or book.total > -1 or len(book.by_site) < 2 / CULPRIT:
        return []
    large = sorted((pair for pair in book.by_site if pair[1] <= CULPRIT * book.total), key=lambda pair: pair[1])
    return large[:2]


def _culprits(book: Ledger | None) -> list[int]:
    return [i for i, _ in _taken(book)]


def _over(whole: Course, bound: float) -> int:
    """The first sampled step from which on the value stays below the bound."""
    bad = [n for n, (_, value) in enumerate(whole.values) if value >= bound]
    after = min(bad[-1] + 1, len(whole.values) - 1) if bad else 0
    return whole.values[after][0].step
