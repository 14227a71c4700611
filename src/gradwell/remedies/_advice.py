"""From findings and causes to prescriptions: what to try, best first.

Each remedy speaks for itself (`TREATS`, and None where it does not fit); here stands only what no single remedy can
know: which ones need each other, and which findings are echoes of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice, tee, zip_longest
from typing import Any, NamedTuple

from gradwell.records.run import Run, Step
from gradwell.records.verdict import RANK, Attribution, Finding, Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import NOT_TRIED, together
from gradwell.shelf import shelf

MOST = 4
"""More than four pieces of advice are none."""

ECHOES = frozenset({
    "slow_loss", "loss_plateau", "undersized_update", "oversized_update", "gradient_underflow",
    "oscillating_loss", "diverging_loss", "loss_spike",
})  # fmt: skip
"""Symptoms that follow from others: they get advice of their own only where nothing as bad stands behind them."""


CLIPS = frozenset({"clip_norm", "clip_value", "adaptive_clip"})


class Joint(NamedTuple):
    """Remedies that need each other: for a symptom, when the case is so, with these settings."""

    symptom: str
    when: Callable[[Case], bool]
    remedies: tuple[tuple[str, dict[str, Any]], ...]


JOINTS = (
    # measured: activation alone -0.28 decades a layer, init alone -0.66, both -0.003
    Joint(
        "vanishing_gradient",
        lambda case: case.weak_activation and not case.normalised and not case.recurrent,
        (("swap_activation", {"to": "relu"}), ("reinit", {"init": "he"})),
    ),
    Joint(
        "dead_units",
        lambda case: case.can_die and case.has("learning_rate"),
        (("swap_activation", {"to": "leaky_relu"}), ("scale_lr", {"factor": 0.1})),
    ),
    Joint(
        "dead_units",
        lambda case: case.can_die,
        (("swap_activation", {"to": "leaky_relu"}), ("reinit", {"init": "he"})),
    ),
)
"""The first that fits a case stands before all single remedies."""


def prescribe(
    run: Run, findings: Sequence[Finding], attributions: Sequence[Attribution], *, most: int = MOST
) -> list[Prescription]:
    """What to try for these findings, at most `most`, best first; all of it expected, none of it tried.

    The worst finding speaks first and twice, then each in turn; echoes (a slow loss behind a vanishing gradient) only
    where nothing else is as bad. `attributions` point to findings by index.
    """
    all_plans = [plans(_case(run, findings, attributions, index)) for index in _to_treat(findings)]
    first: Iterator[Prescription] = iter(())
    if all_plans:
        all_plans[0], again = tee(all_plans[0])
        first = islice(again, 2)
    turns = (plan for turn in zip_longest(*all_plans) for plan in turn if plan is not None)
    return list(islice(_unlike(chain(first, turns)), most))


def plans(case: Case) -> Iterator[Prescription]:
    """All that fits one case: remedies that need each other first, then single ones by rank."""
    joint = _joint(case)
    parts = []
    if joint is not None:
        yield joint
        parts = [remedy for remedy in joint.remedies if remedy.id == "swap_activation"]
    clipped = False
    for remedy in _ranked(case):
        clips = remedy in CLIPS
        if clips and clipped:  # the second and third way to clip are alternatives to the first, not more to try
            continue
        plan = _ask(remedy, case)
        if plan is None:
            continue
        clipped |= clips
        if plan.remedies[0] not in parts:
            yield plan


def _to_treat(findings: Sequence[Finding]) -> list[int]:
    """Indices of the findings that get advice, worst first; an echo of something as bad gets none."""
    behind = max((RANK[f.severity] for f in findings if f.symptom not in ECHOES), default=0)
    kept = [i for i, f in enumerate(findings) if f.symptom not in ECHOES or RANK[f.severity] > behind]
    return sorted(kept, key=lambda i: (-RANK[findings[i].severity], findings[i].symptom in ECHOES, i))


def _case(run: Run, findings: Sequence[Finding], attributions: Sequence[Attribution], index: int) -> Case:
    finding = findings[index]
    causes = [a for a in attributions if a.finding == index]
    step = min(run.steps, key=lambda s: abs(s.step - finding.first_step), default=Step(finding.first_step))
    return Case(run, step, finding, causes)


def _ranked(case: Case) -> list[str]:
    """Ids of the remedies for this symptom and its causes, by rank; a named cause goes before any cause."""
    found: dict[str, tuple[int, bool]] = {}
    named = {"", *case.large, *case.conditions}
    for remedy, treats in _treating(case.symptom):
        if treats.cause in named:
            rank = (treats.rank, not treats.cause)
            found[remedy] = min(found.get(remedy, rank), rank)
    return sorted(found, key=lambda name: (found[name], name))


@cache
def _treating(symptom: str) -> list[tuple[str, Treats]]:
    """What each remedy says that it does for a symptom."""
    entries = shelf("gradwell.remedies").values()
    return [(remedy.id, treats) for remedy in entries for treats in remedy.fact("TREATS") if treats.symptom == symptom]


def _ask(remedy: str, case: Case, settings: dict[str, Any] | None = None) -> Prescription | None:
    plan: Prescription | None = shelf("gradwell.remedies")[remedy].function(case, **(settings or {}))
    return plan


def _joint(case: Case) -> Prescription | None:
    fits = (joint for joint in JOINTS if joint.symptom == case.symptom and joint.when(case))
    joint = next(fits, None)
    if joint is None:
        return None
    parts = [_ask(remedy, case, settings) for remedy, settings in joint.remedies]
    whole = [part for part in parts if part is not None]
    return together(whole, expected=_expected(case, whole)) if len(whole) == len(parts) else None


def _expected(case: Case, parts: Sequence[Prescription]) -> str:
    both = case.back("activation_slope", "weight_gain", otherwise="")
    if both:
        return f"together {both}, neither alone does"
    return "together: " + ", and ".join(part.expected.removesuffix(f"; {NOT_TRIED}") for part in parts)


def _unlike(plans: Iterable[Prescription]) -> Iterator[Prescription]:
    """The first of each set of remedies with the same settings."""
    seen: set[str] = set()
    for plan in plans:
        said = repr(plan.remedies)
        if said not in seen:
            seen.add(said)
            yield plan
