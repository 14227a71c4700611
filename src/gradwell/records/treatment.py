"""What a treatment showed: the arms that were tried, best first, and the evidence for each. Schema 1.

Effects are differences of log10 loss against the baseline, paired by seed: -1 is a tenth of the loss. Null means not
measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gradwell.errors import UnreadableInput
from gradwell.records.numbers import to_json
from gradwell.records.verdict import Diagnosis, Remedy

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

OutcomeVerdict = Literal["cures", "helps", "no effect", "harms", "undecided"]
ORDER: dict[str, int] = {"cures": 0, "helps": 1, "no effect": 2, "undecided": 3, "harms": 4}
"""Best first."""

Interval = tuple[float | None, float | None]
Course = list[tuple[int, float]]
"""The training loss over the steps, median of the seeds: (step, loss)."""


class Baseline(msgspec.Struct, frozen=True):
    """The training without a remedy, at the best of its learning rates.

    `losses`: the held loss after the last step, seed by seed; None where a run did not get there.
    """

    lr_scale: float
    start: float | None = None
    losses: list[float | None] = []
    infeasible_frac: float = 0.0
    step_time_s: float | None = None
    course: Course = []


class Control(msgspec.Struct, frozen=True):
    """The baseline on other fresh seeds against itself: what a change that does nothing looks like."""

    effect_log10_loss: float | None = None
    interval: Interval = (None, None)
    losses: list[float | None] = []


class Outcome(msgspec.Struct, frozen=True):
    """One arm: remedies (together, where there are several) and what they did on fresh seeds.

    `lr_scale`: the best of its learning rates, times the one in the setup. `interval` is null for an arm that left in
    the screening. `cured`, `caused`: symptoms that are gone, and that are new. `step_time_ratio`: time of a step over
    the baseline's. `note`: one sentence where something went wrong.
    """

    remedies: list[Remedy]
    lr_scale: float
    effect_log10_loss: float | None = None
    interval: Interval = (None, None)
    infeasible_frac: float | None = None
    cured: list[str] = []
    caused: list[str] = []
    step_time_ratio: float | None = None
    verdict: OutcomeVerdict = "undecided"
    in_your_code: str = ""
    losses: list[float | None] = []
    course: Course = []
    note: str = ""

    @property
    def name(self) -> str:
        """The remedies with their settings, `swap_activation(to=relu) + reinit(init=he)`."""
        from gradwell.records.text import remedy

        return " + ".join(remedy(item) for item in self.remedies)

    def apply(self, setup: TrainSetup) -> TrainSetup:
        """A copy of the setup with the remedies and the learning rate of this arm; the setup stays as it was."""
        # Surgery lives above the records, so it is loaded by name.
        changed: TrainSetup = importlib.import_module("gradwell.trial.arms").apply(setup, self.remedies, self.lr_scale)
        return changed


class Treatment(msgspec.Struct, frozen=True):
    """The whole trial. `print(treatment)` gives the text; `best` is the change to make.

    `after`: the diagnosis of the best arm. `notes`: what could not be tried, a sentence each.
    """

    diagnosis: Diagnosis
    baseline: Baseline | None = None
    control: Control | None = None
    outcomes: list[Outcome] = []
    steps: int = 0
    seeds: int = 0
    seconds: float = 0.0
    after: Diagnosis | None = None
    notes: list[str] = []

    @property
    def best(self) -> Outcome | None:
        """The first outcome where it cures or helps; None where nothing does."""
        return self.outcomes[0] if self.outcomes and self.outcomes[0].verdict in {"cures", "helps"} else None

    @property
    def cured(self) -> bool:
        """True when a remedy cures."""
        return bool(self.outcomes) and self.outcomes[0].verdict == "cures"

    @property
    def sick(self) -> bool:
        """True when there was something to treat."""
        return bool(self.diagnosis.findings)

    def __str__(self) -> str:
        from gradwell.records.treatment_text import render_treatment

        return render_treatment(self)

    def to_json(self) -> bytes:
        """`treatment.json` of the contract, schema 1."""
        fields = msgspec.to_builtins(self)
        for name in ("diagnosis", "after"):
            of: Diagnosis | None = getattr(self, name)
            fields[name] = None if of is None else msgspec.json.decode(of.to_json())
        return msgspec.json.format(msgspec.json.encode(to_json({"schema": 1, **fields})), indent=1)


def load_treatment(folder: str | Path) -> Treatment | None:
    """Read `treatment.json` of a folder; None where there is none. Raises `UnreadableInput` for a damaged one."""
    file = Path(folder) / "treatment.json"
    try:
        content = file.read_bytes()
    except OSError:
        return None
    try:
        # Not strict: non-finite numbers are strings in the file.
        return msgspec.convert(msgspec.json.decode(content), Treatment, strict=False)
    except (msgspec.MsgspecError, ValueError) as problem:
        raise UnreadableInput(f"{file} is no treatment ({problem}); remove it to read the rest.") from None


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first: by verdict, then by effect; what was not measured comes last."""

    def key(outcome: Outcome) -> tuple[int, bool, Any]:
        effect = outcome.effect_log10_loss
        return ORDER[outcome.verdict], effect is None, effect

    return sorted(outcomes, key=key)
