"""The command line: `gradwell run train.py`, `gradwell check file.py:function`, `gradwell report`, ..."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradwell.errors import GradwellError, UsageError
from gradwell.shelf import Shelf, shelf

if TYPE_CHECKING:
    from gradwell.records.verdict import Diagnosis

app = typer.Typer(
    name="gradwell",
    help="Finds vanishing and exploding gradients in any PyTorch training: which layer, which line, which cause.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHELVES = {
    "symptoms": "gradwell.symptoms",
    "causes": "gradwell.causes",
    "remedies": "gradwell.remedies",
    "activations": "gradwell.theory.activations",
    "inits": "gradwell.theory.inits",
}

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="PATH", help="Write diagnosis.json there; - is stdout.")
]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="PATH", help="Write the one-file report there.")]
OutOption = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="The run folder; default runs/<time>-<script>.")
]
FailOption = Annotated[
    str | None, typer.Option("--fail-on", metavar="mild|serious|fatal", help="Exit 1 from this severity on.")
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="ID[:SITE]", help="Leave a symptom (at a site) out.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="ID.name=value", help="Change a threshold.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing.")]
_SCRIPT_ARGS = {"allow_interspersed_args": False, "ignore_unknown_options": True}


@app.command(context_settings=_SCRIPT_ARGS)
def run(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or MODULE with -m).")],
    args: Annotated[list[str] | None, typer.Argument(help="The script's own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Stop after N training steps.")] = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    out: OutOption = None,
    fail_on: FailOption = None,
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run an unmodified training script and diagnose it at the end, also on Ctrl-C, SIGTERM and a crash."""
    thresholds = _judging(fail_on, ignore, settings)
    say = _silent if quiet else _say
    from gradwell.journeys import report as reports
    from gradwell.journeys.run import RunResult, run_script
    from gradwell.probe import host

    _refuse_missing(target, module=module)
    folder = reports.new_folder(target, out, say=say)
    status = 0

    def finish(result: RunResult) -> None:
        nonlocal status
        if not quiet:
            _print(result.diagnosis)
        where = Path(result.folder) if result.folder is not None else None
        reports.write_results(result.diagnosis, where, html=html, json=json, say=say)
        _json_to_stdout(result.diagnosis, json)
        if where is not None:
            say(f"report: {where / 'report.html'}")
        status = _meets(result.diagnosis, fail_on)

    ending = run_script(
        target, args or [], module=module, steps=steps, folder=folder, say=say, finish=finish,
        ignore=ignore or (), thresholds=thresholds,
    )  # fmt: skip
    if ending.status == 0 and ending.reason in ("finished", "exit", "stopped"):
        raise typer.Exit(status)
    host.die_like(ending)


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="file.py:function or package.module:function.")],
    level: Annotated[str, typer.Option("--level", help="How deep to measure: flow.")] = "flow",
    json: JsonOption = None,
    html: HtmlOption = None,
    out: OutOption = None,
    fail_on: FailOption = "serious",
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check a model on one batch; TARGET returns (model, batch, loss_fn) or (model, batch, loss_fn, optimizer)."""
    thresholds = _judging(fail_on, ignore, settings)
    from gradwell.journeys import report as reports
    from gradwell.journeys.check import check as check_model
    from gradwell.journeys.target import load_target
    from gradwell.probe.names import Construction

    say = _silent if quiet else _say
    construction = Construction().on()
    try:
        found = load_target(target)
    finally:
        construction.off()
    from gradwell.journeys.target import UsersException

    try:
        diagnosis = check_model(
            found.model, found.batch, found.loss_fn, found.optimizer, level,
            construction=construction, ignore=ignore or (), thresholds=thresholds,
        )  # fmt: skip
    except GradwellError:
        raise
    except Exception as problem:
        raise UsersException from problem
    if not quiet:
        _print(diagnosis)
    folder = reports.new_folder(target, out, say=say) if out is not None else None
    reports.write_results(diagnosis, folder, html=html, json=json, say=say)
    _json_to_stdout(diagnosis, json)
    raise typer.Exit(_meets(diagnosis, fail_on))


@app.command()
def report(
    path: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run folder; default: the newest.")] = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    csv: Annotated[str | None, typer.Option("--csv", metavar="PATH", help="Write the layer table there.")] = None,
    out: OutOption = None,
    fail_on: FailOption = "serious",
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Print the diagnosis of a run folder, also of a run that is still being written."""
    thresholds = _judging(fail_on, ignore, settings)
    from gradwell.journeys import report as reports
    from gradwell.journeys.diagnose import diagnose

    found = reports.open_run(path)
    diagnosis = diagnose(found, ignore=ignore or (), thresholds=thresholds)
    if not quiet:
        _print(diagnosis, stream=sys.stdout if json != "-" else sys.stderr)
    folder = reports.new_folder("report", out, say=_say) if out is not None else None
    reports.write_results(diagnosis, folder, run=found, html=html, json=json, csv=csv, say=_say)
    _json_to_stdout(diagnosis, json)
    raise typer.Exit(_meets(diagnosis, fail_on))


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the run goes.")] = "runs/demo",
) -> None:
    """Diagnose the shipped script: real handwritten digits, a deep sigmoid network that does not learn."""
    from gradwell.journeys.demo import demo_script

    script = demo_script()
    shown = os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
    _say(f"running `gradwell run {shown}`: real digits, a deep sigmoid network, nothing of gradwell in the script")
    run(shown, [], False, None, None, None, out, None, None, None, False)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="SHELF", help="symptoms, causes, remedies, activations or inits.")],
) -> None:
    """List what is on a shelf, a line each."""
    entries = _shelf(what)
    width = max(len(entry.id) for entry in entries.values())
    for entry in entries.values():
        print(f"{entry.id:<{width}}  {entry.page.title}")


