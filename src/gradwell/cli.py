"""The command line: `gradwell run train.py`, `gradwell check file.py:function`, `gradwell report`, ..."""

from __future__ import annotations

import contextlib
import itertools
import json as json_module
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradwell.errors import GradwellError, UnreadableInput, UsageError
from gradwell.journeys.catalogue import SHELVES
from gradwell.probe import host
from gradwell.shelf import Shelf, shelf

if TYPE_CHECKING:
    from gradwell.records.treatment import Treatment
    from gradwell.records.verdict import Diagnosis

_PACKAGE = str(Path(__file__).parent) + os.sep
_BadUsage: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of typer's own errors; typer gives it no public name."""

app = typer.Typer(
    name="gradwell",
    help="Finds vanishing and exploding gradients in any PyTorch training: which layer, which line, which cause.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print no diagnosis; what goes wrong is still told.")]
_SCRIPT_ARGS = {"allow_interspersed_args": False}


@app.command(context_settings=_SCRIPT_ARGS)
def run(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or MODULE with -m).")],
    args: Annotated[list[str] | None, typer.Argument(help="The script's own arguments.")] = None,
    *,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Stop after N training steps.")] = None,
    json: JsonOption = None,
    html: HtmlOption = None,
    out: OutOption = None,
    fail_on: FailOption = None,
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> host.Ending:
    """Run an unmodified training script and diagnose it at the end, also on Ctrl-C, SIGTERM and a crash."""
    told = _Told(quiet=quiet)
    thresholds = _judging(fail_on, ignore, settings)
    _refuse_missing(target, module=module)
    from gradwell.journeys import report as reports
    from gradwell.journeys.diagnose import load_rules
    from gradwell.journeys.run import RunResult, run_script

    # Everything that speaks or writes at the end is loaded and every place resolved now: the script may change the
    # working directory, sys.path and sys.stderr.
    load_rules()
    where: dict[str, Any] = {"json": _place(json), "html": _place(html)}
    folder = reports.new_folder(target, out, say=told.warn)
    shown = None if folder is None else os.path.relpath(folder / "report.html")
    status = 0

    def finish(result: RunResult) -> None:
        nonlocal status
        status = _meets(result.diagnosis, fail_on)
        told.diagnosis(result.diagnosis)
        written = reports.write_results(result.diagnosis, folder, run=result.run, **where, say=told.warn)
        told.json(result.diagnosis, json)
        if shown is not None and written:
            told.say(f"report: {shown}")

    try:
        ending = run_script(
            target, args or [], module=module, steps=steps, folder=folder, say=told.say, warn=told.warn, finish=finish,
            ignore=ignore or (), thresholds=thresholds,
        )  # fmt: skip
    except GradwellError:  # there was nothing to run
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return ending if ending.status else host.Ending(status, ending.reason)


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="file.py:function or package.module:function.")],
    *,
    level: Annotated[str, typer.Option("--level", help="How much to measure: flow, or deep (slower).")] = "flow",
    json: JsonOption = None,
    html: HtmlOption = None,
    out: OutOption = None,
    fail_on: FailOption = "serious",
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> int:
    """Check a model on one batch; TARGET returns (model, batch, loss_fn) or (model, batch, loss_fn, optimizer)."""
    told = _Told(quiet=quiet)
    thresholds = _judging(fail_on, ignore, settings)
    from gradwell.journeys import report as reports
    from gradwell.journeys.check import LEVELS, measure
    from gradwell.journeys.diagnose import diagnose
    from gradwell.journeys.target import UsersException, load_target
    from gradwell.probe.names import Construction

    if level not in LEVELS:
        raise UsageError(f"--level takes {' or '.join(LEVELS)}, found {level!r}.")
    where: dict[str, Any] = {"json": _place(json), "html": _place(html)}
    folder = reports.new_folder(target, out, say=told.warn) if out is not None else None
    construction = Construction().on()
    try:
        found = load_target(target)
    finally:
        construction.off()
    try:
        record = measure(
            found.model, found.batch, found.loss_fn, found.optimizer, level=level, construction=construction
        )
    except GradwellError:
        raise
    except Exception as problem:
        raise UsersException from problem
    record = reports.of(record, [target])
    diagnosis = diagnose(record, ignore=ignore or (), thresholds=thresholds)
    told.diagnosis(diagnosis)
    if folder is not None:
        reports.write_run(record, folder, say=told.warn)
    written = reports.write_results(diagnosis, folder, run=record, **where, say=told.warn)
    told.json(diagnosis, json)
    return told.status(_meets(diagnosis, fail_on) if written else 2)


