"""From a recorded run to a diagnosis: symptoms, causes, profile, what to try; no model, no torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from gradwell.errors import NotMeasurable, UsageError
from gradwell.measure.profile import in_order, log10_gains, weights
from gradwell.records.run import DEEP_PARAM_COLUMNS, DEEP_SITE_COLUMNS, Run, Step
from gradwell.records.verdict import (
    RANK,
    Attribution,
    Diagnosis,
    Finding,
    NotChecked,
    Overhead,
    Prescription,
    ProfileRow,
    Verdict,
)
from gradwell.shelf import Entry, shelf

MIDDLE = 5
"""`ORDER` of a symptom or a cause whose file has none."""

AT_SITE = (
    "act_rms", "delta_norm", "zero_frac", "nonfinite", "dead_frac", "saturated_frac", "flow", *DEEP_SITE_COLUMNS,
)  # fmt: skip
OF_WEIGHT = ("grad_rms", "weight_rms", "update_rms", *DEEP_PARAM_COLUMNS)
"""Columns that the profile shows, of a site and of its weight."""


def diagnose(run: Run, *, ignore: Sequence[str] = (), thresholds: Mapping[str, Any] = {}) -> Diagnosis:
    """Every symptom of the shelf on a run, the causes of what was found, and what to try.

    `ignore`: "ID" or "ID:SITE", either with `*` and `?`; ignored symptoms are listed as not checked. `thresholds`:
    {"vanishing_gradient.mild": 1.5}. Findings come worst first; among equals what causes others comes first.
    Raises `UnknownId` for an id that is on no shelf, `UsageError` for an unknown threshold or its value.

    >>> from gradwell.records.run import Header
    >>> diagnose(Run(Header("gradwell"))).verdict
    'undecided'
    """
    settings = read_thresholds(thresholds)
    skipped, places = read_ignored(ignore)
    findings: list[Finding] = []
    not_checked = [NotChecked(symptom, "ignored on request.") for symptom in skipped]
    for symptom, entry in shelf("gradwell.symptoms").items():
        if symptom in skipped:
            continue
        try:
            findings += list(entry.function(run, **settings.get(symptom, {})))
        except NotMeasurable as reason:
            not_checked.append(NotChecked(symptom, str(reason)))
    findings = sorted(_kept(findings, places) if places else findings, key=_worst_first)
    attributions = [found for i, finding in enumerate(findings) for found in _causes(run, i, finding)]
    return Diagnosis(
        header=run.header,
        verdict=_verdict(run, findings, not_checked),
        findings=findings,
        attributions=attributions,
        prescriptions=_prescriptions(run, findings, attributions),
        not_checked=[*not_checked, *_not_measured(run)],
        notes=_notes(run, places),
        profile=_profile(run),
        overhead=_overhead(run),
        deep=run.steps[-1].deep if run.steps else None,
    )


def load_rules() -> None:
    """Import all that a diagnosis needs, ahead of it."""
    from gradwell.remedies import _advice  # noqa: F401  # loaded for its own sake

    for package in ("gradwell.symptoms", "gradwell.causes", "gradwell.remedies"):
        list(shelf(package))


# What was asked for.


def read_thresholds(thresholds: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{symptom: {name: value}} from {"symptom.name": value}, checked against the detectors' defaults."""
    settings: dict[str, dict[str, Any]] = {}
    for key, value in thresholds.items():
        symptom, dot, name = key.rpartition(".")
        if not dot:
            raise UsageError(f"A threshold is written ID.name=value, such as vanishing_gradient.mild=1.5, not {key!r}.")
        known = shelf("gradwell.symptoms")[symptom].thresholds
        if name not in known:
            names = ", ".join(known) or "none"
            raise UsageError(f"{symptom} has no threshold {name!r}; its thresholds are: {names}.")
        settings.setdefault(symptom, {})[name] = _number(key, value)
    return settings


