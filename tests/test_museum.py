"""Every odd model under `check` and under the `Monitor`: no error, no trace, no leak, and the sites that matter."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import math
import pickle
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from gradwell.journeys.check import check, measure
from gradwell.measure.flow import ledger
from gradwell.probe.backward import Backward
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Names
from gradwell.probe.preserve import preserved
from gradwell.probe.tape import Tape
from gradwell.records.run import Event, Run, Step

sys.path.insert(0, str(Path(__file__).parent))
museum = importlib.import_module("museum")
Case, Free, data, linear, mse = museum.Case, museum.Free, museum.data, museum.linear, museum.mse


KNOWN = (AssertionError, RuntimeError, ValueError, TypeError, UserWarning)


def exhibits(**broken: str) -> Any:
    """All exhibits; those named in `broken` fail for a known reason, and must."""
    known = {name: pytest.mark.xfail(strict=True, reason=reason, raises=KNOWN) for name, reason in broken.items()}
    assert known.keys() <= museum.MUSEUM.keys()
    return pytest.mark.parametrize(
        "piece", [pytest.param(e, id=e.name, marks=known.get(e.name, ())) for e in museum.MUSEUM.values()]
    )


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_warn_always(True)  # a warning that comes once would hit some other test
    before = process_state()
    yield
    torch.set_warn_always(False)
    assert process_state() == before


def build(piece: Any, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return piece.build()


# ------------------------------------------------------------------ what "as before" means


def process_state() -> dict[str, Any]:
    """What is hooked or patched in the process."""
    m = torch.nn.modules.module
    o = importlib.import_module("torch.optim.optimizer")
    return {
        "forward": len(m._global_forward_hooks),
        "always": len(m._global_forward_hooks_always_called),
        "pre": len(m._global_forward_pre_hooks),
        "backward": len(m._global_backward_hooks),
        "optimizer": (len(o._global_optimizer_pre_hooks), len(o._global_optimizer_post_hooks)),
        "modes": _len_torch_function_stack(),
        "make_grads": torch.autograd._make_grads,
        "Optimizer": torch.optim.Optimizer.__init__,
        "Module": nn.Module.__init__,
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def bits(tensor: Tensor) -> bytes:
    """The bits of a tensor, so that nan equals nan."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        return bits(tensor.indices()) + bits(tensor.values())
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_state() -> list[Any]:
    return [bits(torch.get_rng_state()), random.getstate(), pickle.dumps(np.random.get_state())]


def state(case: Any) -> dict[str, Any]:
    """Everything that a checkup has to leave as it was."""
    modules = list(case.model.modules())
    tensors = [*case.model.parameters(), *case.tensors()]
    return {
        "weights": [bits(p) for p in tensors],
        "grads": [(id(p.grad), None if p.grad is None else bits(p.grad)) for p in tensors],
        "flags": [p.requires_grad for p in tensors],
        "parameters": [id(p) for m in modules for p in m._parameters.values()],
        "buffers": [(id(b), None if b is None else bits(b)) for m in modules for b in m._buffers.values()],
        "modes": [m.training for m in modules],
        "hooks": [
            len(h) for m in modules
            for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ],
        "attributes": [sorted(m.__dict__) for m in modules],
        "calls": [m.__class__.__call__ for m in modules],
        "random": random_state(),
    }  # fmt: skip


def dirty(case: Any) -> None:
    """Gradients of an earlier step, a module in eval mode: things that a careless checkup would lose."""
    for k, p in enumerate(case.model.parameters()):
        if k % 2 and p.requires_grad:
            p.grad = torch.ones_like(p)
    modules = [m for m in case.model.modules() if not list(m.children())]
    if len(modules) > 1:
        modules[-1].eval()
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 (the generator that scripts use)


# ------------------------------------------------------------------ check

NUMPY = "l2 reads through numpy what numpy cannot read"
OUTSIDE = "preserved knows the model's own tensors only"
CHECK_FAILS = {
    "complex_parameters": "as_array casts complex samples to real with a warning",
    "negative_bit": NUMPY,
    "nested_tensor": NUMPY,
    "empty_batch": "flat_sample of an empty tensor has step 0",
    "expanded_buffer": "preserved copies into a buffer with overlapping memory",
}


@exhibits(**CHECK_FAILS, layers_in_a_list=OUTSIDE, raw_tensors=OUTSIDE)
def test_check_leaves_no_trace(piece):
    case = build(piece)
    dirty(case)
    optimizer = case.optimizer(case.tensors())
    before = state(case)
    diagnosis = check(case.model, case.batch, case.loss_fn, optimizer)
    assert state(case) == before
    assert diagnosis.header.sites
    assert not optimizer.state


