"""The output's own activation is flat, so that no gradient enters the net at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import beyond_output, by_way, course
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding
from gradwell.symptoms._words import bound_of, grade, judged_at, needs_steps, place, span, where, worst

ORDER = 2

SICK = (
    NetConfig(depth=1, activation="identity", init="uniform", gain=0.2, output_activation="sigmoid", loss="mse"),
    NetConfig(depth=3, task="xor", batch_size=4, output_activation="sigmoid", loss="mse", bias_value=12.0),
)
HEALTHY = (
    NetConfig(depth=3, output_activation="sigmoid", loss="mse"),
    NetConfig(depth=3, output_activation="sigmoid", loss="bce"),
    NetConfig(depth=20, activation="sigmoid", output_activation="sigmoid", loss="mse"),
)


def saturated_output(
    run: Run, *, share: float = 0.8, mild: float = 1.8, serious: float = 2.2, fatal: float = 5.5
) -> Iterator[Finding]:
    """The output's own activation is flat although the answers are wrong, so that no gradient enters the net at all.

    What it does to training:
        A sigmoid at 0.99999 with target 0 is as wrong as can be, and under a squared error its gradient is 1e-5:
        nothing tells the net so. The depth profile can look flat and healthy, since it only compares layers with
        the output, and Adam rescales what is left, slowly.

    How it is measured:
        A site after the last weight layer is saturated in at least `share` of its elements (where measured), and
        S = -log10 of what it passes on of its gradient is at least `mild`, `serious`, `fatal`, while the loss is not
        small: |delta_out| per sample is below 10^-mild of the loss per sample. Cross-entropy on logits and BCE cancel
        the slope and are not concerned.

    When it is no problem:
        When the net is right: then the loss is small as well, and the measure compares the two.

    What helps first:
        Give logits to the loss (`BCEWithLogitsLoss`, `CrossEntropyLoss`); zero biases and small weights in the last
        layer; smaller activations (a scale on residual branches).

    Source:
        Bishop 1995, section 6.9 (matching activation and error); Goodfellow, Bengio and Courville 2016, section 6.2.2.
    """
    needs_steps(run)
    if not any(_after(run, step) for step in run.steps):
        raise NotMeasurable("nothing stands after the last weight layer: the loss gets its outputs directly.")
    if all(step.loss is None for step in run.steps):
        raise NotMeasurable("the loss was not recorded, so a flat output cannot be told from a right one.")
    bounds = (mild, serious, fatal)
    yield from worst(found for way in by_way(run) or [run] for found in _judge(way, share, bounds))


def _judge(run: Run, share: float, bounds: Sequence[float]) -> Iterator[Finding]:
    """At most one finding about the steps of one way of the gradient: a GAN's two nets take turns."""
    judged = course(run, lambda step: shut(run, step, share, bounds[0]))
    severity = None if judged is None else grade(judged.end, bounds)
    if judged is None or severity is None:
        return
    step = judged.last_step
    site = run.sites[_after(run, step)[-1]]
    first, last = span(judged, bounds[0])
    assert step.loss is not None
    words = "nothing" if judged.end == math.inf else f"10^-{judged.end:.1f}"
    text = f"{place(site)} is flat where the outputs are: {words} of the loss's gradient enters the net"
    text += f", at a loss of {size(step.loss)}"
    bound = bound_of(severity, bounds)
    evidence = [Evidence("log10 passed on", -judged.end, "decades", -bound), judged_at(step)]
    yield Finding("saturated_output", severity, [where(site)], first, last, evidence, text)


def _after(run: Run, step: Step) -> list[int]:
    """The sites after the output that change the gradient, in forward order."""
    return [i for i in beyond_output(run.sites, step) if run.sites[i].kind not in ("Identity", "Dropout")]


def shut(run: Run, step: Step, share: float, mild: float) -> float | None:
    """S: decades lost between the last site after the output and the output; 0 where the output is right or open."""
    sites = _after(run, step)
    if not sites or step.output is None or step.loss is None or not math.isfinite(step.loss):
        return None
    arrived, entered = step.at("delta_norm", sites[-1]), step.at("delta_norm", step.output)
    if arrived is None or entered is None or not math.isfinite(arrived) or not math.isfinite(entered) or arrived == 0:
        return None
    known = [value for i in sites if (value := step.at("saturated_frac", i)) is not None and math.isfinite(value)]
    felt = entered * (step.batch or 1)
    if (known and max(known) < share) or felt > 10**-mild * abs(step.loss):
        return 0.0
    return math.inf if entered == 0 else max(0.0, math.log10(arrived / entered))
