"""What detectors share: places, windows of steps and the words for them. No entry of the shelf."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradwell.errors import NotMeasurable
from gradwell.measure.profile import Course, by_way
from gradwell.records.run import Run, Site, Step
from gradwell.records.verdict import RANK, Evidence, Finding, Severity, Where

SEVERITIES: tuple[Severity, ...] = ("mild", "serious", "fatal")


def where(site: Site) -> Where:
    """The place of a site."""
    return Where(site.site, site.kind, site.source)


def place(site: Site) -> str:
    """A site in a sentence: its name, the number of a repeated call, and file:line where known."""
    name = site.site or "the model"
    name = f"{name} (call {site.call + 1})" if site.call else name
    return f"{name} ({site.source})" if site.source else name


def grade(value: float, bounds: Sequence[float]) -> Severity | None:
    """The severity of a value by the bounds of mild, serious and fatal; None below all of them."""
    mild, serious, fatal = bounds
    return "fatal" if value >= fatal else "serious" if value >= serious else "mild" if value >= mild else None


def milder(one: Severity | None, other: Severity) -> Severity | None:
    """The lesser of two severities; None stays None."""
    return one if one is None or RANK[one] <= RANK[other] else other


def needs_steps(run: Run) -> None:
    """Raise when the run holds no sampled step."""
    if not run.steps:
        raise NotMeasurable(
            "no training step was recorded: `loss.backward()` did not run in this process "
            "(`torch.autograd.grad` and torch.func are no steps)."
        )


def needs_depth(run: Run) -> list[Run]:
    """The run apart by the gradient's ways through at least two weight layers; raise when there is none."""
    needs_steps(run)
    ways = by_way(run)
    if not ways:
        raise NotMeasurable("no backward pass went through two weight layers or more, so there is no depth to compare.")
    return ways


def worst(findings: Iterable[Finding]) -> list[Finding]:
    """The worst of several findings of one symptom, as a list that is empty without any."""
    ranked = sorted(findings, key=lambda found: (RANK[found.severity], abs(found.evidence[0].value or 0.0)))
    return ranked[-1:]


def adaptive(run: Run) -> bool | None:
    """Whether the steps are rescaled per parameter; None where that is not known.

    Told by the optimizer's class. Without an optimizer (a training loop written by hand) it is plain SGD when the same
    factor leads from every gradient to its update.
    """
    if run.optimizer is not None:
        return run.optimizer.adaptive
    for step in reversed(run.steps):
        updates = step.params.get("update_rms", ())
        if not any(updates):
            continue
        pairs = zip(step.params.get("grad_rms", ()), updates, strict=False)
        rates = [update / grad for grad, update in pairs if grad and update]
        if len(rates) > 1 and all(math.isfinite(rate) for rate in rates):
            return None if max(rates) > 1.1 * min(rates) else False
    return None


def bound_of(severity: Severity, bounds: Sequence[float]) -> float:
    """The bound that a severity broke."""
    return bounds[SEVERITIES.index(severity)]


def judged_at(step: Step) -> Evidence:
    """Which sampled step a finding's numbers come from; `diagnose` looks for the causes there."""
    return Evidence("measured at", step.step, "step")


def over_layers(count: int) -> str:
    """`, 12 layers` to end a clause about the way from the output to a place; nothing where no layer lies between."""
    return f", {layers_word(count)}" if count > 0 else ""


def layers_word(count: int) -> str:
    """`1 layer`, `12 layers`."""
    return f"{count} layer{'s' if count != 1 else ''}"


def span(judged: Course, bound: float) -> tuple[int, int]:
    """The first and the last sampled step at which the quantity reaches the bound."""
    steps = [step.step for step, value in judged.values if value >= bound]
    return (steps[0], steps[-1]) if steps else (judged.first_step.step, judged.last_step.step)
