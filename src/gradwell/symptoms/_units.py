"""What detectors of unit states share: which activations count, and the worst layer. No entry of the shelf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from gradwell.measure.once import once_a_step
from gradwell.measure.profile import by_role, trunk
from gradwell.records.run import Site, Step
from gradwell.shelf import shelf


@cache
def kinds_with(fact: str) -> frozenset[str]:
    """Module classes, functions and autograd nodes of the activations for which a fact of their shelf is true."""
    entries = [e for e in shelf("gradwell.theory.activations").values() if e.fact(fact, False)]
    return frozenset(name for e in entries for name in (*e.fact("TORCH", ()), *e.fact("AUTOGRAD", ()), e.id))


@once_a_step
def _activations(sites: Sequence[Site], step: Step) -> list[int]:
    """The activation sites before the output, in forward order."""
    found = by_role(sites, step)["activation"]
    if step.output is None:
        return found
    end = (sites[step.output].order, step.output)
    return [i for i in found if (sites[i].order, i) < end]


def hidden(sites: Sequence[Site], step: Step, fact: str) -> list[int]:
    """The activation sites before the output that have a fact (CAN_DIE, SATURATES), in forward order."""
    kinds = kinds_with(fact)
    return [i for i in _activations(sites, step) if sites[i].kind in kinds]


def fractions(sites: Sequence[Site], step: Step, column: str, fact: str) -> list[tuple[int, float]]:
    """(index, fraction) of the hidden activations with a fact, where measured."""
    values = step.all_at(column, len(sites))
    found = [(i, values[i]) for i in hidden(sites, step, fact)]
    return [(i, value) for i, value in found if value is not None and math.isfinite(value)]


@once_a_step
def on_trunk(sites: Sequence[Site], step: Step) -> set[int]:
    """The sites that nothing leads round; all of them where the way was not measured."""
    return set(trunk(sites, step)) or set(range(len(sites)))
