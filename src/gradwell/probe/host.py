"""Runs a training script or module in this process exactly as plain `python` would.

The caller adds an observer and nothing else: name, path, argv, warnings, traceback, signals and exit status are
python's own. "Exactly" is defined by a diff of two runs (`tests/probe/test_host.py`).

Patched while the script runs, and taken back when its main body ends: the SIGTERM handler, and `signal.signal` with
`signal.getsignal`, which hide that handler. Everything else that is set (`sys.argv`, `sys.path[0]`, `sys.orig_argv`,
`sys.modules["__main__"]`) is what python itself sets, and stays.

What a script can still tell apart from plain python: frames below its first one (`sys._getframe(1)`, so the depth at
which recursion ends, and the place named by a warning whose `stacklevel` points above the script); modules that were
imported before it (`sys.modules`); and after SIGTERM its `finally` blocks run and its output is flushed.
"""

import atexit
import builtins
import contextlib
import functools
import gc
import io
import os
import pkgutil
import runpy
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from gradwell.errors import UnreadableInput

_PACKAGE = str(Path(__file__).parent.parent)
_SIGINT_STATUS = 130
_SIGTERM_STATUS = 143


class Ending(msgspec.Struct, frozen=True):
    """How the script's main body ended: the exit status a shell would show, and why.

    `reason` is "finished", "exit" (SystemExit, also one from the script's excepthook), "exception", "interrupted"
    (Ctrl-C), "terminated" (SIGTERM) or "stopped" (by `StopTraining`).
    """

    status: int
    reason: str


class StopTraining(BaseException):
    """Raised inside the script by the monitor to end it early and quietly, with status 0."""


class _Terminated(BaseException):
    """SIGTERM, as an exception in the main thread, so that the script's `finally` blocks run."""


def run_script(path: str, args: Sequence[str], *, on_end: Callable[[Ending], None], ours: Sequence[str] = ()) -> Ending:
    """Run the script (or a directory or zip file with a `__main__.py`) as `python PATH ARGS...` does.

    `on_end` is called once, after the traceback is printed and before atexit handlers run; not in forked children,
    which never return from here. `ours`: further files or folders whose frames are taken out of tracebacks, as those
    of gradwell are. Hand the ending to `die_like` as the last act; the script has changed `sys.argv`, `sys.path` and
    perhaps the working directory by then. Raises `UnreadableInput` when there is nothing to run.
    """
    filename = _absolute(path)
    _refuse_missing(path, filename)
    # A directory or zip file is one for which the import system has a finder; python asks it the same way.
    if pkgutil.get_importer(filename) is not None:
        stage = _Stage([path, *args], filename, [path, *args], always_on_path=True)
        return _perform(stage, lambda: _run_module_as_main("__main__", alter_argv=False), path, on_end, ours)
    data = _read(path, filename)
    stage = _Stage([path, *args], str(Path(filename).resolve().parent), [path, *args])
    namespace = vars(stage.main)
    compiled = filename.endswith(".pyc") or data[:4] == MAGIC_NUMBER
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", filename)
    namespace.update(__loader__=loader, __file__=filename, __cached__=None)

    def body() -> None:
        # None: there is nothing left to execute
        code = loader.get_code("__main__") if compiled else _compile(data, filename, namespace)
        if code is not None:
            exec(code, namespace)

    return _perform(stage, body, path, on_end, ours)


def run_module(name: str, args: Sequence[str], *, on_end: Callable[[Ending], None], ours: Sequence[str] = ()) -> Ending:
    """Run a module, or a package's `__main__`, as `python -m NAME ARGS...` does; the rest as in `run_script`."""
    stage = _Stage(["-m", *args], str(Path.cwd()), ["-m", name, *args])
    return _perform(stage, lambda: _run_module_as_main(name), name, on_end, ours)


def die_like(ending: Ending) -> NoReturn:
    """End the process as plain python ends after such a script: by exit status, or by the signal itself.

    Call it as the very last act, outside anything that catches KeyboardInterrupt or SystemExit (click does): after
    Ctrl-C the interpreter has to reach its own end, run atexit handlers, close files, and only then die by SIGINT.
    An ending made with another status (`--fail-on`) ends with that one.
    """
    if ending.reason == "interrupted":
        sys.excepthook = _say_nothing  # the script's traceback is on the screen already
        # Of a string on purpose: that path marks the interpreter to die by SIGINT once it has finalized; raised from
        # here directly the mark would be missing whenever the process was started with -m.
        exec("raise KeyboardInterrupt")
    if ending.reason == "terminated":
        _flush_std()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(ending.status)


