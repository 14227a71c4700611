"""`gradwell lab run NAME`: one experiment = one file = one function = one id, its docstring the page.

A file of the shelf `gradwell.lab.experiments` holds a function of its own name that takes an `Ask` and gives an
`Outcome`: tables with predicted beside measured, figures, what the lesson prints, and where the two disagree. Its
docstring has the headings `What you see:`, `Why:`, `Formula:`, `Source:`; `OPTIONS` names what it takes of depth, seeds
and epochs. Ids are written with dashes, files with underscores.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gradwell.errors import UnknownId, UsageError
from gradwell.report import figures as drawing
from gradwell.report.lessons import Content, cell, page_html
from gradwell.shelf import Entry, shelf

PACKAGE = "gradwell.lab.experiments"
Thing = TypeVar("Thing")
Say = Callable[[str], None]


class Table(msgspec.Struct, frozen=True):
    """A named table; cells are numbers, words or None (not measured)."""

    name: str
    columns: list[str]
    rows: list[list[Any]]

    def to_csv(self) -> str:
        """Header and rows, full precision."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return stream.getvalue()

    def __str__(self) -> str:
        texts = [self.columns, *([cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[k]) for row in texts) for k in range(len(self.columns))]
        numeric = [all(isinstance(r[k], (int, float, type(None))) for r in self.rows) for k in range(len(widths))]
        drawn = [
            "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in zip(row, widths, numeric, strict=True))
            for row in texts
        ]
        return "\n".join([self.name, *(f"  {line.rstrip()}" for line in drawn)])


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment found.

    `facts` are its key numbers by name, for tests and scripts; `deviations` says where measured disagrees with theory.
    """

    tables: list[Table]
    figures: dict[str, dict[str, Any]]
    lines: list[str] = []
    deviations: list[str] = []
    facts: dict[str, float] = {}

    def __str__(self) -> str:
        parts = ["\n".join(self.lines)] if self.lines else []
        parts += [str(table) for table in self.tables]
        if self.deviations:
            parts.append("Measured disagrees with the theory:\n" + "\n".join(f"  {text}" for text in self.deviations))
        return "\n\n".join(parts)


class Ask(msgspec.Struct, frozen=True):
    """How an experiment is asked to run; its words and its progress go through here."""

    quick: bool = False
    depth: int | None = None
    seeds: int | None = None
    epochs: int | None = None
    say: Say = print
    progress: Progress | None = None

    def pick(self, full: Thing, quick: Thing) -> Thing:
        """The setting of the full or of the quick form."""
        return quick if self.quick else full

    def track(self, things: Iterable[Thing], words: str) -> Iterator[Thing]:
        """Go through things with a progress bar."""
        listed = list(things)
        with_bar = self.bar(words, len(listed))
        for thing in listed:
            yield thing
            with_bar(1)

    def bar(self, words: str, total: int) -> Callable[[float], None]:
        """A progress bar; call it with what is done more."""
        if self.progress is None:
            return lambda _: None
        progress = self.progress
        task = progress.add_task(words, total=total)
        return lambda done: progress.advance(task, done)


def experiments() -> list[tuple[str, str]]:
    """Every experiment's id (with dashes) and its one sentence."""
    return [(_shown(key), entry.page.title) for key, entry in shelf(PACKAGE).items()]


def find(name: str) -> Entry:
    """The experiment of an id, written with dashes or underscores; raises UnknownId."""
    try:
        return shelf(PACKAGE)[name.replace("-", "_")]
    except UnknownId as problem:
        raise UnknownId(str(problem).replace("_", "-")) from None


def run_experiment(
    name: str,
    *,
    quick: bool = False,
    depth: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    html: str | Path | None = None,
    say: Say = print,
) -> Outcome:
    """Run an experiment, tell what it found, and write its tables, figures and page.

    `quick` is the short form, under 20 seconds. `out`: a folder for CSV, SVG, PNG and the page; `html`: a file for the
    page alone. Raises UnknownId for an unknown name, UsageError for an option that the experiment does not have.
    """
    entry = find(name)
    _check_options(entry, {"depth": depth, "seeds": seeds, "epochs": epochs})
    console = Console(stderr=True)
    say(f"{_shown(entry.id)}: {entry.page.title}")
    started = time.perf_counter()
    percent = TextColumn("{task.percentage:>3.0f}%")
    columns = (TextColumn("{task.description}"), BarColumn(), percent, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        found: Outcome = entry(Ask(quick, depth, seeds, epochs, say, progress))
    say(f"\n{found}\n")
    say(f"{'quick form, ' if quick else ''}{time.perf_counter() - started:.1f} s")
    for path in write(entry, found, out=out, html=html):
        say(f"wrote {path}")
    return found


def _check_options(entry: Entry, given: dict[str, int | None]) -> None:
    takes = entry.fact("OPTIONS", ())
    for option, value in given.items():
        if value is None:
            continue
        if option not in takes:
            has = ", ".join(f"--{o}" for o in takes) or "none of --depth, --seeds, --epochs"
            raise UsageError(f"The experiment {_shown(entry.id)!r} has no --{option}; it takes {has}.")
        if value < 1:
            raise UsageError(f"--{option} is a number of things and was given as {value}; give 1 or more.")


def write(entry: Entry, found: Outcome, *, out: str | Path | None = None, html: str | Path | None = None) -> list[Path]:
    """Write tables as CSV, figures as SVG and PNG and the page as one HTML file; returns the paths."""
    written: list[Path] = []
    text = page(entry, found).encode() if out is not None or html is not None else b""
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        for table in found.tables:
            written.append(_put(folder / f"{_slug(table.name)}.csv", table.to_csv().encode()))
        for key, spec in found.figures.items():
            svg = drawing.to_svg(spec, name=_slug(key), paper=True)
            written.append(_put(folder / f"{_slug(key)}.svg", svg.encode()))
            written.append(_put(folder / f"{_slug(key)}.png", drawing.to_png(spec)))
        written.append(_put(folder / f"{_shown(entry.id)}.html", text))
    if html is not None:
        written.append(_put(Path(html), text))
    return written


def _put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def page(entry: Entry, found: Outcome) -> str:
    """The one-file page of an experiment that has run."""
    tables = [(t.name, t.columns, [[cell(value) for value in row] for row in t.rows]) for t in found.tables]
    content = Content(
        _shown(entry.id), entry.page.title, entry.page.blocks, found.lines, tables, found.figures, found.deviations
    )
    return page_html(content)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _shown(key: str) -> str:
    return key.replace("_", "-")


def disagreements(rows: Iterable[tuple[str, float, float]], *, within: float, unit: str = "decades") -> list[str]:
    """Sentences for the (what, predicted, measured) that differ by more than `within`."""
    return [
        f"{what}: predicted {predicted:.3g}, measured {measured:.3g} {unit}"
        for what, predicted, measured in rows
        if not math.isclose(predicted, measured, abs_tol=within)
    ]
