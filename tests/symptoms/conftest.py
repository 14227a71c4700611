"""Records of small nets, made once: (config, steps, optimizer seen) -> Run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import islice

import msgspec
import pytest
import torch

from gradwell.journeys.check import measure
from gradwell.journeys.log import Log
from gradwell.lab.tasks import batches, setup
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Names
from gradwell.records.net import NetConfig
from gradwell.records.run import Run


@cache
def first_step(config: NetConfig, with_optimizer: bool = True) -> Run:
    """What `gradwell check` sees."""
    torch.set_num_threads(1)
    model, batch, loss, optimizer = setup(config)
    return measure(model, batch, loss, optimizer if with_optimizer else None)


@cache
def training(config: NetConfig, steps: int = 12, every: int = 1) -> Run:
    """A training of which every n-th step is recorded, as a run that lives in memory."""
    torch.set_num_threads(1)
    model, _, loss, optimizer = setup(config)
    recorded = []
    header = None
    for number, batch in enumerate(islice(batches(config), steps)):
        if number % every == 0:
            run = measure(model, batch, loss, optimizer)
            header = run.header
            recorded.append(msgspec.structs.replace(run.steps[0], step=number))
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    assert header is not None
    return Run(header, recorded)


@cache
def watched(config: NetConfig, steps: int) -> Run:
    """A training under the monitor: the loss of every step, every tenth step sampled."""
    torch.set_num_threads(1)
    log = Log(None, argv=[], say=print)
    log.monitor = Monitor(Names(), sink=log, every=10).install()
    try:
        model, _, loss, optimizer = setup(config)
        for batch in islice(batches(config), steps):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    finally:
        log.monitor.remove()
    return log.run()


@pytest.fixture(scope="session")
def check_run() -> Callable[..., Run]:
    return first_step


@pytest.fixture(scope="session")
def watch_run() -> Callable[[NetConfig, int], Run]:
    return watched


@pytest.fixture(scope="session")
def train_run() -> Callable[..., Run]:
    return training