# ---------------------------------------------------------------------------------------------------------------------
# Before: what python sets up


class _Stage:
    """What python sets for a script, and the way back when it turns out that there is nothing to run."""

    def __init__(
        self, argv: list[str], first_path: str, command: Sequence[str], *, always_on_path: bool = False
    ) -> None:
        self._before = (sys.argv, list(sys.path), sys.orig_argv, sys.modules["__main__"])
        self.main = types.ModuleType("__main__")
        if sys.version_info < (3, 14):
            vars(self.main)["__annotations__"] = {}
        vars(self.main)["__builtins__"] = builtins
        sys.modules["__main__"] = self.main
        sys.argv = argv
        sys.orig_argv = [*_interpreter_command(sys.orig_argv), *command]
        if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
            sys.path[0:1] = [first_path]
        elif always_on_path:
            sys.path.insert(0, first_path)

    def restore(self) -> None:
        sys.argv, sys.path[:], sys.orig_argv, sys.modules["__main__"] = self._before


def _absolute(path: str) -> str:
    # Not normalized: python joins with the working directory and leaves "./" and ".." in `__file__`.
    return path if Path(path).is_absolute() else f"{Path.cwd()}{os.sep}{path}"


def _refuse_missing(path: str, filename: str) -> None:
    try:
        Path(filename).stat()
    except OSError as error:
        raise UnreadableInput(
            f"no script can be read at {path!r}: {error.strerror} (looked in {Path.cwd()}); "
            "check the path, or use -m to run a module"
        ) from None
    except ValueError as error:
        raise UnreadableInput(f"no script can be read at {path!r}: {error}; check the path") from None


def _read(path: str, filename: str) -> bytes:
    try:
        return Path(filename).read_bytes()
    except OSError as error:
        raise UnreadableInput(
            f"the script {path!r} cannot be read: {error.strerror}; check its permissions and that it is a file"
        ) from None


