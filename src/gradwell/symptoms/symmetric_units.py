"""Hidden units that are exact copies of each other and stay so."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import by_role, course, weights
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding
from gradwell.symptoms._words import bound_of, grade, judged_at, needs_steps, place, span, where

ORDER = 1

SICK = (
    NetConfig(depth=3, init="zeros"),
    NetConfig(depth=3, activation="sigmoid", init="zeros"),
    NetConfig(depth=2, activation="tanh", init="zeros", bias_value=0.5, optimizer="Adam", lr=1e-3),
    NetConfig(kind="cnn", depth=2, width=8, init="zeros", bias_value=0.1),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(depth=4, init="uniform"),
    NetConfig(depth=3, init="identity"),
    NetConfig(depth=3, width=1),
    NetConfig(depth=4, init="he", bias_value=-4.0),
    NetConfig(depth=4, batch_size=1),
    NetConfig(depth=70, activation="sigmoid"),
    NetConfig(kind="residual", depth=6, init="fixup"),
    NetConfig(kind="cnn", depth=3, width=8, init="delta_orthogonal"),
    NetConfig(kind="transformer", depth=2, width=16, optimizer="Adam", lr=1e-3),
)


def symmetric_units(run: Run, *, mild: float = 0.5, serious: float = 0.9, fatal: float = 1.0) -> Iterator[Finding]:
    """Hidden units that are exact copies of each other and stay so, because weights and gradients are the same.

    What it does to training:
        Copies get the same gradient, so they remain copies under every optimizer: a layer of 512 units that all start
        alike has one unit. With all weights zero even that one may never move.

    How it is measured:
        The share of a layer's units (rows of its weight) that another unit equals, in all weights and in all of their
        gradients, to 1e-4 of their size. Units with equal weights and different gradients are about to part and do not
        count. `mild` and `serious`: this share in the worst hidden layer; `fatal`: all hidden layers (this share of
        them) are serious. A layer of zeros whose gradient is zero counts in the first steps only where all hidden
        layers are copies: its turn may come when the layer behind it has moved. Over several sampled steps the median
        of the last third counts.

    When it is no problem:
        The output layer and embeddings are not looked at. Dead units differ in their weights. Zero as the start of a
        branch's last layer, or of half of a low-rank pair, is meant, and its gradients differ.

    What helps first:
        Random weights (torch's default, He, LeCun); zero is for biases.

    Source:
        Rumelhart, Hinton and Williams 1986; Goodfellow, Bengio and Courville 2016, section 8.4.
    """
    needs_steps(run)
    known = {id(step): shares(run, step) for step in run.steps}
    if not any(known.values()):
        raise NotMeasurable("there is no hidden layer with two or more units whose gradient was seen.")
    bounds = (mild, serious, math.inf)
    whole = course(run, lambda step: max((share for _, share in known[id(step)]), default=None))
    if whole is None:
        return
    step, found = whole.last_step, dict(known[id(whole.last_step)])
    severity = grade(whole.end, bounds)
    if severity is None:
        return
    same = [i for i in found if found[i] >= serious]
    if found and len(same) >= fatal * len(found):
        severity = "fatal"
    at = same or [max(found, key=lambda i: found[i])]
    first, last = span(whole, mild)
    unit = "share of units"
    evidence = [
        Evidence("units with a twin", whole.end, unit, bound_of(severity, (mild, serious, serious))),
        Evidence("layers of twins", len(same), "layers"),
        judged_at(step),
    ]
    every = "all" if severity == "fatal" else f"{100 * whole.end:.0f} % of the"
    layers = f"of {place(run.sites[at[0]])}"
    if severity == "fatal":
        layers = f"of every hidden layer ({len(found)})" if len(found) > 1 else "of the only hidden layer"
    text = f"{every} units {layers} are copies of each other: same weights, same gradients, so they stay copies"
    yield Finding("symmetric_units", severity, [where(run.sites[i]) for i in at], first, last, evidence, text)


def worst_share(run: Run, step: Step) -> float | None:
    """The largest share of twins in a hidden layer; None where nothing was measured."""
    return max((share for _, share in shares(run, step)), default=None)


def shares(run: Run, step: Step) -> list[tuple[int, float]]:
    """(site, share of twins) of each hidden weight layer, in forward order.

    Layers at exact zero with a gradient of exact zero have the share 0, unless no hidden layer is anything else.
    """
    found: list[tuple[int, float]] = []
    waiting: set[int] = set()
    taken: set[int] = set()
    count, owned = len(run.header.params), weights(run.header)
    twins, sizes, grads = (step.all_of(name, count) for name in ("twin_frac", "weight_rms", "grad_rms"))
    for i in by_role(run.sites, step)["weight"]:
        weight = owned[i]
        if i == step.output or weight is None or weight in taken:
            continue
        share = twins[weight]
        if share is None or math.isnan(share):
            continue
        taken.add(weight)
        found.append((i, share))
        if sizes[weight] == 0 and grads[weight] == 0:
            waiting.add(i)
    if not waiting or all(share == 1 for _, share in found):
        return found
    return [(i, 0.0 if i in waiting else share) for i, share in found]
