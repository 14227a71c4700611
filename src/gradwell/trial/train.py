"""One run of an arm: copy, seed, remedies, rate, steps, and its loss on the held batches in eval mode.

What a seed changes. Seed 0 is the training as it was handed over. Every other seed draws the data in its own order and
moves the rows and columns of each weight to other units (`shake`), unless the weights are trained already. Two runs of
the same seed have the same data in the same order and, before the remedy, the same weights.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import msgspec
import torch
from torch import nn

from gradwell.errors import GradwellError
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Construction, Names
from gradwell.records.run import Event, Run, Step
from gradwell.records.treatment import Course
from gradwell.records.verdict import Remedy
from gradwell.surgery.loop import Loop
from gradwell.surgery.reinit import trained_already
from gradwell.surgery.setup import TrainSetup, forked
from gradwell.trial.arms import apply
from gradwell.trial.judge import Ending

HELD_SEED = 1_879_048_193
"""Seed of the held batches: far from those that runs count up."""
HELD_BATCHES = 8
"""One batch may be a single sample."""
GLANCE = 10
"""Steps after which a run looks at the clock."""
COURSE = 40
"""Points of the course of a loss, about."""

_ALONE = threading.Lock()
"""Runs seed torch's global generator, so only one at a time in a process, whatever the executor."""


class Job(msgspec.Struct, frozen=True):
    """One run to do. `limit_s`: seconds after which it stops; `watched`: steps from the first on under the monitor;
    `lines`: file:line of the original's modules by name."""

    remedies: Sequence[Remedy]
    lr_scale: float
    seed: int
    steps: int
    limit_s: float
    watched: int = 0
    lines: dict[str, str] = {}


class Trained(msgspec.Struct, frozen=True):
    """What one run showed. `start` is the held loss before the remedy and before the first step.

    `problem`: one sentence where the run raised; `raised`: the user's exception itself, in this process only. `late`:
    the clock stopped it. `run`: the record of the watched steps.
    """

    start: float | None = None
    loss: float | None = None
    steps: int = 0
    step_time_s: float | None = None
    seconds: float = 0.0
    course: Course = []
    problem: str = ""
    raised: Exception | None = None
    late: bool = False
    run: Run | None = None

    @property
    def ending(self) -> Ending:
        """What the judge looks at."""
        return Ending(self.start, self.loss)


def work(setup: TrainSetup, job: Job) -> Trained:
    """Do one run on a copy; the setup, its model and all random numbers are afterwards as before.

    Nothing that the user's code or a remedy raises passes through: it is told in `problem`.
    """
    started = time.perf_counter()
    with _ALONE, _random_kept():
        try:
            found = _run(setup, job, started)
        except GradwellError as problem:
            found = Trained(problem=str(problem))
        except Exception as problem:
            found = Trained(problem=f"{type(problem).__name__}: {problem}".splitlines()[0], raised=problem)
    return msgspec.structs.replace(found, seconds=time.perf_counter() - started)


def _run(setup: TrainSetup, job: Job, started: float) -> Trained:
    arm = setup.copy()
    if not is_trained(arm):
        shake(arm.model, job.seed)
    start = held_loss(arm)
    with forked(job.seed):
        arm = apply(arm, job.remedies, job.lr_scale, copied=True)
    until = started + job.limit_s
    loop, run = _watch(arm, job, until)
    spent, timed = 0.0, 0
    while len(loop.losses) < job.steps and _finite(loop) and time.perf_counter() < until:
        before = time.perf_counter()
        found = loop.run(min(GLANCE, job.steps - len(loop.losses)))
        spent, timed = spent + time.perf_counter() - before, timed + len(found)
    late = len(loop.losses) < job.steps and _finite(loop)
    loss = None if late else held_loss(arm) if _finite(loop) else math.nan
    each = spent / timed if timed else None
    return Trained(start, loss, len(loop.losses), each, course=_course(loop.losses), late=late, run=run)