def _number(key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"The threshold {key} must be a number, not {value!r}.")
    return number


def read_ignored(ignore: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Symptoms to skip altogether, and (symptom, pattern of sites) to leave out of findings."""
    skipped: list[str] = []
    places: list[tuple[str, str]] = []
    for item in ignore:
        symptom, colon, site = item.partition(":")
        ids = fnmatch.filter(shelf("gradwell.symptoms"), symptom) or [shelf("gradwell.symptoms")[symptom].id]
        if colon:
            places += [(found, site) for found in ids]
        else:
            skipped += ids
    return skipped, places


def _kept(findings: Iterable[Finding], places: Sequence[tuple[str, str]]) -> list[Finding]:
    """The findings without the ignored sites; a finding that has no other site goes."""
    kept = []
    for finding in findings:
        patterns = [pattern for symptom, pattern in places if symptom == finding.symptom]
        left = [w for w in finding.where if not any(fnmatch.fnmatchcase(w.site, p) for p in patterns)]
        if left or not finding.where:
            kept.append(msgspec.structs.replace(finding, where=left))
    return kept


# What was found.


def _worst_first(finding: Finding) -> tuple[int, int, str]:
    entry = shelf("gradwell.symptoms")[finding.symptom]
    return -RANK[finding.severity], entry.fact("ORDER", MIDDLE), finding.symptom


def step_of(run: Run, finding: Finding) -> Step:
    """The sampled step that a finding's numbers come from."""
    said = next((e.value for e in finding.evidence if e.unit == "step"), None)
    wanted = finding.last_step if said is None else said
    of_that_number = [step for step in run.steps if step.step == wanted] or run.steps[-1:]
    named = {place.site for place in finding.where}
    places = [i for i, site in enumerate(run.sites) if site.site in named]
    # Two backward passes of one step (a GAN) have the same number: the one that went by the finding's sites.
    return next((s for s in of_that_number if any(s.at("flow", i) for i in places)), of_that_number[-1])


def _causes(run: Run, index: int, finding: Finding) -> list[Attribution]:
    """Shares, largest in the direction of the total first, then conditions. What came from outside the network (`ORDER`
    of the cause below that of others: a batch, the input, the rate) goes before both: it has made what shares divide.
    """
    if not run.steps:
        return []
    step = step_of(run, finding)
    causes = shelf("gradwell.causes")
    claims = (entry.function(run, finding, step) for entry in _explaining(finding.symptom))
    found: list[Attribution] = [claim for claim in claims if claim is not None]
    found.sort(key=lambda a: (causes[a.cause].fact("ORDER", MIDDLE), a.kind == "condition", -(a.share or 0.0), a.cause))
    return [msgspec.structs.replace(attribution, finding=index) for attribution in found]


@cache
def _explaining(symptom: str) -> list[Entry]:
    """The causes that can explain a symptom."""
    return [entry for entry in shelf("gradwell.causes").values() if symptom in entry.fact("EXPLAINS", ())]


def _verdict(run: Run, findings: Sequence[Finding], not_checked: Sequence[NotChecked]) -> Verdict:
    if findings:
        return findings[0].severity
    measured = any(value is not None for step in run.steps for value in step.sites.get("delta_norm", ()))
    every = len({item.symptom for item in not_checked}) == len(shelf("gradwell.symptoms"))
    return "healthy" if measured and not every else "undecided"


def _prescriptions(run: Run, findings: list[Finding], attributions: list[Attribution]) -> list[Prescription]:
    if not findings:
        return []
    from gradwell.remedies._advice import prescribe

    return prescribe(run, findings, attributions)


def _notes(run: Run, places: Sequence[tuple[str, str]]) -> list[str]:
    notes = [f"{symptom} at {site} is ignored on request." for symptom, site in places]
    if len(run.header.optimizers) > 1:
        kinds = ", ".join(optimizer.kind for optimizer in run.header.optimizers)
        notes.append(f"There are {len(run.header.optimizers)} optimizers ({kinds}); severity is judged for the first.")
    return [*notes, *_left_out(run)]


def _left_out(run: Run) -> list[str]:
    """Layers that no module holds, in a plain list say, so that the optimizer was not given their parameters."""
    if not run.header.optimizers:
        return []
    strangers = [site for site in run.sites if site.role == "weight" and not site.root and site.site == site.kind]
    loose = [i for i, p in enumerate(run.header.params) if p.group is None and not p.frozen and p.name == p.site]
    known = [i for i in loose if any(step.of("grad_rms", i) is not None for step in run.steps)]
    still = [i for i in known if not any(step.of("update_rms", i) for step in run.steps)]
    if not (strangers and still):
        return []
    layer = f"{strangers[0].site} ({strangers[0].source})" if strangers[0].source else strangers[0].site
    return [
        f"{len(still)} tensors get a gradient and no optimizer holds them: {layer} is in no module that was called. "
        "Keep layers in nn.ModuleList, not in a plain list: model.parameters() has them then."
    ]


# What was measured.


def _not_measured(run: Run) -> list[NotChecked]:
    """What level deep could not measure."""
    deep = run.steps[-1].deep if run.steps else None
    return [] if deep is None else [NotChecked(what, reason) for what, reason in deep.not_measured.items()]


def _profile(run: Run) -> list[ProfileRow]:
    """The sites of the last sampled step in forward order, those that this step visited."""
    if not run.steps:
        return []
    step = run.steps[-1]
    unvisited = _unvisited(run, step)
    return _rows(run, step, [i for i in in_order(run.sites, step) if i not in unvisited])


def _unvisited(run: Run, step: Step) -> set[int]:
    """The sites of which the step has measured nothing."""
    left = set(range(len(run.sites)))
    for name in step.sites:
        column = step.all_at(name, len(run.sites))
        left = {i for i in left if column[i] is None}
        if not left:
            break
    return left


def _rows(run: Run, step: Step, visited: Iterable[int]) -> list[ProfileRow]:
    """The profile's rows of some sites; fields by place, which takes a quarter of the time that names take."""
    sites, owned, gains = run.sites, weights(run.header), log10_gains(run.sites, step)
    (
        act_rms, delta_norm, zero_frac, nonfinite, dead_frac, saturated_frac, flow, path_flow, chi, random_gain,
        forward_gain, rank,
    ) = (step.all_at(name, len(sites)) for name in AT_SITE)  # fmt: skip
    # None at the end is what a site without a weight has
    grad_rms, weight_rms, update_rms, gsnr = ([*step.all_of(name, len(run.header.params)), None] for name in OF_WEIGHT)
    rows = []
    for i in visited:
        site, gain, random = sites[i], gains[i], random_gain[i]
        weight = -1 if (own := owned[i]) is None else own
        size, update = weight_rms[weight], update_rms[weight]
        rows.append(ProfileRow(
            site.root, site.site, site.kind, site.call, site.order, step.step, act_rms[i], delta_norm[i], gain,
            zero_frac[i], nonfinite[i], dead_frac[i], saturated_frac[i], site.role, site.source, grad_rms[weight], size,
            update / size if update is not None and size else None, flow[i], chi[i], random,
            None if gain is None or random is None else gain - random, forward_gain[i], path_flow[i], rank[i],
            gsnr[weight],
        ))  # fmt: skip
    return rows


def _overhead(run: Run) -> Overhead:
    """What the measuring cost; all steps are counted by the clock where it said so, else by the steps' numbers."""
    ended = next((event for event in reversed(run.events) if event.event == "ended"), None)
    said = ended.detail if ended is not None else {}
    counted = run.steps[-1].step - run.steps[0].step + 1 if run.steps else 0
    return Overhead(run.overhead, said.get("sampled", len(run.steps)), said.get("steps", counted))
