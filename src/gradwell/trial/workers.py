"""Where runs happen: forked children that inherit the setup, this process, or somebody's executor.

Children are forked one for each run, so that one that is killed takes only its own run along, and one that is late can
be stopped. They inherit the setup: lambdas and closures need no pickling. Nothing is written to disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from concurrent.futures import TimeoutError as LateError
from multiprocessing import connection, get_context
from pickle import PicklingError
from typing import Any, Protocol

import msgspec
import torch

from gradwell.errors import UsageError
from gradwell.surgery.setup import TrainSetup
from gradwell.trial.train import Job, Trained, work

MOST_CHILDREN = 16
GRACE = 2.0
"""Seconds beyond its limit after which a run is stopped from outside."""
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
KILLED = "its process was killed twice"


class Runner(Protocol):
    """Does runs and gives them back as they end, each with its place in the list."""

    width: int

    def __call__(self, jobs: Sequence[Job], *, until: float) -> Iterator[tuple[int, Trained]]:
        """`until`: time (`time.monotonic`) after which nothing is waited for; runs that are missing were late."""


def runner(setup: TrainSetup, executor: Executor | None = None) -> Runner:
    """The executor that was given, else forked children where forking is safe, else this process."""
    if executor is not None:
        return Given(setup, executor)
    return Forks(setup) if _can_fork(setup) else Inline(setup)


def _can_fork(setup: TrainSetup) -> bool:
    """Linux without an accelerator in use: elsewhere a forked child cannot compute."""
    on_cpu = all(p.device.type == "cpu" for p in setup.model.parameters())
    return sys.platform == "linux" and on_cpu and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _within(job: Job, until: float) -> Job:
    """The job with no more time than there is when it starts."""
    return msgspec.structs.replace(job, limit_s=min(job.limit_s, max(0.0, until - time.monotonic())))


class Inline:
    """One run after the other in this process."""

    def __init__(self, setup: TrainSetup) -> None:
        self.setup, self.width = setup, 1

    def __call__(self, jobs: Sequence[Job], *, until: float) -> Iterator[tuple[int, Trained]]:
        for place, job in enumerate(jobs):
            if time.monotonic() > until:
                return
            yield place, work(self.setup, _within(job, until))


class Given:
    """Any `concurrent.futures.Executor`; the setup travels to its workers with every run."""

    def __init__(self, setup: TrainSetup, executor: Executor) -> None:
        self.setup, self.executor = setup, executor
        self.width = int(getattr(executor, "_max_workers", 0) or os.cpu_count() or 1)

    def __call__(self, jobs: Sequence[Job], *, until: float) -> Iterator[tuple[int, Trained]]:
        places: dict[Future[Trained], int] = {}
        try:
            for place, job in enumerate(jobs):
                places[self.executor.submit(work, self.setup, job)] = place
            for future in as_completed(places, timeout=max(0.0, until - time.monotonic())):
                yield places[future], _told(future)
        except LateError:
            return
        except (BrokenExecutor, RuntimeError) as problem:  # RuntimeError: it was shut down
            raise UsageError(
                f"The executor takes no more runs ({problem}); give a fresh one, or leave it out."
            ) from problem
        finally:
            for future in places:
                future.cancel()


def _told(future: Future[Trained]) -> Trained:
    try:
        return future.result()
    except BrokenExecutor:
        return Trained(problem="its worker was killed")
    except Exception as problem:
        if isinstance(problem, PicklingError) or "pickle" in str(problem):
            raise UsageError(
                f"The setup cannot be sent to the executor's workers ({problem}); define make_optimizer, loss_fn and "
                "batches at the top of a module, or leave the executor out."
            ) from problem
        return Trained(problem=f"{type(problem).__name__}: {problem}".splitlines()[0])


class Forks:
    """A forked child for each run, as many at a time as there are cores.

    The first run is done in this process: what it loads (data behind a cache, parts of torch) every child inherits.
    """

    def __init__(self, setup: TrainSetup, *, width: int | None = None) -> None:
        self.setup = setup
        self._warm = False
        self.width = width or min(len(os.sched_getaffinity(0)), MOST_CHILDREN)

    def __call__(self, jobs: Sequence[Job], *, until: float) -> Iterator[tuple[int, Trained]]:
        waiting = [(place, 1) for place in reversed(range(len(jobs)))]
        if waiting and not self._warm:
            self._warm = True
            place, _ = waiting.pop()
            yield place, work(self.setup, _within(jobs[place], until))
        children: dict[Any, _Child] = {}
        try:
            while waiting or children:
                now = time.monotonic()
                if now > until + GRACE:
                    return
                while waiting and len(children) < self.width and now <= until:
                    place, attempt = waiting.pop()
                    child = _Child(self.setup, _within(jobs[place], until), place, attempt)
                    children[child.reader] = child
                if not children:
                    return
                for reader in connection.wait(list(children), timeout=0.2):
                    child = children.pop(reader)
                    found = child.end()
                    if found is None and child.attempt == 1:
                        waiting.append((child.place, 2))
                    else:
                        yield child.place, found or Trained(problem=KILLED)
                for reader in [r for r, child in children.items() if child.is_late()]:
                    child = children.pop(reader)
                    child.kill()
                    yield child.place, Trained(late=True)
        finally:
            for child in children.values():
                child.kill()


class _Child:
    """One forked process and the pipe that its result comes through."""

    def __init__(self, setup: TrainSetup, job: Job, place: int, attempt: int) -> None:
        context = get_context("fork")
        self.place, self.attempt = place, attempt
        self.reader, writer = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(writer, setup, job), daemon=True)
        with warnings.catch_warnings():  # from Python 3.12 on a fork beside threads warns; the child starts none
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        writer.close()
        self._until = time.monotonic() + job.limit_s + GRACE

    def end(self) -> Trained | None:
        """The result; None where the child died before it had one."""
        try:
            found: Trained | None = self.reader.recv()
        except (EOFError, OSError):
            found = None
        self._close()
        return found

    def is_late(self) -> bool:
        """True for a run that does not look at the clock: one step takes too long."""
        return time.monotonic() > self._until

    def kill(self) -> None:
        """Stop it, whatever it does."""
        self.process.kill()
        self._close()

    def _close(self) -> None:
        self.reader.close()
        self.process.join()
        self.process.close()


def _child(writer: Any, setup: TrainSetup, job: Job) -> None:
    """The run, quietly: a script prints once, and Ctrl-C is the parent's to answer."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)  # nobody reads the result of a parent that is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # a forked child that asks for the parent's threads waits for ever
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    sys.stdout = sys.stderr = os.fdopen(quiet, "w")  # a notebook's or a test's stream is not the process's own
    warnings.simplefilter("ignore")
    with contextlib.suppress(BrokenPipeError):
        writer.send(msgspec.structs.replace(work(setup, job), raised=None))
    writer.close()
    os._exit(0)  # no handlers of the parent's at exit
