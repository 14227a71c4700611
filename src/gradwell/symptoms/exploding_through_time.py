"""The gradient grows on its way back through the time steps of a recurrent layer."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from gradwell.measure.profile import Course
from gradwell.measure.through_time import Unrolled, at, courses, unrolled
from gradwell.records.net import NetConfig
from gradwell.records.numbers import decades, times
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._time import layer_words, needs_time, progress
from gradwell.symptoms._words import adaptive, bound_of, grade, judged_at, milder, span, where, worst

ORDER = 1

_RNN = NetConfig(kind="rnn", activation="tanh", depth=1, width=32, batch_size=64, task="recent")
SICK = (
    replace(_RNN, gain=5.0),
    replace(_RNN, gain=5.0, optimizer="Adam", lr=3e-3),
    replace(_RNN, activation="relu", init="orthogonal", gain=2.0),
)
HEALTHY = (
    _RNN,
    replace(_RNN, activation="relu", init="identity"),
    replace(_RNN, init="orthogonal", optimizer="Adam", lr=3e-3),
    replace(_RNN, kind="lstm", task="memory"),
    replace(_RNN, kind="gru", task="echo", optimizer="Adam", lr=3e-3),
)


def exploding_through_time(
    run: Run,
    *,
    mild: float = 1.0,
    serious: float = 2.0,
    fatal: float = 5.0,
    learning: float = 0.5,
) -> Iterator[Finding]:
    """The gradient grows on its way back through the time steps of a recurrent layer.

    What it does to training:
        The shared weights get the sum of all steps, and the far ones drown the near ones: one batch in a while throws
        the weights far away, or the loss is NaN. A net whose gradient explodes through time is chaotic: its last state
        hangs on details of inputs long ago, so that it can learn nothing lasting about the near ones either.

    How it is measured:
        A random gradient at the layer's last output is sent back to each input; E is the largest log10 of the gradient
        at an input over that at the last one. `mild`, `serious`, `fatal` in decades; without an optimizer at most
        serious. In a run of 300 steps or more whose loss has come down to `learning` times its start it is mild:
        clipping, or luck, has kept it in bounds. Cells in a loop are measured by the gradient at each call, where the
        loss looks at the last one.

    When it is no problem:
        Half a decade up or down is luck. Clipping by norm bounds the step, and training goes on where only few batches
        explode; a chaotic net stays chaotic.

    What helps first:
        Clip the gradient's norm; orthogonal recurrent weights; a gated cell; shorter chunks (truncated
        backpropagation).

    Source:
        Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013. Bounds: docs/calibration.md.
    """
    needs_time(run)
    bounds = (mild, serious, fatal)
    most: Severity = "serious" if adaptive(run) is None else "fatal"
    if progress(run, learning=learning) == "learns":
        most = "mild"
    found = []
    for name, whole in courses(run, Unrolled.grown).items():
        severity = milder(grade(whole.end, bounds), most)
        if severity is not None:
            found.append(_finding(run, name, whole, severity, bounds))
    yield from worst(found)


def _finding(run: Run, name: str, whole: Course, severity: Severity, bounds: tuple[float, ...]) -> Finding:
    layer = at(run, whole.last_step, name)
    lag = layer.sent.index(whole.end)
    text = (
        f"{lag} steps back in {layer_words(layer)}, the gradient is {times(whole.end)} larger than at the last step "
        f"({decades(whole.end)} decades, {layer.rate:+.2g} a step)"
    )
    evidence = [
        Evidence("log10_gain through time", whole.end, "decades", bound_of(severity, bounds)),
        Evidence("log10_gain a step", layer.rate, "decades"),
        Evidence("steps", layer.steps, "steps"),
        judged_at(whole.last_step),
    ]
    first, last = span(whole, bounds[0])
    return Finding("exploding_through_time", severity, [where(layer.site)], first, last, evidence, text)


def grown(run: Run, step: Step) -> float | None:
    """E of the worst layer at one step."""
    return max((e for layer in unrolled(run, step) if (e := layer.grown()) is not None), default=None)
