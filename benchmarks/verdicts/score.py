"""From labelled runs and what was said of them to the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.verdicts import labels
from benchmarks.verdicts.cases import Case
from benchmarks.verdicts.families import HELD_ASIDE
from benchmarks.verdicts.labels import RANK
from benchmarks.verdicts.ours import Told
from benchmarks.verdicts.peers import PEERS, Alarm

from gradwell.records.run import Run
from gradwell.records.verdict import Diagnosis


class Row(NamedTuple):
    """One run: its record and what we told while it ran, what the peers said, and whether our watch left the losses
    bit-equal; then the truth, and what we say of the record now.
    """

    case: Case
    seed: int
    record: Run
    told: list[Told]
    alarms: dict[str, list[Alarm]]
    same_losses: bool
    truth: dict[str, Any]
    said: Diagnosis

    @property
    def id(self) -> str:
        return f"{self.case.id} / {self.seed}"

    @property
    def label(self) -> str | None:
        """The class; none for a healthy one, found at the best of three rates, whose run as watched ended at chance."""
        found: str | None = self.truth["class"]
        curves = self.record.losses()
        ended = found == "healthy" and len(curves) == 1 and labels.ended_at_chance(self.case, curves[0].values)
        return None if ended else found

    @property
    def held_aside(self) -> bool:
        return self.case.family in HELD_ASIDE

    @property
    def right(self) -> set[str]:
        """The symptoms that are true of this run: by its fault, and by the float64 passes at its start and its end."""
        passes = (self.truth["measured"], self.truth.get("ending", {}))
        return {*self.case.names, *(name for one in passes for name in labels.symptoms(one))}

    @property
    def right_causes(self) -> set[str]:
        """By the float64 pass that shows what we name first: a net may vanish in the end that exploded at its start."""
        first = self.said.findings[0].symptom if self.said.findings else ""
        start, end = self.truth["measured"], self.truth.get("ending", {})
        late = first in labels.symptoms(end) and first not in labels.symptoms(start)
        return (late and labels.causes(self.case, end)) or labels.causes(self.case, start)

    @property
    def causes(self) -> list[str]:
        """The causes in our order: those of the first finding that has any."""
        return [a.cause for a in self.said.attributions]


# ------------------------------------------------------------------ what is right of one run


def missed(row: Row) -> bool:
    """A fatal fault of which we say nothing serious."""
    return row.label == "fatal" and RANK.get(row.said.verdict, 0) < RANK["serious"]


def false_alarm(row: Row) -> bool:
    """A serious finding where training is healthy: no fault, or one that costs less than half as many steps more."""
    return row.label == "healthy" and RANK.get(row.said.verdict, 0) >= RANK["serious"]


def named(row: Row) -> bool:
    """The first finding is of a symptom that is there."""
    return bool(row.said.findings) and row.said.findings[0].symptom in row.right


def knows_cause(row: Row) -> bool:
    """The label knows a cause, and there is a first finding that is right to look for it."""
    return row.label in ("serious", "fatal") and bool(row.right_causes) and named(row)


def cause_right(row: Row) -> bool:
    return bool(row.causes) and row.causes[0] in row.right_causes


def delay(row: Row) -> float:
    """Steps from the fault's onset until a right symptom was told as serious; infinite if never."""
    serious = [t.step for t in row.told if t.symptom in row.right and RANK[t.severity] >= RANK["serious"]]
    return min((step for step in serious if step >= row.case.at), default=math.inf) - row.case.at


def peer_delay(row: Row, peer: str) -> float:
    """Steps from the onset until the peer's first alarm; infinite if never."""
    return min((a.step for a in row.alarms[peer] if a.step >= row.case.at), default=math.inf) - row.case.at


# ------------------------------------------------------------------ tables


def of(rows: Iterable[Row], *, label: str | None = None, aside: bool | None = None) -> list[Row]:
    return [r for r in rows if (label is None or r.label == label) and (aside is None or r.held_aside == aside)]


def count(rows: Sequence[Row], test: Callable[[Row], bool]) -> str:
    return f"{sum(map(test, rows))} of {len(rows)}"


def tools(rows: Sequence[Row]) -> list[str]:
    """The comparison: misses, false alarms and delays of each tool, over all families and over those kept aside."""
    lines = [
        "| tool | fatal faults missed | of these kept aside | alarms on healthy runs | of these kept aside |"
        " steps from onset to the alarm, median (most) |",
        "|---|---|---|---|---|---|",
    ]
    fatal, healthy = of(rows, label="fatal"), of(rows, label="healthy")
    lines.append(_line("gradwell", fatal, healthy, missed, false_alarm, delay))
    for peer in PEERS:

        def silent(row: Row, peer: str = peer) -> bool:
            return math.isinf(peer_delay(row, peer))

        def loud(row: Row, peer: str = peer) -> bool:
            return bool(row.alarms[peer])

        def late(row: Row, peer: str = peer) -> float:
            return peer_delay(row, peer)

        lines.append(_line(peer, fatal, healthy, silent, loud, late))
    return lines