@exhibits(
    **CHECK_FAILS,
    slotted_output="outputs with slots are not looked into",
    dataclass_in_a_dict="a dataclass inside a dict is not looked into",
    weight_norm="a parametrised Linear is no weight site",
    spectral_norm="a parametrised Linear is no weight site",
)
def test_check_measures_the_sites_that_matter(piece):
    case = build(piece)
    run = measure(case.model, case.batch, case.loss_fn)
    measured = measured_sites(run)
    assert [name for name in piece.sites if name not in measured] == []
    keys = [(s.site, s.call, s.kind) for s in run.sites]
    assert len(keys) == len(set(keys)), "a call is on the list twice"


def measured_sites(run: Run) -> dict[str, float]:
    step = run.steps[0]
    names = {i: site.site + (f"#{site.call}" if site.call else "") for i, site in enumerate(run.sites)}
    return {name: delta for i, name in names.items() if (delta := step.at("delta_norm", i)) is not None}


@exhibits(**{k: v for k, v in CHECK_FAILS.items() if k != "expanded_buffer"})
def test_loss_and_gradients_are_those_of_a_plain_pass(piece):
    plain, watched = build(piece), build(piece)
    torch.manual_seed(4)
    loss = plain.loss_fn(plain.model, plain.batch)
    loss.backward()
    torch.manual_seed(4)
    tape = Tape(Names())
    tape.start()
    try:
        same = watched.loss_fn(watched.model, watched.batch)
    finally:
        tape.stop()
    backward = Backward(tape, [same])
    same.backward()
    backward.finish()
    assert bits(loss) == bits(same)
    assert grads(plain) == grads(watched)


def grads(case: Any) -> list[bytes | None]:
    return [None if p.grad is None else bits(p.grad) for p in case.tensors()]


@exhibits(**CHECK_FAILS)
def test_check_keeps_nothing_alive(piece):
    case = build(piece)
    check(case.model, case.batch, case.loss_fn)
    gone = [weakref.ref(m) for m in case.model.modules()] + [weakref.ref(p) for p in case.tensors()]
    del case
    gc.collect()
    assert [r() for r in gone if r() is not None] == []


@exhibits(**{k: v for k, v in CHECK_FAILS.items() if k != "expanded_buffer"})
def test_no_hook_stays_on_the_graph(piece):
    case = build(piece)
    tape = Tape(Names())
    tape.start()
    try:
        loss = case.loss_fn(case.model, case.batch)
    finally:
        tape.stop()
    backward = Backward(tape, [loss])
    seen: list[int] = []
    for visit in backward.visits:
        visit.delta = None
    backward.close()
    loss.backward()
    assert all(visit.delta is None for visit in backward.visits), seen


# ------------------------------------------------------------------ monitor


class Sink(list):
    """Collects what the monitor says; an event of failure is an error of the test."""

    @property
    def steps(self) -> list[Step]:
        return [item for item in self if isinstance(item, Step)]

    @property
    def events(self) -> list[Event]:
        return [item for item in self if isinstance(item, Event)]

    @property
    def failures(self) -> list[Event]:
        return [event for event in self.events if event.event == "instrument_failed"]


@contextlib.contextmanager
def watching(**options: Any) -> Iterator[tuple[Monitor, Sink]]:
    sink = Sink()
    monitor = Monitor(Names(), sink=sink.append, **options)
    monitor.install()
    try:
        yield monitor, sink
    finally:
        monitor.remove()


def trained(piece: Any, steps: int = 5) -> dict[str, Any]:
    case = build(piece)
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)  # noqa: NPY002
    optimizer = case.optimizer(case.tensors())
    losses = case.run(optimizer, steps)
    return {
        "losses": [repr(v) for v in losses],
        "weights": [bits(p) for p in case.tensors()],
        "grads": grads(case),
        "buffers": [bits(b) for b in case.model.buffers()],
        "random": random_state(),
    }


REREAD = "reading a saved statistic runs the user's unpack hook: a recomputation or a count too many"


@exhibits(
    **{k: v for k, v in CHECK_FAILS.items() if k != "expanded_buffer"},
    checkpoint_not_reentrant=REREAD,
    checkpoint_draws_again=REREAD,
    saved_tensors_on_hooks=REREAD,
)
def test_training_is_bit_equal_with_and_without_us(piece):
    plain = trained(piece)
    with watching(every=1) as (monitor, sink):
        watched = trained(piece)
    assert sink.failures == []
    assert watched == plain
    assert sink.steps
    assert monitor.steps == 5 - (piece.name == "grad_scaler")  # the scaler skips the step with the infinite loss


@exhibits(**{k: v for k, v in CHECK_FAILS.items() if k != "expanded_buffer"})
def test_monitor_keeps_nothing_alive(piece):
    case = build(piece)
    with watching(every=1) as (monitor, sink):
        case.run(case.optimizer(case.tensors()), 2)
    assert sink.failures == []
    gone = [weakref.ref(m) for m in case.model.modules()] + [weakref.ref(p) for p in case.tensors()]
    del case, monitor
    gc.collect()
    assert [r() for r in gone if r() is not None] == []
