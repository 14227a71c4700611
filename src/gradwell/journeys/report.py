"""`gradwell report`: the diagnosis of a run folder, also of a run that is still being written. Needs no torch."""

from __future__ import annotations

import errno
import itertools
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from gradwell.errors import UnreadableInput, UsageError
from gradwell.records.run import Run, RunWriter, event_line, header_line, load, step_line
from gradwell.records.treatment import Treatment
from gradwell.records.verdict import Diagnosis
from gradwell.report.html import report_html
from gradwell.report.tables import profile_csv

RUNS = Path("runs")


def newest(runs: Path = RUNS) -> Path:
    """The run folder that was written to last."""
    found = [path for path in runs.glob("*/run.jsonl") if path.is_file()] if runs.is_dir() else []
    if not found:
        raise UnreadableInput(f"No run under {runs}/; record one with `gradwell run train.py` or name a run folder.")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def open_run(path: str | None) -> Run:
    """The named run, or the newest."""
    return load(path if path is not None else newest())


def new_folder(script: str, out: str | None = None, *, say: Callable[[str], None]) -> Path | None:
    """Make `runs/<time>-<script>/`, or `out`, and return its absolute path: a script may change directory.

    None, after one sentence, when the disk refuses the folder of our own choosing; `UsageError` when it refuses `out`.
    """
    folder = (RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{_name(script)}" if out is None else Path(out)).absolute()
    try:
        if out is None:
            folder = _unused(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        if folder.parent == RUNS.absolute() and not (RUNS / ".gitignore").exists():
            (RUNS / ".gitignore").write_text("*\n")
    except OSError as problem:
        if out is not None:
            raise UsageError(f"Cannot make the folder {out}: {problem.strerror}; name another with --out.") from None
        say(f"Cannot make the folder {folder}: {problem.strerror}; name another with --out. Nothing is recorded.")
        return None
    return folder


def _name(script: str) -> str:
    """`train` for train.py, also for train.py:function; `package.module` as it is."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"\.pyc?(:\w+)?$", "", Path(script).name)).strip("-.") or "run"


def _unused(wanted: Path) -> Path:
    """Make the folder under its name or a numbered one: several ranks may start in the same second."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder = wanted
    for n in itertools.count(2):
        try:
            folder.mkdir()
        except FileExistsError:
            folder = wanted.with_name(f"{wanted.name}-{n}")
        else:
            break
    return folder


def of(run: Run, argv: Sequence[str]) -> Run:
    """The same run under the words that the person typed."""
    return msgspec.structs.replace(run, header=msgspec.structs.replace(run.header, argv=list(argv)))


def write_run(run: Run, folder: Path, *, say: Callable[[str], None]) -> None:
    """Write `run.jsonl` of a run that lives in memory, or of one that was read from another folder."""
    if run.folder is not None and Path(run.folder).resolve() == folder.resolve():
        return
    writer = RunWriter(folder / "run.jsonl", say)
    writer.write(header_line(run.header))
    for step in run.steps:
        writer.write(step_line(step))
    for event in run.events:
        writer.write(event_line(event))
    writer.close()


def write_results(
    diagnosis: Diagnosis, folder: Path | None, *, run: Run | None = None, treatment: Treatment | None = None,
    html: str | Path | None = None, json: str | Path | None = None, csv: str | Path | None = None,
    say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Write `diagnosis.json` and `report.html` to the folder, and the copies that were asked for.

    False, after one sentence each, when one of them could not be written.
    """

    def page() -> bytes:
        return report_html(diagnosis, run=run, treatment=treatment).encode()

    wanted: list[tuple[Path, Callable[[], bytes]]] = []
    if folder is not None:
        wanted += [(folder / "diagnosis.json", diagnosis.to_json), (folder / "report.html", page)]
        if treatment is None:  # one that lies there belongs to an earlier run
            with suppress(OSError):
                (folder / "treatment.json").unlink()
    if json is not None:
        wanted.append((Path(json), diagnosis.to_json))
    if html is not None:
        wanted.append((Path(html), page))
    if csv is not None:
        wanted.append((Path(csv), lambda: profile_csv(diagnosis).encode()))
    done = [_written(path, content, say) for path, content in wanted]
    return all(done)


def write_treatment(
    treatment: Treatment, folder: Path | None, *, run: Run | None = None, html: str | Path | None = None,
    json: str | Path | None = None, say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Write `treatment.json`, `diagnosis.json` and `report.html` to the folder, and the copies that were asked for.

    With `run`, the folder's own record, its diagnosis stays and the report shows that one with the treatment.
    """
    diagnosis = treatment.diagnosis if run is None else run.diagnose()

    def page() -> bytes:
        return report_html(diagnosis, run=run, treatment=treatment).encode()

    wanted: list[tuple[Path, Callable[[], bytes]]] = []
    if folder is not None:
        wanted += [(folder / "treatment.json", treatment.to_json), (folder / "report.html", page)]
        wanted += [(folder / "diagnosis.json", diagnosis.to_json)] if run is None else []
    wanted += [(Path(json), treatment.to_json)] if json is not None else []
    wanted += [(Path(html), page)] if html is not None else []
    done = [_written(path, content, say) for path, content in wanted]
    return all(done)


def _written(path: Path, content: Callable[[], bytes], say: Callable[[str], None]) -> bool:
    try:
        write_whole(path, content())
    except OSError as problem:
        say(f"Cannot write {path}: {problem.strerror or problem}; name a place that can be written.")
        return False
    return True


_FOLDER_IS_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}
"""What says that nothing can be put beside a file or in its place, though the file itself may be open for writing."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, with the folders above it, whole or not at all: on a full disk what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a pipe, or /dev/stdout: never replaced
        path.write_bytes(content)
        return
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as problem:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if problem.errno not in _FOLDER_IS_CLOSED or not path.exists():
            raise
        path.write_bytes(content)
