"""The gradient shrinks on its way back through the time steps of a recurrent layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from gradwell.measure.profile import Course
from gradwell.measure.through_time import REACH, Unrolled, at, courses, unrolled
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades
from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity
from gradwell.symptoms._time import layer_words, needs_time, progress
from gradwell.symptoms._words import adaptive, bound_of, grade, judged_at, milder, span, where, worst

ORDER = 1

_RNN = NetConfig(kind="rnn", activation="tanh", depth=1, width=32, batch_size=64, optimizer="Adam", lr=3e-3)
SICK = (
    replace(_RNN, task="memory"),
    replace(_RNN, task="memory", kind="lstm"),
    replace(_RNN, task="sequence", kind="gru"),
    replace(_RNN, task="memory", optimizer="SGD", lr=0.05),
)
HEALTHY = (
    replace(_RNN, task="recent"),
    replace(_RNN, task="recent", kind="lstm"),
    replace(_RNN, task="echo", kind="gru"),
    replace(_RNN, task="echo"),
    replace(_RNN, task="memory", init="orthogonal"),
    replace(_RNN, task="digits", kind="lstm"),
)


def vanishing_through_time(
    run: Run,
    *,
    mild: float = 1.2,
    serious: float = 1.8,
    fatal: float = 3.5,
    adaptive_mild: float = 1.5,
    adaptive_serious: float = 3.5,
    adaptive_fatal: float = 25.0,
    blind: float = 4.0,
    learning: float = 0.5,
) -> Iterator[Finding]:
    """The gradient shrinks on its way back through the time steps of a recurrent layer.

    What it does to training:
        What happened long ago gets no gradient: the net learns from the last few inputs and never finds out that the
        others matter. The loss falls to what these few inputs can explain and stays there.

    How it is measured:
        A random gradient at the layer's last output is sent back to each input. That gives decades a step and the
        horizon, the lag at which 4 decades are lost: about 17 steps for a default RNN, 20 for a default LSTM or GRU.
        Alone this says nothing, since a default LSTM learns the adding problem over 100 steps. So the lag that the
        loss needs is measured too: where the samples of the batch differ in what the loss wants of an output and
        differ alike in the input k steps before, the loss asks about lag k. D is the number of decades between what
        it asks and the best way there; an input that is asked for within the horizon makes D small, however long the
        sequence. Bounds: `mild`, `serious`, `fatal`; for a plain RNN under an adaptive optimizer (or none)
        `adaptive_mild`, `adaptive_serious`, `adaptive_fatal`, since what it lacks is size alone; in an LSTM or GRU the
        gates must open too. Where nothing shows (small batches, products of inputs) and the loss leaves some input
        with `blind` decades less than others, it is mild for a plain RNN and nothing for a gated one. In a run of 300
        steps or more the loss has the last word: when it has come down to `learning` times its start there is no
        finding, when it stands still it is at least serious. Without an optimizer at most serious; no gradient at all
        where the loss asks is fatal. Cells in a loop are measured by the gradient at each call.

    When it is no problem:
        When the loss asks about the last few inputs only, or looks at every step and each step needs its own
        neighbourhood; when a mean or attention over the outputs leads to every step directly.

    What helps first:
        An LSTM whose forget gate starts open, with a bias near the logarithm of the lag: at lag 99 the default leaves
        D = 20.6, a bias of 2 leaves 2.3, one of 3 leaves 0.7. Orthogonal recurrent weights. A shorter way: read a mean
        or attention over all outputs, shorten the sequence.

    Source:
        Hochreiter 1991; Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013. Bounds:
        docs/calibration.md.
    """
    needs_time(run)
    strict, forgiving = (mild, serious, fatal), (adaptive_mild, adaptive_serious, adaptive_fatal)
    going = progress(run, learning=learning)
    if going == "learns":
        return
    asked = courses(run, Unrolled.missing)
    dark = {name: whole for name, whole in courses(run, Unrolled.lost).items() if name not in asked}
    found = [_asked(run, name, whole, strict, forgiving, stands=going == "stands") for name, whole in asked.items()]
    found += [_dark(run, name, whole, blind, stands=going == "stands") for name, whole in dark.items()]
    yield from worst(finding for finding in found if finding is not None)


def _asked(
    run: Run, name: str, whole: Course, strict: Sequence[float], forgiving: Sequence[float], *, stands: bool
) -> Finding | None:
    """Where it shows what the loss asks about: by the decades between that and the gradient."""
    layer = at(run, whole.last_step, name)
    bounds = strict if layer.gated or adaptive(run) is False else forgiving
    severity = grade(whole.end, bounds)
    if whole.end == math.inf:
        severity = "fatal"
    elif adaptive(run) is None:
        severity = milder(severity, "serious")
    if severity is None:
        return None
    if stands and RANK[severity] < RANK["serious"]:
        severity = "serious"
    text = (
        f"the loss asks about the input {layer.needed} steps before the end of {layer_words(layer)}, where "
        f"{_arrives(whole.end)}{_speed(layer)}"
    )
    first = Evidence("log10 of what arrives where the loss asks", -whole.end, "decades", -bound_of(severity, bounds))
    return _finding(whole, severity, bounds[0], layer, first, text + _still(run, stands=stands))


def _dark(run: Run, name: str, whole: Course, blind: float, *, stands: bool) -> Finding | None:
    """Where it does not show: by the decades between the inputs, when the cell is plain or the training stands."""
    layer = at(run, whole.last_step, name)
    if whole.end < blind or not (stands or not layer.gated):
        return None
    severity: Severity = "serious" if stands else "mild"
    lost = "all of it" if whole.end == math.inf else f"{decades(whole.end, signed=False)} decades"
    text = (
        f"{_looks(layer)}, and the gradient loses {lost} on its way through "
        f"{layer_words(layer)}{_speed(layer)}; this batch does not show which inputs the loss needs"
    )
    first = Evidence("log10_gain through time", -whole.end, "decades", -blind)
    return _finding(whole, severity, blind, layer, first, text + _still(run, stands=stands))


def _finding(whole: Course, severity: Severity, bound: float, layer: Unrolled, first: Evidence, text: str) -> Finding:
    evidence = [first, Evidence("log10_gain a step", layer.rate, "decades"), Evidence("steps", layer.steps, "steps")]
    if layer.horizon is not None:
        evidence.append(Evidence(f"horizon ({REACH:g} decades lost)", layer.horizon, "steps"))
    if layer.needed is not None:
        evidence.append(Evidence("lag that the loss asks about", layer.needed, "steps"))
    start, end = span(whole, bound)
    evidence.append(judged_at(whole.last_step))
    return Finding("vanishing_through_time", severity, [where(layer.site)], start, end, evidence, text)


def _arrives(value: float) -> str:
    if value == math.inf:
        return "exactly no gradient arrives"
    return f"the gradient has lost {decades(value, signed=False)} decades"


def _speed(layer: Unrolled) -> str:
    """`: 0.23 decades a step, 4 decades after 17 steps`."""
    horizon = f", {REACH:g} decades after {layer.horizon} steps" if layer.horizon is not None else ""
    return f": {abs(layer.rate):.2g} decades a step{horizon}"


def _looks(layer: Unrolled) -> str:
    if layer.listens == 1:
        return "the loss looks at one step only"
    return f"the loss looks at {layer.listens or 'several'} of {layer.steps} steps"


def _still(run: Run, *, stands: bool) -> str:
    return f"; the loss has not fallen in {run.steps[-1].step - run.steps[0].step} steps" if stands else ""


def missing(run: Run, step: Step) -> float | None:
    """D of the worst layer at one step; None where it does not show."""
    return max((d for layer in unrolled(run, step) if (d := layer.missing()) is not None), default=None)