@app.command(context_settings={"ignore_unknown_options": True})
def treat(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="file.py:function or package.module:function.")],
    args: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    minutes: Annotated[float, typer.Option("--minutes", help="The time that it may take.")] = 5.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Fresh seeds that the best arms are judged on.")] = 5,
    json: JsonOption = None,
    html: HtmlOption = None,
    out: OutOption = None,
    fail_on: FailOption = "mild",
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> int:
    """Try the remedies on copies and tell with evidence which one cures; TARGET returns a gw.TrainSetup.

    The exit status is 1 when the training is sick and nothing cures it.
    """
    told = _Told(quiet=quiet)
    if args and not target.endswith(".py"):  # a script's own arguments are refused together with the script
        raise UsageError(f"treat takes one TARGET and options, found {' '.join(args)!r} as well.")
    thresholds = _judging(fail_on, ignore, settings)
    from gradwell.journeys import report as reports
    from gradwell.journeys.target import load_setup
    from gradwell.journeys.treat import treat as try_remedies
    from gradwell.probe.names import Construction

    construction = Construction().on()
    try:
        setup = load_setup(target)
    finally:
        construction.off()
    folder = reports.new_folder(target, out, say=told.warn) if out is not None else None
    with _users_code(), told.progress() as tick:
        treatment = try_remedies(
            setup, minutes=minutes, seeds=seeds, construction=construction, ignore=ignore or (), thresholds=thresholds,
            tick=tick, argv=[target],
        )  # fmt: skip
    told.treatment(treatment)
    written = reports.write_treatment(treatment, folder, html=_place(html), json=_place(json), say=told.warn)
    told.json(treatment, json)
    return told.status(int(bool(_meets(treatment.diagnosis, fail_on)) and not treatment.cured) if written else 2)


@app.command()
def report(
    path: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run folder; default: the newest.")] = None,
    *,
    json: JsonOption = None,
    html: HtmlOption = None,
    csv: Annotated[str | None, typer.Option("--csv", metavar="PATH", help="Write the layer table there.")] = None,
    out: OutOption = None,
    fail_on: FailOption = "serious",
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> int:
    """Print the diagnosis of a run folder, also of a run that is still being written."""
    told = _Told(quiet=quiet)
    thresholds = _judging(fail_on, ignore, settings)
    from gradwell.journeys import report as reports
    from gradwell.journeys.diagnose import diagnose
    from gradwell.records.treatment import load_treatment

    found = reports.open_run(path)
    diagnosis = diagnose(found, ignore=ignore or (), thresholds=thresholds)
    folder = reports.new_folder("report", out, say=told.warn) if out is not None else None
    if folder is not None:
        reports.write_run(found, folder, say=told.warn)
    where: dict[str, Any] = {"json": _place(json), "html": _place(html), "csv": _place(csv)}
    treatment = None if found.folder is None else load_treatment(found.folder)
    written = reports.write_results(diagnosis, folder, run=found, treatment=treatment, **where, say=told.warn)
    told.diagnosis(diagnosis)
    if treatment is not None:
        told.treatment(treatment)
    told.json(diagnosis, json)
    return told.status(_meets(diagnosis, fail_on) if written else 2)


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where the run goes.")] = "runs/demo",
) -> host.Ending:
    """Diagnose the shipped script (real handwritten digits, a deep network that does not learn) and cure it."""
    from gradwell.journeys.demo import MINUTES, demo_script, demo_setup

    script, told = demo_script(), _Told()
    shown = os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
    told.say(f"running `gradwell run {shown}`: real digits, a deep sigmoid network, no gradwell in the script")
    ending = run(shown, out=out)
    if ending.status:
        return ending
    told.say(f"treating it: remedies on copies of the same training, at most {MINUTES:g} minutes")
    from gradwell.journeys import report as reports
    from gradwell.journeys.treat import treat as try_remedies
    from gradwell.probe.names import Construction

    construction = Construction().on()
    try:
        setup = demo_setup(script)
    finally:
        construction.off()
    with told.progress() as tick:
        treatment = try_remedies(setup, minutes=MINUTES, construction=construction, tick=tick, argv=[shown])
    told.treatment(treatment)
    record = reports.open_run(out)
    if reports.write_treatment(treatment, Path(out), run=record, say=told.warn):
        told.say(f"report with before and after: {Path(out) / 'report.html'}")
    return host.Ending(0 if treatment.cured else 1, "")


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="SHELF", help="symptoms, causes, remedies, activations, inits or experiments.")
    ],
) -> int:
    """List what is on a shelf, a line each."""
    return _list(what)