def _course(losses: Sequence[float]) -> Course:
    """The first loss, then means over equal parts of the steps."""
    part = max(1, len(losses) // COURSE)
    parts = [(k, losses[k : k + part]) for k in range(1, len(losses), part)]
    return [*enumerate(losses[:1]), *((k + len(own) - 1, math.fsum(own) / len(own)) for k, own in parts)]


def _finite(loop: Loop) -> bool:
    forgiving = loop.setup.skip_nonfinite or loop.scale is not None
    return forgiving or not loop.losses or math.isfinite(loop.losses[-1])


def _watch(arm: TrainSetup, job: Job, until: float) -> tuple[Loop, Run | None]:
    """The loop, its first steps taken under the monitor where that was asked for."""
    if not job.watched:
        return Loop(arm, seed=job.seed), None
    steps: list[Step] = []
    events: list[Event] = []

    def sink(item: Step | Event) -> None:
        if isinstance(item, Step):
            steps.append(item)
        else:
            events.append(item)

    names = Names(_Copied(arm.model, job.lines))
    names.root(arm.model, "")
    monitor = Monitor(names, sink=sink).install()
    try:
        loop = Loop(arm, seed=job.seed)
        while len(loop.losses) < min(job.watched, job.steps) and _finite(loop) and time.perf_counter() < until:
            loop.run(min(GLANCE, job.steps - len(loop.losses)))
    finally:
        monitor.remove()
    events.append(Event("ended", monitor.steps, {"steps": monitor.steps}))
    header = monitor.recorder.header(argv=sys.argv, started=time.strftime("%Y-%m-%dT%H:%M:%S"), seed=job.seed)
    return loop, Run(header, steps, events, overhead=monitor.overhead)


class _Copied(Construction):
    """The lines where the original's modules were built, for their copies."""

    def __init__(self, model: nn.Module, lines: dict[str, str]) -> None:
        super().__init__()
        self._by_id = {id(m): lines[name] for name, m in model.named_modules() if name in lines}

    def line(self, module: nn.Module) -> str | None:
        return self._by_id.get(id(module))


def lines_of(model: nn.Module, construction: Construction | None) -> dict[str, str]:
    """{name of a module: file:line where it was built}, as far as it is known."""
    names = Names(construction)
    names.root(model, "")
    found = {name: names.source(module) for name, module in model.named_modules()}
    return {name: line for name, line in found.items() if line is not None}


def held_loss(setup: TrainSetup) -> float:
    """Mean loss over the held batches, the first of a seed of their own, in eval mode, extra terms left out."""
    assert setup.batches is not None
    modes = [(module, module.training) for module in setup.model.modules()]
    losses = []
    try:
        setup.model.eval()
        with torch.no_grad(), forked(HELD_SEED):
            for batch in islice(setup.batches(HELD_SEED), HELD_BATCHES):
                losses.append(float(setup.loss_fn(setup.model, batch)))
    finally:
        for module, mode in modes:
            module.training = mode
    return math.fsum(losses) / len(losses) if losses else math.nan


# What a seed changes in the weights.


def shake(model: nn.Module, seed: int) -> None:
    """Move the rows and columns of each weight to other places, in place: W -> P W Q, b -> P b. Seed 0 does nothing.

    A fresh draw by `reset_parameters` would cure every training that is sick by its own init, and an init that the
    user wrote cannot be called again. P and Q are random permutations, so each weight keeps its singular values, the
    distribution of its elements, its zeros, its equal units and its row sums together with their biases (a unit that
    is dead by its bias stays dead); new is what each layer hands to the next. For independent draws, that is
    another draw. Gates of recurrent layers and the parts of an attention's input weight keep their places; a square
    recurrent weight becomes P W P^T, which keeps its eigenvalues. Embeddings only change columns.
    """
    if seed == 0:
        return
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            _shake_one(module, generator, seen)


def is_trained(setup: TrainSetup) -> bool:
    """True for weights that hold a training already: there a seed changes only the order of the data."""
    if setup.pretrained is not None:
        return setup.pretrained
    weights = ((m, m._parameters.get("weight")) for m in setup.model.modules())
    drawn = [m for m, w in weights if w is not None and w.dim() > 1 and not isinstance(m, nn.Embedding)]
    return trained_already(setup.model, drawn)


def _shake_one(module: nn.Module, generator: torch.Generator, seen: set[int]) -> None:
    own = {n: p for n, p in module._parameters.items() if p is not None and id(p) not in seen}
    seen |= {id(p) for p in own.values()}
    rows: dict[tuple[str, int], torch.Tensor] = {}
    for name, p in own.items():
        if p.dim() == 0 or isinstance(p, nn.UninitializedParameter):
            continue
        blocks = _blocks(module, name, p)
        key = ("hh" if "hh" in name else "", p.size(0))
        if key not in rows:
            rows[key] = _permutation(p.size(0) // blocks, generator)
        order = rows[key]
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            p.copy_(p[_in_blocks(order, blocks)])
        if p.dim() > 1:
            square = "hh" in name and p.size(1) == len(order)
            p.copy_(p[:, order if square else _permutation(p.size(1), generator)])


def _blocks(module: nn.Module, name: str, p: torch.Tensor) -> int:
    """Parts of a weight that were stacked along its rows: gates, or queries, keys and values."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return {"LSTM": 4, "GRU": 3}.get(type(module).__name__.removesuffix("Cell"), 1) if "hr" not in name else 1
    return 3 if name.startswith("in_proj") and p.size(0) % 3 == 0 else 1


def _permutation(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(n, generator=generator)


def _in_blocks(order: torch.Tensor, blocks: int) -> torch.Tensor:
    return torch.cat([order + k * len(order) for k in range(blocks)])


@contextmanager
def _random_kept() -> Iterator[None]:
    """Random numbers of torch, Python and numpy are afterwards as before."""
    numpy = sys.modules.get("numpy")
    state, numpy_state = random.getstate(), numpy.random.get_state() if numpy is not None else None
    with forked():
        try:
            yield
        finally:
            random.setstate(state)
            if numpy is not None and numpy_state is not None:
                numpy.random.set_state(numpy_state)