def _interpreter_command(orig_argv: Sequence[str]) -> list[str]:
    """`python` and its own options, without the program that it was told to run."""
    kept, rest = list(orig_argv[:1]) or [sys.executable], list(orig_argv[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word[1] not in "-WX":  # a cluster of letters: -m and -c, which name the program, may be its last
            letters = word[1:].split("m")[0].split("c")[0]
            kept += [f"-{letters}"] if letters else []
            if len(letters) < len(word) - 1:
                break
            continue
        kept.append(word)
        if word in {"-W", "-X", "--check-hash-based-pycs"}:
            kept += rest[:1]
            del rest[:1]
    return kept


def _compile(data: bytes, filename: str, namespace: dict[str, Any]) -> types.CodeType | None:
    try:
        return compile(data, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as caught:
        error = caught
    if _run_as_file(filename, namespace):  # outside the `except`: its error has no context
        return None
    raise error


def _run_as_file(filename: str, namespace: dict[str, Any]) -> bool:
    """Raise the error that the interpreter itself has for this file; True when it has none and has run it.

    Scar: python reads a script from the open file, `compile` from bytes, and their messages differ (a wrong encoding,
    null bytes, the caret at the end of the file). Where the interpreter's own function cannot be had, the error of
    `compile` stands.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        run_file = ctypes.pythonapi.PyRun_FileExFlags
    except (ImportError, OSError, TypeError, AttributeError):
        return False
    pointer, thing, number = ctypes.c_void_p, ctypes.py_object, ctypes.c_int
    run_file.restype = thing
    run_file.argtypes = [pointer, ctypes.c_char_p, number, thing, thing, number, pointer]
    file_input, close_it = 257, 1
    name = os.fsencode(filename)
    file = libc.fopen(name, b"rb")
    if not file:
        return False
    with warnings.catch_warnings(record=True):  # `compile` has shown them
        run_file(file, name, file_input, namespace, namespace, close_it, None)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The run, and what follows it


def _run_module_as_main(name: str, *, alter_argv: bool = True) -> None:
    # The function that `python -m` and `python DIRECTORY` call, so that even its frames in a traceback are the same.
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]  # not in the stubs


def _perform(
    stage: _Stage, body: Callable[[], None], named: str, on_end: Callable[[Ending], None], ours: Sequence[str]
) -> Ending:
    pid = os.getpid()
    error: BaseException | None = None
    sigterm = _Sigterm()
    sigterm.watch()
    try:
        body()
    except BaseException as caught:
        error = caught
    sigterm.unwatch()
    # From here on outside the `except`: a script's own excepthook sees an empty `sys.exc_info()`, as in plain python.
    if refusal := _runpy_refusal(error):
        stage.restore()
        raise UnreadableInput(f"cannot run {named!r}: {refusal}; check the name, or give the path of a script")
    ending = _conclude(error, vars(stage.main), sigterm, ours)
    error = None
    if os.getpid() == pid:
        on_end(ending)
    if stage.main.__spec__ is None and ending.reason != "exit":
        # Python takes these away when a script has ended (not after sys.exit): atexit handlers do not see them.
        for name in ("__file__", "__cached__"):
            vars(stage.main).pop(name, None)
    if os.getpid() != pid:
        _leave_forked_child(ending)
    return ending


def _runpy_refusal(error: BaseException | None) -> str | None:
    """The reason, when runpy found nothing to run; None for everything that the script itself raised."""
    reason = error.__context__ if isinstance(error, SystemExit) else None
    is_refusal = reason is not None and type(reason) is runpy._Error  # type: ignore[attr-defined]  # not in the stubs
    return str(reason) if is_refusal else None


def _conclude(
    error: BaseException | None, namespace: dict[str, Any], sigterm: "_Sigterm", ours: Sequence[str]
) -> Ending:
    """Name the ending and print what python prints for it."""
    related = list(_related(error))
    if type(error) is KeyboardInterrupt:
        ending = Ending(_SIGINT_STATUS, "interrupted")
    # An error on the way out of our own stop (a `finally` that misses a result) belongs to the stop: not printed.
    elif any(isinstance(link, StopTraining) for link in related):
        return Ending(0, "stopped")
    elif any(isinstance(link, _Terminated) for link in related):
        return Ending(_SIGTERM_STATUS, "terminated")
    elif isinstance(error, SystemExit):
        ending = Ending(_exit_status(error), "exit")
    else:
        ending = Ending(0, "finished") if error is None else Ending(1, "exception")
    if error is not None and ending.reason != "exit":
        for link in related:
            link.__traceback__ = _peel(link.__traceback__, namespace, (_PACKAGE, *ours))
        ending = _print_uncaught(error) or ending
    # A script that swallowed the signal's exception still ends as one that got SIGTERM.
    return Ending(_SIGTERM_STATUS, "terminated") if sigterm.received else ending


def _related(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that hang on it: causes, contexts, members of exception groups; each once."""
    group = getattr(builtins, "BaseExceptionGroup", ())  # python 3.10 has none
    waiting, seen = [error], set[int]()
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, link.__context__]
        if isinstance(link, group):
            waiting += link.exceptions


def _peel(
    traceback: types.TracebackType | None, namespace: dict[str, Any], roots: Sequence[str]
) -> types.TracebackType | None:
    """The traceback without our frames; the script's own stay ours even if its file lies in one of the roots."""

    def is_ours(frame: types.FrameType) -> bool:
        file = frame.f_code.co_filename
        return frame.f_globals is not namespace and any(
            file == root or file.startswith(root + os.sep) for root in roots
        )

    kept: list[types.TracebackType] = []
    while traceback is not None:
        if not is_ours(traceback.tb_frame):
            kept.append(traceback)
        traceback = traceback.tb_next
    for here, following in zip(kept, [*kept[1:], None], strict=False):
        here.tb_next = following
    return kept[0] if kept else None


def _exit_status(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        number = code if -(2**63) <= code < 2**63 else -1
        return number & 0xFF if os.name == "posix" else number
    with contextlib.suppress(Exception):
        print(code, file=sys.stderr)
    return 1


def _print_uncaught(error: BaseException) -> Ending | None:
    """Report as the interpreter does at its end; an ending only when the script's excepthook chose another one."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        _tell("sys.excepthook is missing\n")
        sys.__excepthook__(type(error), error, error.__traceback__)
        return None
    failure: BaseException | None = None
    try:
        hook(type(error), error, error.__traceback__)
    except BaseException as caught:
        failure = caught
    if isinstance(failure, SystemExit):
        return Ending(_exit_status(failure), "exit")
    if failure is not None:
        _tell("Error in sys.excepthook:\n")
        failure.__traceback__ = _peel(failure.__traceback__, {}, (_PACKAGE,))
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
        _tell("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, error.__traceback__)
    return None


def _tell(text: str) -> None:
    with contextlib.suppress(Exception):
        sys.stderr.write(text)


def _say_nothing(*_: object) -> None:
    pass


def _flush_std() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _leave_forked_child(ending: Ending) -> NoReturn:
    """End a child that the script made with `os.fork`, without passing through the caller's `finally` blocks."""
    threading._shutdown()  # type: ignore[attr-defined]  # python's own first act at the end; not in the stubs
    atexit._run_exitfuncs()
    for thing in gc.get_objects():  # files that were never closed: finalization would have flushed them
        if issubclass(type(thing), io.IOBase):
            with contextlib.suppress(Exception):
                thing.flush()
    _flush_std()
    for reason, number in (("interrupted", signal.SIGINT), ("terminated", signal.SIGTERM)):
        if ending.reason == reason:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    os._exit(ending.status)


class _Sigterm:
    """SIGTERM while the script runs: one exception in the main thread; a second SIGTERM ends the process at once.

    Stands where the default action was and shows itself as that: libraries ask `signal.getsignal` whether somebody
    handles the signal already and then behave differently. A script that installs its own handler, or ignores the
    signal, replaces it; one that puts the default back gets it back.
    """

    def __init__(self) -> None:
        self.received = False
        self._watching = False
        self._pid = os.getpid()
        self._forking = threading.local()
        self._signal = signal.signal
        self._getsignal = signal.getsignal

    def watch(self) -> None:
        on_main = threading.current_thread() is threading.main_thread()
        if not on_main or self._getsignal(signal.SIGTERM) != signal.SIG_DFL:
            return
        self._watching = True
        self._shims = self._shim_signal(), self._shim_getsignal()
        signal.signal, signal.getsignal = self._shims
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
            )
        self._signal(signal.SIGTERM, self._handle)

    def unwatch(self) -> None:
        if not self._watching:
            return
        self._watching = False
        if self._getsignal(signal.SIGTERM) == self._handle:
            self._signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.signal is self._shims[0]:
            signal.signal = self._signal
        if signal.getsignal is self._shims[1]:
            signal.getsignal = self._getsignal

    # Scar: a python handler only runs between bytecodes, so a child that sleeps in C would outlive its SIGTERM; and one
    # that gets it in its first moments loses it, because the interpreter forgets pending signals after a fork. So the
    # signal waits in the kernel until the child has its default action back.

    def _before_fork(self) -> None:
        if self._watching:
            self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        mask = vars(self._forking).pop("mask", None)
        if mask is not None:
            self._forking.late = None
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if vars(self._forking).pop("late"):  # an exception from here would be lost: let the signal come again
                threading.Timer(0.01, os.kill, (self._pid, signal.SIGTERM)).start()

    def _after_fork_in_child(self) -> None:
        self.unwatch()
        mask = vars(self._forking).pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        if "late" in vars(self._forking):
            self._forking.late = True
            return
        self.unwatch()
        if os.getpid() != self._pid:
            os.kill(os.getpid(), number)
            return
        self.received = True
        raise _Terminated

    def _shown(self, handler: Any) -> Any:
        return signal.SIG_DFL if handler == self._handle else handler

    def _shim_signal(self) -> Any:
        @functools.wraps(self._signal)
        def shim(signalnum: Any, handler: Any) -> Any:
            hide = self._watching and signalnum == signal.SIGTERM and handler == signal.SIG_DFL
            return self._shown(self._signal(signalnum, self._handle if hide else handler))

        return shim

    def _shim_getsignal(self) -> Any:
        @functools.wraps(self._getsignal)
        def shim(signalnum: Any) -> Any:
            return self._shown(self._getsignal(signalnum))

        return shim
