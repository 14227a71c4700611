"""NaN or infinity in the loss, the outputs, the gradients or the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from gradwell.measure.profile import in_order
from gradwell.records.net import NetConfig
from gradwell.records.run import Run, Site, Step
from gradwell.records.verdict import Evidence, Finding, Severity, Where
from gradwell.symptoms._words import judged_at, needs_steps, place, where

ORDER = 0

SICK = (
    NetConfig(depth=6, activation="exp", init="he", gain=10.0),
    NetConfig(depth=12, init="he", gain=1e5),
    NetConfig(depth=4, input_scale=math.inf),
)
HEALTHY = (NetConfig(depth=4), NetConfig(depth=12, init="he", gain=3.0), NetConfig(depth=20, activation="sigmoid"))


def nonfinite_value(run: Run) -> Iterator[Finding]:
    """NaN or infinity in the loss, the outputs, the gradients or the weights.

    What it does to training:
        It spreads: one NaN in the loss makes every gradient NaN, one step makes every weight NaN, and nothing brings
        them back. Training is over from that step on, whatever the loss curve shows.

    How it is measured:
        Non-finite elements are counted in the loss, in each site's output, in each gradient and in each weight, at
        every sampled step; the loss of the steps between is watched too. The birthplace is the first site in forward
        order
        whose output is not finite; where all outputs are finite, the site nearest to the loss whose gradient is not.
        Weights that are not finite before the step say that it happened earlier.

    When it is no problem:
        Infinities on purpose, such as masked attention scores, while loss and gradients stay finite: they are not
        reported. Gradients that overflow now and then under a loss scaler, which skips those steps. It is mild where
        `gw.watch(rescue=True)` has skipped those steps.

    What helps first:
        Look at the birthplace: exp, log, sqrt and divisions need a bound or an eps; a lower learning rate or clipping
        when it happened earlier; bfloat16 or a smaller loss scale when float16 overflows; bad data when the input
        itself is not finite.

    Source:
        IEEE 754; Micikevicius et al. 2018 for loss scaling.
    """
    events = [event for event in run.events if event.event == "nonfinite_loss"]
    if not events:
        needs_steps(run)
    broken = [(step, birth) for step in run.steps if (birth := _birth(run, step)) is not None]
    if broken and all(birth.scaled for _, birth in broken) and 2 * len(broken) <= len(run.steps):
        broken = []
    if broken:
        step, birth = broken[0]
        first = min([step.step, *(event.step for event in events)])
        evidence = [birth.evidence, judged_at(step)]
        text = f"{birth.words} {birth.when} step {step.step}"
        if first < step.step:
            text = f"the loss is {events[0].detail.get('loss')} at step {first}, which was not sampled; then {text}"
        severity, rest = _survived(run, [first, *(step.step for step, _ in broken)])
        yield Finding("nonfinite_value", severity, birth.where, first, broken[-1][0].step, evidence, text + rest)
    elif events:
        value = events[0].detail.get("loss")
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
        text = f"the loss is {number:g} at step {events[0].step}; that step was not sampled, so the layer is not known"
        evidence = [Evidence("loss", number, "")]
        severity, rest = _survived(run, [event.step for event in events])
        yield Finding("nonfinite_value", severity, [], events[0].step, events[-1].step, evidence, text + rest)


def _survived(run: Run, steps: list[int]) -> tuple[Severity, str]:
    """How bad it is: mild where a rescue has skipped each of these steps, so that the weights never saw them."""
    skipped = {event.step for event in run.events if event.event == "rescue"}
    if not skipped.issuperset(steps):
        return "fatal", ""
    return "mild", f"; rescue has skipped {len(skipped)} step{'s' if len(skipped) > 1 else ''}, the weights are finite"


class _Birth(msgspec.Struct, frozen=True):
    """Where a value stopped being finite; `scaled`: only gradients, under a loss scaler."""

    where: list[Where]
    words: str
    evidence: Evidence
    scaled: bool = False
    when: str = "at"


def _birth(run: Run, step: Step) -> _Birth | None:
    weights = [] if _sound(sizes := step.params.get("weight_rms", ())) else [i for i, x in enumerate(sizes) if _bad(x)]
    if weights:
        return _from_weights(run, step, weights)
    if not (_bad(step.loss) or _bad_gradient(step)):
        return None
    return _from_outputs(run, step) or _from_gradients(run, step) or _from_parameters(run, step)


def _bad(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _sound(values: Sequence[float | None]) -> bool:
    """Whether all numbers of a column are finite, those that were measured."""
    return all(map(math.isfinite, filter(None, values)))


def _bad_gradient(step: Step) -> bool:
    counts = step.params.get("grad_nonfinite", ())
    return _bad(step.grad_norm) or any(counts) or not _sound(step.sites.get("delta_norm", ()))


def _from_weights(run: Run, step: Step, weights: list[int]) -> _Birth:
    """It happened at an earlier step: the weights carry it."""
    names = [run.header.params[i].name for i in weights]
    owners = [where(site) for site in _sites(run, step) if site.site == run.header.params[weights[0]].site][:1]
    several = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    words = f"the weights of {several} were not finite any more before the forward pass: it happened"
    evidence = Evidence("parameters not finite", float(len(names)), "parameters")
    return _Birth(owners, words, evidence, when="before")


def _sites(run: Run, step: Step) -> list[Site]:
    return [run.sites[i] for i in in_order(run.sites, step)]


def _from_outputs(run: Run, step: Step) -> _Birth | None:
    """The first site in forward order with a non-finite output."""
    if step.input_rms is not None and not math.isfinite(step.input_rms):
        return _Birth([], "the input itself is not finite", Evidence("input_rms", step.input_rms, ""))
    for i in in_order(run.sites, step):
        count = step.at("nonfinite", i)
        if count:
            site = run.sites[i]
            words = f"{place(site)} gives the first values that are not finite ({count:.0f} of them)"
            return _Birth([where(site)], words, Evidence("nonfinite", count, "elements"))
    return None


def _from_gradients(run: Run, step: Step) -> _Birth | None:
    """Between the last finite and the first non-finite gradient on the way back from the loss."""
    above: int | None = None
    for i in reversed(in_order(run.sites, step)):
        delta = step.at("delta_norm", i)
        if delta is None:
            continue
        if math.isfinite(delta):
            above = i
            continue
        born = above if above is not None and _bad(step.at("leaf_gain", above)) else None
        site = run.sites[i if born is None else born]
        said = "in the backward pass of" if born is not None else "between the loss and" if above is None else "behind"
        words = f"all outputs are finite; the gradient stops being finite {said} {place(site)}"
        return _Birth([where(site)], words, Evidence("delta_norm", delta, ""), step.loss_scale is not None)
    return None


def _from_parameters(run: Run, step: Step) -> _Birth:
    """Only a parameter's gradient, the loss or the total norm is not finite."""
    for i, param in enumerate(run.header.params):
        count = step.of("grad_nonfinite", i)
        if count:
            places = [where(site) for site in _sites(run, step) if site.site == param.site][:1]
            words = f"the gradient of {param.name} is not finite ({count:.0f} elements)"
            return _Birth(places, words, Evidence("grad_nonfinite", count, "elements"), step.loss_scale is not None)
    value = step.loss if _bad(step.loss) else step.grad_norm
    name = "the loss" if _bad(step.loss) else "the norm of all gradients"
    return _Birth([], f"{name} is {value:g} while all outputs are finite", Evidence(name, value, ""))
