"""Arms: remedies to try, alone and together, and how they come onto a copy of a training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import combinations, zip_longest
from typing import Any

import msgspec

from gradwell.errors import Refused
from gradwell.records.run import Run
from gradwell.records.text import remedy as told_remedy
from gradwell.records.verdict import Diagnosis, Prescription, Remedy
from gradwell.remedies._advice import prescribe
from gradwell.remedies._case import Case
from gradwell.remedies._code import together
from gradwell.shelf import shelf
from gradwell.surgery.setup import TrainSetup

LR_SCALES = (0.1, 0.3, 1.0, 3.0)
"""Every arm is tried at these multiples of the setup's learning rate, the baseline too."""
MOST = 12
"""Candidates at most, joint ones included."""
STEADY: tuple[tuple[str, dict[str, Any]], ...] = (("warmup", {"steps": 100}), ("clip_norm", {"max_norm": 1.0}))
"""Remedies that fit any training."""
FEW = 4
"""With fewer plain candidates than this they are tried as well."""
FAMILIES = ("swap_activation", "reinit", "add_norm", "add_shortcut")
"""Remedies that change the net itself, in the order in which they are applied together."""


class Arm(msgspec.Struct, frozen=True):
    """Remedies that are applied together, and the lines to paste; no remedies: the baseline."""

    remedies: tuple[Remedy, ...] = ()
    in_your_code: str = ""

    @property
    def name(self) -> str:
        """The ids of the remedies."""
        return " + ".join(remedy.id for remedy in self.remedies) or "baseline"

    @property
    def only_rate(self) -> bool:
        """True for an arm that changes nothing but the learning rate."""
        return bool(self.remedies) and all(remedy.id == "scale_lr" for remedy in self.remedies)


BASELINE = Arm()


def apply(setup: TrainSetup, remedies: Sequence[Remedy], lr_scale: float = 1.0, *, copied: bool = False) -> TrainSetup:
    """A copy of the setup with the remedies, in their order, and its learning rates times `lr_scale`.

    `copied`: the setup is a copy already and is changed in place. Raises `Refused` when a remedy does not fit the
    model.
    """
    arm = setup if copied else setup.copy()
    for remedy in remedies:
        act = shelf("gradwell.remedies")[remedy.id].fact("apply")
        if act is None:
            raise Refused(f"{remedy.id} cannot be tried on a copy; only its lines to paste are known.")
        act(arm, **remedy.settings)
    arm.lr_scale *= lr_scale
    return arm


def candidates(run: Run, diagnosis: Diagnosis, *, most: int = MOST) -> list[Arm]:
    """What to try for a diagnosis: its remedies by rank and pairs of them in turn, at most `most`, the best first.

    Remedies of large causes need each other: alone each may do nothing. So the first of each family (activation, init,
    norm, shortcut) is also tried with each other one. Where the diagnosis asks for little, the first remedy's other
    settings and what stabilises any training are tried too; the learning rate is searched in any case.
    """
    if not diagnosis.findings:
        return []
    singles = prescribe(run, diagnosis.findings, diagnosis.attributions, most=2 * most)
    plain = [arm(plan) for plan in singles]
    joint = [arm(together(pair, expected="together")) for pair in _pairs(singles)]
    more = _more(run, diagnosis, singles) if len(plain) < FEW else []
    turns = [item for turn in zip_longest(plain, joint) for item in turn if item is not None]
    return _unlike([*turns, *more])[:most]


def _more(run: Run, diagnosis: Diagnosis, plans: Sequence[Prescription]) -> list[Arm]:
    """Other settings of the first remedy, and what fits any training, asked for the worst finding."""
    case = _worst(run, diagnosis)
    entries = shelf("gradwell.remedies")
    first = [plan.remedies[0].id for plan in plans[:1]]
    others = [(remedy, settings) for remedy in first for settings in entries[remedy].fact("GRID")]
    found = [entries[remedy](case, **settings) for remedy, settings in (*others, *STEADY)]
    return [arm(plan) for plan in found if plan is not None]


def arm(plan: Prescription) -> Arm:
    """The arm of a prescription."""
    return Arm(tuple(plan.remedies), plan.in_your_code)


def _worst(run: Run, diagnosis: Diagnosis) -> Case:
    return Case(run, run.steps[0], diagnosis.findings[0], diagnosis.causes(0))


def with_lines(item: Arm, run: Run, diagnosis: Diagnosis) -> Arm:
    """The arm with its lines to paste, where it has none; where a remedy has none for this training, its name stands
    for them.
    """
    if item.in_your_code or not item.remedies:
        return item
    case = _worst(run, diagnosis) if diagnosis.findings else None
    plans = [
        _asked(case, remedy) or Prescription([remedy], "", f"# {told_remedy(remedy)} comes here")
        for remedy in item.remedies
    ]
    return msgspec.structs.replace(item, in_your_code=together(plans, expected="").in_your_code)


def _asked(case: Case | None, remedy: Remedy) -> Prescription | None:
    """None where the remedy has no advice; settings that it cannot take are told when its runs raise."""
    plan: Prescription | None = None
    with suppress(Exception):
        plan = shelf("gradwell.remedies")[remedy.id](case, **remedy.settings) if case else None
    return plan


def _pairs(plans: Sequence[Prescription]) -> Iterable[tuple[Prescription, Prescription]]:
    """Two remedies of different families, the best of each; activation and init first."""
    first: dict[str, Prescription] = {}
    for plan in plans:
        if len(plan.remedies) == 1 and plan.remedies[0].id in FAMILIES:
            first.setdefault(plan.remedies[0].id, plan)
    return combinations([first[family] for family in FAMILIES if family in first], 2)


def _unlike(arms: Iterable[Arm]) -> list[Arm]:
    """The first of each set of remedies with the same settings."""
    seen: dict[str, Arm] = {}
    for item in arms:
        seen.setdefault(repr(item.remedies), item)
    return list(seen.values())
