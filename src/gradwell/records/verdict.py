"""What was concluded: findings with evidence, causes with shares, what to try, what was not checked.

`diagnosis.json`, schema 1. Null means not measured; non-finite numbers are "nan", "inf", "-inf".
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import msgspec

from gradwell.records.numbers import to_json
from gradwell.records.run import Deep, Header

Severity = Literal["mild", "serious", "fatal"]
Verdict = Literal["healthy", "mild", "serious", "fatal", "undecided"]
RANK: dict[str, int] = {"undecided": 0, "healthy": 0, "mild": 1, "serious": 2, "fatal": 3}


class Where(msgspec.Struct, frozen=True):
    """A place: the site, its kind and the file:line where it was built."""

    site: str
    kind: str = ""
    source: str | None = None


class Evidence(msgspec.Struct, frozen=True):
    """One measured number and the bound that it broke, in a unit."""

    quantity: str
    value: float | None
    unit: str
    bound: float | None = None


class Finding(msgspec.Struct, frozen=True):
    """A symptom that was found: how bad, where, when, and on what evidence."""

    symptom: str
    severity: Severity
    where: list[Where]
    first_step: int
    last_step: int
    evidence: list[Evidence]
    summary: str


class Attribution(msgspec.Struct, frozen=True):
    """What caused a finding. A share carries signed decades (negative shrinks); a condition carries none.

    `finding` is the index of the finding; `share` is decades over the total (negative: it helped).
    """

    finding: int
    cause: str
    kind: Literal["share", "condition"]
    decades: float | None
    share: float | None
    summary: str


class Remedy(msgspec.Struct, frozen=True):
    """A remedy and the settings to try it with."""

    id: str
    settings: dict[str, Any] = {}


class Prescription(msgspec.Struct, frozen=True):
    """What to try: remedies (together, where there are several), what to expect, and the lines to paste."""

    remedies: list[Remedy]
    expected: str
    in_your_code: str


class NotChecked(msgspec.Struct, frozen=True):
    """A symptom that could not be looked for, and why: not measured is not healthy.

    At level deep also a measurement that could not be taken (`attribution`, `chi`, `signal to noise`, ...).
    """

    symptom: str
    reason: str


class ProfileRow(msgspec.Struct, frozen=True):
    """One site of the depth profile at one step; `log10_gain` = log10 |delta here| / |delta at the output|.

    From `chi` on only at level deep, see `records.run.DEEP_SITE_COLUMNS`; `alignment` = log10_gain - random_gain, what
    the loss's own gradient adds to what the model does to a random one. `gsnr` is that of the site's weight.
    """

    root: str
    site: str
    kind: str
    call: int
    order: int
    step: int
    act_rms: float | None
    delta_norm: float | None
    log10_gain: float | None
    zero_frac: float | None
    nonfinite: float | None
    dead_frac: float | None = None
    saturated_frac: float | None = None
    role: str = "other"
    source: str | None = None
    grad_rms: float | None = None
    weight_rms: float | None = None
    update_ratio: float | None = None
    flow: float | None = None
    chi: float | None = None
    random_gain: float | None = None
    alignment: float | None = None
    forward_gain: float | None = None
    path_flow: float | None = None
    rank: float | None = None
    gsnr: float | None = None


class Overhead(msgspec.Struct, frozen=True):
    """What the measuring cost: share of the training's time, sampled steps and all steps."""

    fraction: float | None
    sampled_steps: int
    steps: int


class Diagnosis(msgspec.Struct, frozen=True):
    """The whole verdict. `print(diagnosis)` gives the text; in a notebook it shows as a picture and a table."""

    header: Header
    verdict: Verdict
    findings: list[Finding] = []
    attributions: list[Attribution] = []
    prescriptions: list[Prescription] = []
    not_checked: list[NotChecked] = []
    notes: list[str] = []
    profile: list[ProfileRow] = []
    overhead: Overhead = Overhead(None, 0, 0)
    deep: Deep | None = None

    def __str__(self) -> str:
        from gradwell.records.text import render

        return render(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # Pictures live above the records, so they are loaded by name.
        bundle: dict[str, Any] = importlib.import_module("gradwell.report.notebook").mimebundle(self)
        return bundle

    def causes(self, finding: int) -> list[Attribution]:
        """The attributions of one finding: shares first, largest first, then the conditions."""
        return [a for a in self.attributions if a.finding == finding]

    def to_json(self) -> bytes:
        """`diagnosis.json` of the contract, schema 1."""
        fields = msgspec.to_builtins(self)
        body = to_json({"schema": 1, "tool": self.header.tool, **fields})
        return msgspec.json.format(msgspec.json.encode(body), indent=1)
