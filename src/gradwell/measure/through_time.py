"""Recurrent layers step by step, from the records of a run: what is sent back, what arrives, what the loss asks about.

Pure functions of records. Everything goes by steps back from the layer's end, in decades.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from gradwell.measure.profile import CARRIES, Course, course, log10_gain, loops
from gradwell.records.run import Column, Run, Site, Step, finite

REACH = 4.0
"""Decades lost at the horizon: what lies further back counts less than a ten-thousandth."""
GATED = ("LSTM", "GRU", "LSTMCell", "GRUCell")


class Unrolled(msgspec.Struct, frozen=True):
    """A recurrent layer at one sampled step, everything by steps back from its end, in decades.

    `sent`: the gradient that one output sends back. `arrives`: the loss's gradient that gets there, from all outputs
    that the loss looks at, from the last of these on. `links`: what the loss wants of each lag, 0 where nothing shows.
    `listens`: number of outputs that the loss looks at, None for a loop whose last call is not the only one.
    """

    name: str
    site: Site
    sent: list[float]
    arrives: list[float]
    links: list[float]
    listens: int | None = None

    @property
    def steps(self) -> int:
        return len(self.sent)

    @property
    def gated(self) -> bool:
        return self.site.kind in GATED

    @property
    def rate(self) -> float:
        """Decades a step, negative where the gradient shrinks: over all lags with a gradient."""
        there = finite(self.sent)
        return (there[-1] - there[0]) / max(len(there) - 1, 1)

    @property
    def horizon(self) -> int | None:
        """The lag at which `REACH` decades are lost, None where they never are."""
        return next((lag for lag, gain in enumerate(self.sent) if gain <= -REACH), None)

    @property
    def needed(self) -> int | None:
        """The lag that the loss asks most about, None where it does not show."""
        return max(range(len(self.links)), key=self.links.__getitem__) if any(self.links) else None

    def missing(self) -> float | None:
        """Decades by which the best way to what the loss asks about falls short: 0 where some of it is near.

        inf where none of it gets any gradient, None where what it asks about does not show.
        """
        if not any(self.links):
            return None
        ways = [math.log10(link) + sent for link, sent in zip(self.links, self.sent, strict=True) if link > 0]
        return max(0.0, math.log10(max(self.links)) - max(ways))

    def grown(self) -> float | None:
        """Decades that the gradient grows at most on its way back, inf where it overflows.

        None in a loop that the loss looks at all along: what comes in on the way looks like growth.
        """
        return None if self.listens is None else max(self.sent[: len(self.arrives)])

    def lost(self) -> float | None:
        """Decades between the input that gets most of the gradient and the one that gets least."""
        most = max(self.arrives)
        return most - min(self.arrives) if most < math.inf else None


def unrolled(run: Run, step: Step) -> Iterator[Unrolled]:
    """Every recurrent layer that the loss of a step goes through."""
    called = loops(run.sites, step)
    if not step.lags and not called:
        return
    kinds = {site.site: site for site in run.sites}
    for name, column in step.lags.items():
        sent, heard = _numbers(column), _numbers(step.heard.get(name, []))
        site = kinds.get(name.removesuffix(":reverse"))
        if site is None or name in called or not heard or len(sent) != len(heard) or any(map(math.isnan, sent)):
            continue
        listening = [back for back, value in enumerate(heard) if value > -math.inf]
        arrives = _together(heard, sent)[listening[0] :]  # no way leads back to what comes after the first listener
        yield Unrolled(name, site, sent, arrives, _links(step, name, len(sent)), len(listening))
    for name, calls in called.items():
        gains = [log10_gain(step, i) for i in reversed(calls)]
        known = [gain for gain in gains if gain is not None and not math.isnan(gain)]
        if len(known) == len(calls) and math.isfinite(known[0]):
            sent = [gain - known[0] for gain in known]
            alone = 1 if (step.at("flow", calls[-1]) or 0.0) > CARRIES else None
            yield Unrolled(name, run.sites[calls[-1]], sent, sent, _links(step, name, len(sent)), alone)


def _numbers(column: Column) -> list[float]:
    return [math.nan if value is None else value for value in column]


def _links(step: Step, name: str, count: int) -> list[float]:
    found = finite(step.links.get(name, []))
    return found if len(found) == count else [0.0] * count


def _together(heard: Sequence[float], sent: Sequence[float]) -> list[float]:
    """log10 of what arrives at each step: squares of what every listening output sends there, added up.

    Against the largest that one output sends; where that overflows, it is what counts.
    """
    most = max(sent)
    if most == math.inf:
        return list(sent)
    squares = [np.power(10.0, 2 * np.array(part)) for part in (heard, [gain - most for gain in sent])]
    total = np.convolve(*squares)[: len(sent)]
    with np.errstate(divide="ignore"):
        found: list[float] = (0.5 * np.log10(total)).tolist()
    return found


def courses(run: Run, quantity: Callable[[Unrolled], float | None]) -> dict[str, Course]:
    """The quantity of each recurrent layer over the run, where it was measured at half of its steps at least."""
    found = {id(step): {layer.name: layer for layer in unrolled(run, step)} for step in run.steps}
    names = dict.fromkeys(name for layers in found.values() for name in layers)

    def over_steps(name: str) -> Course | None:
        values = {key: quantity(layers[name]) for key, layers in found.items() if name in layers}
        if sum(value is not None for value in values.values()) * 2 < len(values):
            return None
        return course(run, lambda step: values.get(id(step)))

    return {name: whole for name in names if (whole := over_steps(name)) is not None}


def at(run: Run, step: Step, name: str) -> Unrolled:
    """A layer at one step."""
    return next(layer for layer in unrolled(run, step) if layer.name == name)
