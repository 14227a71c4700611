"""Gradients fall below the smallest number that the format can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import course
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding, Where
from gradwell.symptoms._words import bound_of, grade, judged_at, needs_steps, span, where

ORDER = 1
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
"""The smallest number of a format."""
NEAR = 1e3
"""A gradient of exact zero has underflowed where another weight's gradient is within this factor of the smallest."""
LOST = 0.9
"""Share of a gradient's elements that must be zero or have lost digits."""
DONE = 0.01
"""Steps with less than this share of the first loss do not count: the net has learnt its data."""

SICK = (
    NetConfig(depth=6, activation="sigmoid", dtype="float16"),
    NetConfig(depth=12, dtype="float16"),
    NetConfig(depth=70, activation="sigmoid"),
)
HEALTHY = (
    NetConfig(depth=3, init="he", dtype="float16"),
    NetConfig(depth=3, init="he", dtype="bfloat16"),
    NetConfig(depth=6, activation="sigmoid", dtype="bfloat16"),
    NetConfig(depth=20, activation="tanh", init="lecun", dtype="float16"),
    NetConfig(kind="residual", depth=6, init="fixup", dtype="float16"),
    NetConfig(depth=4, init="he", bias_value=-4.0, dtype="float16"),
    NetConfig(depth=20, activation="sigmoid"),
)


def gradient_underflow(run: Run, *, mild: float = 0.05, serious: float = 0.3, fatal: float = 0.8) -> Iterator[Finding]:
    """Gradients fall below the smallest number that the format can hold, and become exactly zero.

    What it does to training:
        What is rounded to zero is not learnt. Small gradients go first, then whole layers, the first ones before the
        last; loss and accuracy show a plateau and no error.

    How it is measured:
        For each weight the share of a normal distribution of its gradient's RMS (with the loss scale) that lies below
        the smallest number of the format (6e-8 in float16, 1e-45 in float32); it counts where at least nine in ten
        elements are zero or have lost digits. A gradient of exact zero counts as lost where another weight's is within
        a factor of 1000 of that number; alone it is the work of dead units or of weights that are zero. The share of
        all elements that is lost: `mild`, `serious`, `fatal`. Over several sampled steps the median of the last third
        counts.

    When it is no problem:
        Late in training: steps with less than 1 % of the first loss do not count. Autocast keeps weights and gradients
        in float32; what is lost inside shows only where a whole gradient is zero.

    What helps first:
        A loss scale (`torch.amp.GradScaler`); bfloat16, which has float32's range; a loss that is a mean and not a
        mean of means; then whatever makes the gradient vanish.

    Source:
        Micikevicius et al. 2018. Bounds: docs/calibration.md.
    """
    needs_steps(run)
    if run.header.dtype not in SMALLEST:
        raise NotMeasurable(f"the smallest number of the format {run.header.dtype or '(unknown)'} is not known.")
    bounds = (mild, serious, fatal)
    if min(bounds) > 0 and not any(_has_lost(step) for step in run.steps):
        return
    start = next((step.loss for step in run.steps if step.loss is not None), None)

    def quantity(step: Step) -> float | None:
        done = start is not None and step.loss is not None and abs(step.loss) < DONE * abs(start)
        return None if done else lost_share(run, step)

    whole = course(run, quantity)
    severity = None if whole is None else grade(whole.end, bounds)
    if whole is None or severity is None:
        return
    step = whole.last_step
    smallest = SMALLEST[run.header.dtype]
    hit = [(i, share) for i, share in lost(run, step) if share >= mild]
    params = [run.header.params[i] for i, _ in hit]
    quiet = min((step.of("grad_rms", i) or 0.0) * (step.loss_scale or 1.0) for i, _ in hit)
    first, last = span(whole, mild)
    evidence = [
        Evidence("gradient below the smallest number", whole.end, "share", bound_of(severity, bounds)),
        Evidence("smallest grad_rms", quiet, "per element", smallest),
        judged_at(step),
    ]
    scale = f" (with the loss scale of {step.loss_scale:g})" if step.loss_scale else ""
    text = (
        f"about {100 * whole.end:.2g} % of the weights' gradient is lost to underflow in {run.header.dtype}, whose "
        f"smallest number is {size(smallest)}: {len(hit)} weights, {params[0].name} first, have gradients down to "
        f"{size(quiet)}{scale}"
    )
    seen = {site.site: where(site) for site in reversed(run.sites)}
    places = [seen.get(owner, Where(owner, "", None)) for owner in dict.fromkeys(param.site for param in params)]
    yield Finding("gradient_underflow", severity, places, first, last, evidence, text)


def lost_share(run: Run, step: Step) -> float | None:
    """Share of the elements of all weights whose gradient is lost; None where no gradient was seen."""
    found = lost(run, step)
    total = sum(math.prod(run.header.params[i].shape) for i, _ in found)
    return sum(share * math.prod(run.header.params[i].shape) for i, share in found) / total if total else None


def lost(run: Run, step: Step) -> list[tuple[int, float]]:
    """(parameter, lost share of its gradient) of each weight with a gradient."""
    smallest = SMALLEST[run.header.dtype]
    weights = [i for i, param in enumerate(run.header.params) if len(param.shape) >= 2]
    rms = {
        i: (value or 0.0) * (step.loss_scale or 1.0) for i in weights if (value := step.of("grad_rms", i)) is not None
    }
    near = any(0 < value < NEAR * smallest for value in rms.values())
    return [(i, _below(value, smallest, near, step.of("grad_underflow_frac", i))) for i, value in rms.items()]


def _has_lost(step: Step) -> bool:
    """Whether anything can be lost at all: most elements of some gradient are zero or have lost digits."""
    return any(not fraction < LOST for fraction in filter(None, step.params.get("grad_underflow_frac", ())))


def _below(rms: float, smallest: float, near: bool, fraction: float | None) -> float:
    if not math.isfinite(rms) or (fraction or 0.0) < LOST:
        return 0.0
    if rms == 0:
        return 1.0 if near else 0.0
    # P(|x| < s) for x ~ N(0, rms^2)
    return math.erf(smallest / (rms * math.sqrt(2)))