@app.command()
def explain(
    topic: Annotated[str, typer.Argument(metavar="ID", help="The id of a symptom, cause, remedy, ...")],
) -> None:
    """Print the page of a symptom, cause, remedy, activation or init."""
    homes = {name: shelf(package) for name, package in SHELVES.items()}
    found = [(name, entries[topic]) for name, entries in homes.items() if topic in entries]
    if not found:
        import difflib

        every = [key for entries in homes.values() for key in entries]
        close = difflib.get_close_matches(topic, every, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"see `gradwell list {'/'.join(SHELVES)}`."
        raise UsageError(f"Nothing is called {topic!r}; {hint}")
    for name, entry in found:
        print(f"{entry.id} ({name})\n\n{entry.page.text}\n")
        if name == "symptoms" and entry.thresholds:
            print("Thresholds (--set " + f"{entry.id}.name=value):")
            print("\n".join(f"  {key} = {value}" for key, value in entry.thresholds.items()) + "\n")


def _shelf(what: str) -> Shelf:
    if what not in SHELVES:
        raise UsageError(f"There is no shelf {what!r}; the shelves are {', '.join(SHELVES)}.")
    return shelf(SHELVES[what])


# ---------------------------------------------------------------------- what the commands share


def _judging(fail_on: str | None, ignore: Sequence[str] | None, settings: Sequence[str] | None) -> dict[str, Any]:
    """Refuse what cannot be meant before anything runs; returns the thresholds of --set."""
    from gradwell.journeys.diagnose import _ignored, _settings

    if fail_on is not None and fail_on not in ("mild", "serious", "fatal"):
        raise UsageError(f"--fail-on takes mild, serious or fatal, found {fail_on!r}.")
    thresholds: dict[str, Any] = {}
    for text in settings or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set reads ID.name=value, found {text!r}; `gradwell explain ID` lists the names.")
        try:
            thresholds[name] = float(value)
        except ValueError:
            raise UsageError(f"--set {name} needs a number, found {value!r}.") from None
    _settings(thresholds)
    _ignored(ignore or ())
    return thresholds


def _refuse_missing(target: str, *, module: bool) -> None:
    """A missing script is told before a run folder is made."""
    from gradwell.errors import UnreadableInput

    if not module and not Path(target).exists():
        raise UnreadableInput(f"No script {target}; name the file that you would give to python.")


def _meets(diagnosis: Diagnosis, fail_on: str | None) -> int:
    from gradwell.records.verdict import RANK

    return int(fail_on is not None and any(RANK[f.severity] >= RANK[fail_on] for f in diagnosis.findings))


def _say(text: str) -> None:
    print(f"gradwell: {text}", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    return None


def _print(diagnosis: Diagnosis, stream: Any = None) -> None:
    from gradwell.records.text import render, terminal

    stream = stream or sys.stderr
    print(render(diagnosis, **terminal(stream)), file=stream, flush=True)


def _json_to_stdout(diagnosis: Diagnosis, json: str | None) -> None:
    if json == "-":
        sys.stdout.write(diagnosis.to_json().decode() + "\n")
        sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one clear line and status 2 for bad usage, the user's own traceback for the user's own exception."""
    try:
        app(args=list(argv) if argv is not None else None, standalone_mode=True)
    except GradwellError as problem:
        _say(str(problem))
        raise SystemExit(2) from None
    except Exception as problem:
        if type(problem).__name__ != "UsersException" or problem.__cause__ is None:
            raise
        _print_users(problem.__cause__)
        raise SystemExit(2) from None


def _print_users(problem: BaseException) -> None:
    """A traceback without our frames."""
    ours = str(Path(__file__).parent)
    shown = traceback.TracebackException.from_exception(problem)
    level: traceback.TracebackException | None = shown
    while level is not None:
        level.stack = traceback.StackSummary.from_list([f for f in level.stack if not f.filename.startswith(ours)])
        level = level.__cause__ or level.__context__
    sys.stderr.write("".join(shown.format()))
