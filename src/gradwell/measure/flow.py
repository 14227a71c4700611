"""How much of the gradient's flow passes where, and the ledger of decades that adds up.

Flow: from the deepest site towards the loss runs one unit; at a fork of the forward pass branch k carries
<d_k, d> / |d|^2 of it, d = sum_k d_k (the Shapley value of branch k for |d|^2). On a chain it is 1 everywhere.

Ledger: total = log10 |d_source| - log10 |d_output| = sum over sites of flow * leaf_gain + rest. On a chain the rest is
exactly the operations between the modules. On a residual block with branch gain g and cosine rho the flow of
the branch is (g^2 + rho g) / (1 + 2 rho g + g^2), so that leaves in a weak branch count little, and the rest is what
the addition itself gives. Each leaf's gain is split into the gain that a random direction would see and what
is left, the alignment of this gradient with this matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from gradwell.measure import profile
from gradwell.measure.once import once_a_step
from gradwell.records.run import Site, Step

Key = tuple[int, int]


def spread_flow(
    order: Sequence[int],
    edges: Mapping[int, Sequence[Key | None]],
    path: set[int],
    start: Sequence[Key],
    shares: Mapping[tuple[int, int], float],
    weights: Mapping[Key, float],
) -> dict[Key, float]:
    """The flow through every key on the path from `start` to the loss.

    `order`: nodes in forward order; `edges[node]`: keys that it sends gradients to; `shares[(node, j)]`: share of
    that edge where several come together (1 where missing); `weights[key]`: how the flow of a node with several
    outputs goes to them. On a path without forks every flow is 1.
    """
    flow: dict[Key, float] = {}
    begun = {key[0] for key in start}
    for key in start:
        flow[key] = weights.get(key, 1.0 / len(start))
    through: dict[int, float] = {}
    numbers: dict[int, set[int]] = {}
    for seq in path:
        for target in edges[seq]:
            if target is not None and target[0] in path:
                numbers.setdefault(target[0], set()).add(target[1])
    for seq in order:
        if seq not in path or seq in begun:
            continue
        arriving = 0.0
        for j, target in enumerate(edges[seq]):
            if target is not None and target[0] in path:
                arriving += flow.get(target, 0.0) * shares.get((seq, j), 1.0)
        through[seq] = arriving
        outputs = numbers.get(seq) or {0}
        for number in outputs:
            flow[(seq, number)] = arriving * (weights.get((seq, number), 1.0) if len(outputs) > 1 else 1.0)
    return flow


class Ledger(msgspec.Struct, frozen=True):
    """Decades from the model's output to the deepest site, by cause; the shares add up to `total`.

    `activation_slope`, `weight_gain`, `normalization_gain`: isotropic parts; `other_layers`: pooling, dropout,
    recurrent layers; `between_modules`: additions, concatenation, attention, functions; `unexplained`: alignment.
    `by_site`: (index, decades) of each leaf, flow times gain; `length`: weights among them. `reaches_zero`: index of
    the trunk site where the gradient is exactly 0; `total` is then that of the deepest site where it is not.
    """

    total: float
    activation_slope: float = 0.0
    weight_gain: float = 0.0
    normalization_gain: float = 0.0
    between_modules: float = 0.0
    other_layers: float = 0.0
    unexplained: float = 0.0
    by_site: list[tuple[int, float]] = []
    length: int = 0
    reaches_zero: int | None = None

    def share(self, cause: str) -> float:
        """Decades of one cause by its id."""
        value: float = getattr(self, cause)
        return value


CAUSE = {"activation": "activation_slope", "weight": "weight_gain", "norm": "normalization_gain"}
"""The cause that the isotropic gain of a site counts for, by the site's role; others count as `other_layers`."""


@once_a_step
def ledger(sites: Sequence[Site], step: Step) -> Ledger | None:
    """The ledger of one sampled step; None where there is no path or a size on it is not finite.

    Where the gradient becomes exactly zero on the way (underflow), the ledger is that of the layers before.
    """
    end, zero = _reach(sites, step)
    if end is None:
        return None
    total = step.total if zero is None else profile.log10_gain(step, end)
    if total is None or not math.isfinite(total):
        return None
    parts, by_site, length = enter(sites, step, _leaves(sites, step, end, zero), "flow")
    rest = total - sum(parts.values())
    return Ledger(total, **parts, between_modules=rest, by_site=by_site, length=length, reaches_zero=zero)


def enter(
    sites: Sequence[Site], step: Step, leaves: Sequence[int], column: str
) -> tuple[dict[str, float], list[tuple[int, float]], int]:
    """What the leaves give to each cause by the flows of a column, the decades of each leaf, the weights among them."""
    parts = dict.fromkeys(("activation_slope", "weight_gain", "normalization_gain", "other_layers", "unexplained"), 0.0)
    by_site: list[tuple[int, float]] = []
    length = 0
    flows, gains, expected_gains = (step.all_at(name, len(sites)) for name in (column, "leaf_gain", "isotropic"))
    for i in leaves:
        flow, gain = flows[i], gains[i]
        if not flow or gain is None or not math.isfinite(gain):
            continue
        by_site.append((i, flow * gain))
        role = sites[i].role
        length += role == "weight"
        cause = CAUSE.get(role)
        if cause is None:
            parts["other_layers"] += flow * gain
            continue
        isotropic = expected_gains[i]
        expected = gain if isotropic is None or not math.isfinite(isotropic) else isotropic
        parts[cause] += flow * expected
        parts["unexplained"] += flow * (gain - expected)
    return parts, by_site, length


def _reach(sites: Sequence[Site], step: Step) -> tuple[int | None, int | None]:
    """The deepest trunk site with a gradient, and the site below it where the gradient is exactly zero, if any."""
    if step.source is None or step.total is None:
        return None, None
    if math.isfinite(step.total):
        return step.source, None
    if step.total != -math.inf:
        return None, None
    deepest: int | None = None
    zero: int | None = None
    for i, gain in reversed(profile.profile(sites, step)):
        if gain == -math.inf:
            zero = i
            break
        deepest = i
    return deepest, zero


def _leaves(sites: Sequence[Site], step: Step, end: int, zero: int | None) -> Sequence[int]:
    """The sites whose gains are in the ledger: all of them, or those above the site where the gradient still lives."""
    if zero is None:
        return range(len(sites))
    order = profile.in_order(sites, step)
    return order[order.index(end) + 1 :]