def _list(what: str) -> int:
    told, entries = _Told(), _shelf(what)
    shown = {_shown(what, entry.id): entry for entry in entries.values()}
    width = max(map(len, shown))
    for name, entry in shown.items():
        told.print(f"{name:<{width}}  {entry.page.title}")
    return told.status(0)


@app.command()
def explain(
    topic: Annotated[str, typer.Argument(metavar="ID", help="The id of a symptom, cause, remedy, ...")],
) -> int:
    """Print the page of a symptom, cause, remedy, activation, init or experiment."""
    homes = {name: shelf(package) for name, package in SHELVES.items() if name != EXPERIMENTS}
    found = [(name, entries[topic]) for name, entries in homes.items() if topic in entries]
    if not found:  # experiments last: they load torch
        homes[EXPERIMENTS] = shelf(SHELVES[EXPERIMENTS])
        key = topic.replace("-", "_")
        found = [(EXPERIMENTS, homes[EXPERIMENTS][key])] if key in homes[EXPERIMENTS] else []
    if not found:
        import difflib

        every = [_shown(name, key) for name, entries in homes.items() for key in entries]
        close = difflib.get_close_matches(topic, every, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"see `gradwell list {'/'.join(SHELVES)}`."
        raise UsageError(f"Nothing is called {topic!r}; {hint}")
    told = _Told()
    for name, entry in found:
        told.print(f"{_shown(name, entry.id)} ({name})\n\n{entry.page.text}\n")
        if name == "symptoms" and entry.thresholds:
            told.print(f"Thresholds (--set {entry.id}.name=value):")
            told.print("\n".join(f"  {key} = {value}" for key, value in entry.thresholds.items()) + "\n")
    return told.status(0)


@app.command()
def predict(
    *,
    depth: Annotated[int, typer.Option("--depth", help="Hidden layers.")],
    activation: Annotated[str, typer.Option("--activation", help="`gradwell list activations`.")] = "relu",
    init: Annotated[str, typer.Option("--init", help="`gradwell list inits`.")] = "torch_default",
    width: Annotated[int, typer.Option("--width", help="Units in a layer.")] = 64,
    sigma_w2: Annotated[float | None, typer.Option("--sigma-w2", help="fan_in Var W, instead of the init's.")] = None,
    sigma_b2: Annotated[float | None, typer.Option("--sigma-b2", help="Var b, instead of the init's.")] = None,
    norm: Annotated[str, typer.Option("--norm", metavar="batch|layer|rms", help="Normalisation in each layer.")] = "",
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="For batch norm.")] = None,
    shortcut: Annotated[
        float | None, typer.Option("--shortcut", metavar="SCALE", help="Blocks x + SCALE F(x).")
    ] = None,
    dropout: Annotated[float, typer.Option("--dropout", help="Probability to drop a unit.")] = 0.0,
    rnn: Annotated[int | None, typer.Option("--rnn", metavar="STEPS", help="Through so many time steps.")] = None,
    json: Annotated[str | None, typer.Option("--json", metavar="[PATH]", help="As JSON; - or nothing: stdout.")] = None,
) -> int:
    """Predict the gradient of a network from mean-field theory, before any training."""
    from gradwell.journeys.predict import predict as predict_gain

    found = predict_gain(
        depth, activation, init, width=width, sigma_w2=sigma_w2, sigma_b2=sigma_b2, norm=norm, batch_size=batch_size,
        shortcut=shortcut, dropout=dropout, rnn=rnn,
    )  # fmt: skip
    told = _Told()
    if json is None:
        told.print(str(found))
    elif json == "-":
        told.print(found.to_json())
    else:
        _write_file(Path(json), found.to_json().encode())
    return told.status(0)


