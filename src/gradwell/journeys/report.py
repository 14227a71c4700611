"""`gradwell report`: the diagnosis of a run folder, also of a run that is still being written. Needs no torch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from gradwell.errors import UnreadableInput
from gradwell.records.run import Run, load
from gradwell.records.verdict import Diagnosis

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
    """Make `runs/<time>-<script>/` (or `out`); None, after one sentence, when the disk refuses."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(script).stem or "run")
    folder = Path(out) if out is not None else RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    tried = folder
    for n in range(2, 100):
        if out is not None or not tried.exists():
            break
        tried = folder.with_name(f"{folder.name}-{n}")
    try:
        tried.mkdir(parents=True, exist_ok=True)
        if out is None and not (RUNS / ".gitignore").exists():
            (RUNS / ".gitignore").write_text("*\n")
    except OSError as problem:
        say(f"Cannot make the folder {tried}: {problem.strerror}; the training goes on unrecorded.")
        return None
    return tried


def write_results(
    diagnosis: Diagnosis, folder: Path | None, *, run: Run | None = None, html: str | None = None,
    json: str | None = None, csv: str | None = None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write `diagnosis.json` and `report.html` to the folder, and the copies that were asked for."""
    from gradwell.report.html import report_html
    from gradwell.report.tables import profile_csv

    wanted: list[tuple[Path, Callable[[], bytes]]] = []
    if folder is not None:
        wanted.append((folder / "diagnosis.json", diagnosis.to_json))
        wanted.append((folder / "report.html", lambda: report_html(diagnosis, run=run).encode()))
    if json not in (None, "-"):
        wanted.append((Path(str(json)), diagnosis.to_json))
    if html is not None:
        wanted.append((Path(html), lambda: report_html(diagnosis, run=run).encode()))
    if csv is not None:
        wanted.append((Path(csv), lambda: profile_csv(diagnosis).encode()))
    for path, content in wanted:
        try:
            path.write_bytes(content())
        except OSError as problem:
            say(f"Cannot write {path}: {problem.strerror}; name a place that can be written.")
