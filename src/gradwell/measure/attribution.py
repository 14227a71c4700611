"""Who shrinks the gradient, on any graph: the Aumann-Shapley split of the log-gain among the layers.

The backward map of a fixed forward pass is linear in every layer's Jacobian. Let each layer's Jacobian be multiplied
by e^((s - 1) gamma), gamma = ln |gradient sent on| - ln |gradient arrived|: s = 1 is the true net, at s = 0 every layer
has gain 1. Along s from 0 to 1 the height h(s) = ln |gradient at the source| goes from that of the bare wiring to the
true one, and each layer's part is A = gamma * integral of E(s) ds, E = dh/d(ln of the layer's gate). So

    ln |d_source| - ln |d_output| = wiring + sum of A,  wiring = h(0) - ln |d_output|.

E is a unit flow: 1 on a chain, and there A is the layer's own log-gain. A layer with gain 1 gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from gradwell.errors import NotMeasurable
from gradwell.measure.flow import Ledger, enter
from gradwell.records.run import Site, Step

Evaluate = Callable[[float], tuple[float, list[float]]]
"""From s to the height h(s) and the flow E(s) through each layer."""


class Path(msgspec.Struct, frozen=True):
    """`flows`: the mean flow of each layer along the path; `rest`: what the quadrature left of h(1) - h(0), ln."""

    flows: list[float]
    rest: float
    nodes: int


def follow(
    gains: Sequence[float], rise: float, evaluate: Evaluate, *, tolerance: float = 1e-3, fewest: int = 4, most: int = 32
) -> Path:
    """The mean flow of each layer by Gauss-Legendre nodes, doubled until they explain `rise` = h(1) - h(0).

    `gains`: gamma of each layer, ln. Stops at `most` nodes; what they do not explain is told as `rest`.
    Raises `NotMeasurable` where a height or flow is not finite.

    >>> follow([-2.0], -2.0, lambda s: (-2.0 * s, [1.0])).flows
    [1.0]
    """
    nodes = fewest
    while True:
        flows = _mean_flow(nodes, len(gains), evaluate)
        rest = rise - math.fsum(gain * flow for gain, flow in zip(gains, flows, strict=True))
        if abs(rest) < tolerance or 2 * nodes > most:
            return Path(flows, rest, nodes)
        nodes *= 2


def _mean_flow(nodes: int, players: int, evaluate: Evaluate) -> list[float]:
    places, weights = np.polynomial.legendre.leggauss(nodes)
    total = np.zeros(players)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        height, flows = evaluate(float(place))
        if not (math.isfinite(height) and all(map(math.isfinite, flows))):
            raise NotMeasurable("a gradient leaves the range of its number format on the way.")
        total += weight * np.asarray(flows)
    means: list[float] = total.tolist()
    return means


def deep_ledger(sites: Sequence[Site], step: Step) -> Ledger | None:
    """The ledger with Aumann-Shapley flows, of a step that was measured at level deep; None for other steps.

    The wiring counts as `between_modules`, what the quadrature has left as `unexplained`; the sum is `step.total`.
    """
    deep, total = step.deep, step.total
    if deep is None or deep.wiring is None or total is None or not math.isfinite(total):
        return None
    parts, by_site, length = enter(sites, step, range(len(sites)), "path_flow")
    parts["unexplained"] += total - deep.wiring - math.fsum(parts.values())
    return Ledger(total, **parts, between_modules=deep.wiring, by_site=by_site, length=length, reaches_zero=None)