lab_app = typer.Typer(help="Experiments with many small networks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lab_app, name="lab")


@lab_app.command("list")
def lab_list() -> int:
    """List the experiments, a line each."""
    return _list(EXPERIMENTS)


@lab_app.command("run")
def lab_run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="`gradwell lab list`.")],
    *,
    quick: Annotated[bool, typer.Option("--quick", help="The short form, under 20 seconds.")] = False,
    depth: Annotated[int | None, typer.Option("--depth", min=1, help="Hidden layers.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Runs.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs at most.")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Tables, figures and page go there.")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="PATH", help="The page alone.")] = None,
) -> int:
    """Run an experiment: what is predicted beside what is measured."""
    from gradwell.lab.experiment import run_experiment

    told = _Told()
    run_experiment(name, quick=quick, depth=depth, seeds=seeds, epochs=epochs, out=out, html=html, say=told.print)
    return told.status(0)


def _write_file(path: Path, content: bytes) -> None:
    from gradwell.journeys.report import write_whole

    try:
        write_whole(path, content)
    except OSError as problem:
        raise UnreadableInput(f"Cannot write {path}: {problem.strerror}; name a place that can be written.") from None


EXPERIMENTS = "experiments"


def _shown(home: str, key: str) -> str:
    """An id as people write it: experiments with dashes."""
    return key.replace("_", "-") if home == EXPERIMENTS else key


def _shelf(what: str) -> Shelf:
    if what not in SHELVES:
        raise UsageError(f"There is no shelf {what!r}; the shelves are {', '.join(SHELVES)}.")
    return shelf(SHELVES[what])


# ---------------------------------------------------------------------- what the commands share


def _judging(fail_on: str | None, ignore: Sequence[str] | None, settings: Sequence[str] | None) -> dict[str, Any]:
    """Refuse what cannot be meant before anything runs; returns the thresholds of --set."""
    from gradwell.journeys.diagnose import read_ignored, read_thresholds

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
    read_thresholds(thresholds)
    read_ignored(ignore or ())
    return thresholds


def _refuse_missing(target: str, *, module: bool) -> None:
    """A missing script is told before a run folder is made."""
    from gradwell.errors import UnreadableInput

    if not module and not Path(target).exists():
        raise UnreadableInput(f"No script {target}; name the file that you would give to python.")


def _meets(diagnosis: Diagnosis, fail_on: str | None) -> int:
    from gradwell.records.verdict import RANK

    return int(fail_on is not None and any(RANK[f.severity] >= RANK[fail_on] for f in diagnosis.findings))


@contextlib.contextmanager
def _users_code() -> Iterator[None]:
    """What is raised inside, other than by us, is the user's own and is shown as theirs."""
    from gradwell.journeys.target import UsersException

    try:
        yield
    except GradwellError:
        raise
    except Exception as problem:
        raise UsersException from problem


def _place(path: str | None) -> Path | None:
    """Where to write a file, whatever the working directory will be; None for stdout."""
    return None if path is None or path == "-" else Path(path).absolute()


