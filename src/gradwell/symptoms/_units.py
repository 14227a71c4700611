"""What detectors of unit states share: which activations count, and the worst layer. No entry of the shelf."""

from __future__ import annotations

import math
from functools import cache

from gradwell.measure.profile import in_order, trunk
from gradwell.records.run import Run, Step
from gradwell.shelf import shelf


@cache
def kinds_with(fact: str) -> frozenset[str]:
    """Module classes, functions and autograd nodes of the activations for which a fact of their shelf is true."""
    entries = [e for e in shelf("gradwell.theory.activations").values() if e.fact(fact, False)]
    return frozenset(name for e in entries for name in (*e.fact("TORCH", ()), *e.fact("AUTOGRAD", ()), e.id))


def hidden(run: Run, step: Step, fact: str) -> list[int]:
    """The activation sites before the output that have a fact (CAN_DIE, SATURATES), in forward order."""
    order = in_order(run.sites)
    before = order if step.output is None else order[: order.index(step.output)]
    kinds = kinds_with(fact)
    return [i for i in before if run.sites[i].role == "activation" and run.sites[i].kind in kinds]


def fractions(run: Run, step: Step, column: str, fact: str) -> list[tuple[int, float]]:
    """(index, fraction) of the hidden activations with a fact, where measured."""
    found = [(i, step.at(column, i)) for i in hidden(run, step, fact)]
    return [(i, value) for i, value in found if value is not None and math.isfinite(value)]


def on_trunk(run: Run, step: Step) -> set[int]:
    """The sites that nothing leads round; all of them where the way was not measured."""
    return set(trunk(run.sites, step)) or set(range(len(run.sites)))