def _line(
    name: str, fatal: list[Row], healthy: list[Row], miss: Callable[[Row], bool], alarm: Callable[[Row], bool],
    after: Callable[[Row], float],
) -> str:  # fmt: skip
    known = [value for row in fatal if math.isfinite(value := after(row))]
    steps = f"{median(known):.0f} ({max(known):.0f})" if known else "never"
    cells = [
        count(kind, test)
        for whole, test in ((fatal, miss), (healthy, alarm))
        for kind in (whole, of(whole, aside=True))
    ]
    return f"| {name} | {' | '.join(cells)} | {steps} |"


def families(rows: Sequence[Row]) -> list[str]:
    """gradwell by family."""
    lines = [
        "| family | runs | fatal | missed | serious | said serious or fatal | mild | healthy | false alarms |"
        " right symptom first | right cause first |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(row.case.family for row in rows)
    for name in sorted(names, key=lambda name: name in HELD_ASIDE):
        own = [row for row in rows if row.case.family == name]
        lines.append(_family(f"{name} (kept aside)" if name in HELD_ASIDE else name, own))
    return [*lines, _family("all", list(rows))]


def _family(name: str, own: list[Row]) -> str:
    fatal, serious, healthy = (of(own, label=label) for label in ("fatal", "serious", "healthy"))
    sick = [row for row in fatal + serious if row.said.findings]
    known = [row for row in sick if knows_cause(row)]
    loud = sum(RANK.get(row.said.verdict, 0) >= RANK["serious"] for row in serious)
    cells = [
        len(own), len(fatal), sum(map(missed, fatal)), len(serious), loud, len(of(own, label="mild")), len(healthy),
        sum(map(false_alarm, healthy)), count(sick, named), count(known, cause_right),
    ]  # fmt: skip
    return f"| {name} | {' | '.join(map(str, cells))} |"


def onset(rows: Sequence[Row]) -> list[str]:
    """How soon fatal faults are named, by when they begin."""
    lines = ["| fatal fault | runs | named at the first sampled step | within 10 steps of its onset | later | never |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    events = ("nan_batch", "bad_batch", "rate_jump")
    for name, faults in (("in the network", ("structure",)), ("of the rate", ("rate",)), ("at a step", events)):
        own = [delay(row) for row in of(rows, label="fatal") if row.case.fault in faults]
        late = [d for d in own if 10 < d < math.inf]
        cells = [len(own), sum(d == 0 for d in own), sum(d <= 10 for d in own), len(late), sum(map(math.isinf, own))]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return lines


CHECKS: dict[str, Callable[[Row], bool]] = {
    "MISS": missed,
    "FALSE ALARM": false_alarm,
    "OTHER SYMPTOM": lambda row: row.label in ("serious", "fatal") and bool(row.said.findings) and not named(row),
    "OTHER CAUSE": lambda row: knows_cause(row) and not cause_right(row),
    "LATE": lambda row: (
        row.label == "fatal" and not missed(row) and delay(row) > (10 * (row.case.fault != "structure"))
    ),
    "OVERCALL": lambda row: row.label == "mild" and RANK.get(row.said.verdict, 0) >= RANK["serious"],
    "LOSSES DIFFER": lambda row: not row.same_losses,
    "NO LABEL": lambda row: row.label is None,
}
"""What may be wrong with a run."""


def problems(rows: Iterable[Row]) -> list[str]:
    """Each run that is not as it should be, in words, for those who mend the rules."""
    lines: list[str] = []
    for row in rows:
        kinds = [name for name, test in CHECKS.items() if test(row)]
        if kinds:
            lines += [
                f"{', '.join(kinds)}: {row.id}: {row.label} (x {row.truth['ratio']}), told after {delay(row)} steps"
            ]
            lines += [f"    right: {', '.join(sorted(row.right))}; causes: {', '.join(sorted(row.right_causes))}"]
            lines += [f"    measured {row.truth['measured']}"]
            lines += [f"    said {words(row.said, n)}" for n in range(len(row.said.findings))]
            lines += [f"    told {', '.join(f'{t.symptom} {t.severity} at {t.step}' for t in row.told)}"]
    return lines


def words(said: Diagnosis, index: int) -> str:
    found = said.findings[index]
    causes = ", ".join(a.cause for a in said.causes(index))
    steps = f"steps {found.first_step} to {found.last_step}"
    return f"{found.symptom} {found.severity} ({steps}): {found.summary}; causes: {causes}"