class _Told:
    """What we tell the person at the terminal, on the streams as they are now: a script may replace or close its own.

    A stream that is closed or full takes nothing; that is no reason to disturb a training.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.out, self.err = sys.stdout, sys.stderr
        self._quiet = quiet
        self._lost: OSError | None = None

    def say(self, text: str) -> None:
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        self._write(self.err, f"gradwell: {text}\n")

    def diagnosis(self, diagnosis: Diagnosis) -> None:
        from gradwell.records.text import render, terminal

        if not self._quiet and _is_open(self.err):
            self._write(self.err, render(diagnosis, **terminal(self.err)) + "\n")

    def treatment(self, treatment: Treatment) -> None:
        from gradwell.records.text import terminal
        from gradwell.records.treatment_text import render_treatment

        if not self._quiet and _is_open(self.err):
            self._write(self.err, render_treatment(treatment, **terminal(self.err)) + "\n")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar on a terminal, a line for each stage elsewhere; no thread, because runs are forked meanwhile."""
        if self._quiet or not _is_open(self.err) or not getattr(self.err, "isatty", bool)():
            yield lambda words, done, count: self.say(f"{words}: {count} runs") if done == 0 and count else None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=self.err), auto_refresh=False, transient=True) as bar:
            task = bar.add_task("", total=None)

            def tick(words: str, done: int, count: int) -> None:
                bar.update(task, description=words, completed=done, total=count or None)
                bar.refresh()

            yield tick

    def json(self, diagnosis: Diagnosis | Treatment, path: str | None) -> None:
        """To stdout when it was asked for, after what the script has printed; in ASCII, whatever stdout can carry."""
        if path == "-":
            with contextlib.suppress(Exception):  # the script's own stream by now, whatever that is
                sys.stdout.flush()
            self.print(json_module.dumps(json_module.loads(diagnosis.to_json()), indent=1))

    def print(self, text: str) -> None:
        self._write(self.out, text + "\n")

    def _write(self, stream: Any, text: str) -> None:
        if not _is_open(stream):
            return
        try:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except OSError as problem:
            if stream is self.out:
                self._lost = problem

    def status(self, status: int) -> int:
        """The exit status of a command that has said all: 2 when stdout did not take it."""
        if self._lost is None:
            return status
        with contextlib.suppress(OSError, ValueError):  # or python would complain again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())
        if isinstance(self._lost, BrokenPipeError):  # `| head`: somebody who wants no more hears nothing about it
            return status
        self.warn(f"Cannot write to stdout: {self._lost.strerror}.")
        return 2


def _is_open(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one clear line and status 2 for bad usage, the user's own traceback for the user's own exception."""
    ending = _command(argv)
    if not isinstance(ending, int):
        host.die_like(ending)  # here, where nothing catches what it raises
    raise SystemExit(ending)


def _command(argv: Sequence[str] | None) -> int | host.Ending:
    """The exit status of a command, or how its script ended."""
    words = _bare_json(sys.argv[1:] if argv is None else list(argv))
    try:
        ended: int | host.Ending | None = app(args=words, prog_name="gradwell", standalone_mode=False)
    except GradwellError as problem:
        _Told().warn(" ".join(str(problem).split()))
    except _BadUsage as problem:
        _Told().warn(_usage_words(problem))
    except Exception as problem:
        theirs = problem.__cause__ if type(problem).__name__ == "UsersException" else None
        if theirs is not None and not _is_ours(theirs):
            _print_users(theirs)
        else:
            traceback.print_exc()
            _Told().warn("this is a fault of gradwell; please report it with the lines above.")
    else:
        return 0 if ended is None else ended
    return 2


def _bare_json(words: list[str]) -> list[str]:
    """`predict --json` without a path writes to stdout; typer has no option whose value may be missing."""
    if words[:1] != ["predict"]:
        return words
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return [
        part for word, after in pairs for part in ([word, "-"] if word == "--json" and after[:2] == "--" else [word])
    ]


def _usage_words(problem: Any) -> str:
    """Typer's complaint as one line; the help, where a command was called without anything."""
    context = problem.ctx
    command = context.command_path if context is not None else "gradwell"
    text = " ".join(problem.format_message().split())
    return f"{text.rstrip('.')}; see `{command} --help`." if text else f"say what to do; see `{command} --help`."


_CALL_THE_USERS_CODE = {
    "_one_pass", "__torch_function__", "_called", "_module", "_module_of_file", "losses_of", "held_loss", "_stream",
    "optimizer", "_step",
}  # fmt: skip
"""Our functions that run the user's code; what is raised below any other one of ours is our fault."""


def _is_ours(problem: BaseException) -> bool:
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if frame.filename.startswith(_PACKAGE)]
    return bool(frames) and frames[-1].name not in _CALL_THE_USERS_CODE


def _print_users(problem: BaseException) -> None:
    """A traceback without our frames and without those that import the user's file for us."""
    shown = traceback.TracebackException.from_exception(problem)
    waiting: list[traceback.TracebackException | None] = [shown]
    while waiting:
        level = waiting.pop()
        if level is not None:
            kept = [frame for frame in level.stack if not frame.filename.startswith(_PACKAGE)]
            kept = list(itertools.dropwhile(lambda frame: frame.filename.startswith("<frozen importlib"), kept))
            level.stack = traceback.StackSummary.from_list(kept)
            waiting += [level.__cause__, level.__context__]
    sys.stderr.write("".join(shown.format()))
