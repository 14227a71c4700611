"""The command: trains every case once under `gw.watch` and once under the peers' recorder, and prints the tables."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import benchmarks.verdicts as about
import msgspec
import torch
from benchmarks.verdicts import labels, score
from benchmarks.verdicts.cases import CASES, HEALTHY, SEEDS, SICK, Case, mark
from benchmarks.verdicts.ours import Told, told_again, watched
from benchmarks.verdicts.peers import PEERS, Alarm, Recorder
from benchmarks.verdicts.score import Row
from benchmarks.verdicts.training import train

from gradwell.journeys.diagnose import diagnose
from gradwell.records.run import Run

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- verdicts: generated -->", "<!-- verdicts: end -->"


class Seen(NamedTuple):
    """What was seen of one run, before anybody says how it should have been judged."""

    id: str
    seed: int
    mark: str
    record: dict[str, Any]
    told: list[Told]
    alarms: dict[str, list[Alarm]]
    same_losses: bool


def see(case: Case, seed: int) -> Seen:
    """One run of a case: under our watch, then the same training under the peers' recorder."""
    ours, record, told = watched(case, seed)
    recorder = Recorder(epoch_of(case))
    plain = train(case, seed, observer=recorder)
    alarms = {name: rules(recorder) for name, rules in PEERS.items()}
    same = repr(ours.losses) == repr(plain.losses)
    return Seen(case.id, seed, mark(case), msgspec.to_builtins(record), told, alarms, same)


def judge(seen: Seen, known: Mapping[str, Any], *, again: bool = False) -> Row:
    """The run with its label and with what the rules say of its record now; raises `SystemExit` for a stale label.

    `again`: what they would have said while it ran as well, instead of what was heard then.
    """
    case = CASES[seen.id]
    if is_stale(case, seen.seed, known) or seen.mark != mark(case):
        raise SystemExit(f"{case.id}, seed {seen.seed}: the label or the record is of another training; make it anew.")
    record = msgspec.convert(seen.record, Run)
    truth = known[case.id][str(seen.seed)]
    told = told_again(record) if again else seen.told
    return Row(case, seen.seed, record, told, seen.alarms, seen.same_losses, truth, diagnose(record))


def epoch_of(case: Case) -> int:
    """Steps in an epoch of 1400 samples, and at least eight epochs in a run, so that AutoTrainer has some to judge."""
    return max(1, min(1400 // case.knobs.get("batch", 64), case.steps // 8))


def renew(cases: Sequence[Case], seeds: Sequence[int]) -> None:
    """Make the labels of some cases anew; those of other cases stay."""
    for case in cases:
        started = time.perf_counter()
        runs = {str(seed): labels.label(case, seed) for seed in seeds}
        known = labels.read()
        known[case.id] = {**known.get(case.id, {}), **runs}
        told = ", ".join(f"{run['class']} x{run['ratio']} {run['measured']}" for run in runs.values())
        print(f"{case.id}: {told} [{time.perf_counter() - started:.1f} s]", flush=True)
        labels.write({name: known[name] for name in CASES if name in known})


def is_stale(case: Case, seed: int, known: Mapping[str, Any]) -> bool:
    """Whether a run has no label, or one of another training."""
    found: bool = known.get(case.id, {}).get(str(seed), {}).get("mark") != mark(case)
    return found


def report(rows: Sequence[Row]) -> str:
    """The tables, as Markdown."""
    tables = (score.tools(rows), score.families(rows), score.onset(rows))
    return "\n\n".join("\n".join(table) for table in tables)


def publish(text: str) -> None:
    """Put the tables between the markers of docs/benchmarks.md."""
    page = DOCS.read_text()
    before, rest = page.split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def seen_now(cases: Sequence[Case], seeds: Sequence[int], out: Path | None) -> Iterator[Seen]:
    """Train each case; with `out` what was seen is kept there as well."""
    for case in cases:
        for seed in seeds:
            found = see(case, seed)
            if out is not None:
                with out.open("ab") as stream:
                    pickle.dump(tuple(found), stream)
            yield found


def seen_before(files: Iterable[Path]) -> Iterator[Seen]:
    """What earlier runs have kept with `out`."""
    for file in files:
        with file.open("rb") as stream, contextlib.suppress(EOFError):
            while True:
                yield Seen(*pickle.load(stream))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=about.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of ids of cases")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--label", action="store_true", help="make the labels anew and stop")
    parser.add_argument("--missing", action="store_true", help="with --label: only the missing and stale ones")
    parser.add_argument("--out", type=Path, help="keep the records of all runs in this file")
    parser.add_argument("--again", nargs="*", type=Path, help="judge such files with the rules of now")
    parser.add_argument("--join", nargs="*", type=Path, help="the tables of such files, as it was heard then")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    cases = [case for case in CASES.values() if any(part in case.id for part in options.only)]
    known = labels.read()
    if options.label:
        stale = [case for case in cases if any(is_stale(case, seed, known) for seed in options.seeds)]
        renew(stale if options.missing else cases, options.seeds)
        return
    rows: list[Row] = []
    kept = options.again or options.join
    for seen in seen_before(kept) if kept else seen_now(cases, options.seeds, options.out):
        rows.append(judge(seen, known, again=options.again is not None))
        head = f"{rows[-1].id}: {rows[-1].label}, said {rows[-1].said.verdict}"
        print("\n".join([head, *score.problems(rows[-1:])]), flush=True)
    text = report(rows)
    known_as = f"{len(HEALTHY)} trainings without and {len(SICK)} with a fault"
    print(f"\n{text}\n\n{known_as}; {len(rows)} runs here, {time.perf_counter() - started:.0f} s")
    if options.docs:
        publish(text)


if __name__ == "__main__":
    main(sys.argv[1:])
