"""Hidden units that sit on the flat ends of their activation."""

from __future__ import annotations

from collections.abc import Iterator

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import course
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding
from gradwell.symptoms._units import fractions, hidden, on_trunk
from gradwell.symptoms._words import bound_of, grade, judged_at, milder, needs_steps, place, span, where

ORDER = 4

SICK = (
    NetConfig(depth=3, activation="tanh", init="normal", gain=5.0),
    NetConfig(depth=3, activation="sigmoid", input_scale=300.0),
    NetConfig(depth=2, activation="tanh", init="lecun", input_scale=300.0),
)
HEALTHY = (
    NetConfig(depth=4, activation="tanh"),
    NetConfig(depth=12, activation="tanh", init="lecun"),
    NetConfig(depth=4),
    NetConfig(depth=4, activation="sigmoid"),
)


def saturated_units(run: Run, *, mild: float = 0.5, serious: float = 0.8, fatal: float = 0.98) -> Iterator[Finding]:
    """Hidden units that sit on the flat ends of their activation, where its slope is almost zero.

    What it does to training:
        A saturated unit passes almost no gradient to its weights and to what lies before it, and it needs large weight
        changes to come back; the layer acts like a switch.

    How it is measured:
        For each hidden activation that is flat on both sides (sigmoid, tanh and their kin; a fact of the shelf of
        activations) the share of elements, whose slope is below 1/20 of the activation's largest: for
        tanh |h| > 2.2, for sigmoid |h| > 4.4. Slope = gradient out over gradient in. The worst layer counts: `mild`,
        `serious`, `fatal`; in a branch that a shortcut passes at most serious. Over several sampled steps the median
        of the last third counts.

    When it is no problem:
        Gates of recurrent cells are meant to saturate (they are inside the cell and not looked at). Binary codes.

    What helps first:
        Standardised inputs; smaller weights or a normalisation before the activation; ReLU.

    Source:
        Glorot and Bengio 2010; LeCun et al. 1998. Bounds: docs/calibration.md.
    """
    needs_steps(run)
    if not any(hidden(run, step, "SATURATES") for step in run.steps):
        raise NotMeasurable("no hidden activation is flat on both sides: there is no sigmoid, tanh or kin of them.")
    judged = course(run, lambda step: worst(run, step)[1])
    if judged is None:
        raise NotMeasurable("no gradient went through the hidden activations, so their slopes are not known.")
    index, value = worst(run, judged.last_step)
    if index is None or value is None:
        return
    severity = grade(value, (mild, serious, fatal))
    if not on_trunk(run, judged.last_step, index):
        severity = milder(severity, "serious")
    if severity is None:
        return
    found = [pair for pair in fractions(run, judged.last_step, "saturated_frac", "SATURATES") if pair[1] >= mild]
    found.sort(key=lambda pair: -pair[1])
    first, last = span(judged, mild)
    site = run.sites[index]
    text = f"{100 * value:.0f} % of the outputs of {place(site)} lie where {site.kind} is flat"
    others = f"; {len(found)} layers have {100 * mild:.0f} % or more" if len(found) > 1 else ""
    bound = bound_of(severity, (mild, serious, fatal))
    evidence = [
        Evidence("saturated_frac", value, "of the elements", bound),
        judged_at(judged.last_step),
    ]
    places = [where(run.sites[i]) for i, _ in found[:3]] or [where(site)]
    yield Finding("saturated_units", severity, places, first, last, evidence, text + others)


def worst(run: Run, step: Step) -> tuple[int | None, float | None]:
    """The layer with the largest share of saturated elements, those on the trunk first."""
    found = fractions(run, step, "saturated_frac", "SATURATES")
    if not found:
        return None, None
    return max(found, key=lambda pair: (pair[1], on_trunk(run, step, pair[0])))
