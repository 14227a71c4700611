"""Where runs happen: children that die, hang or raise take only their own run along, and nothing stays behind."""

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gradwell.errors import UsageError
from gradwell.trial.train import Job, work
from gradwell.trial.workers import KILLED, Forks, Given, Inline, runner

spec = importlib.util.spec_from_file_location("trial_nets", Path(__file__).with_name("nets.py"))
nets = sys.modules.setdefault("trial_nets", importlib.util.module_from_spec(spec))
if not hasattr(nets, "healthy"):
    spec.loader.exec_module(nets)
forked = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")


def jobs(count=4, **options):
    plain = {"remedies": (), "lr_scale": 1.0, "steps": 5, "limit_s": 30.0, **options}
    return [Job(seed=seed, **plain) for seed in range(count)]


def soon(seconds=60.0):
    return time.monotonic() + seconds


def results(run, wanted, **options):
    return dict(run(wanted, until=soon(**options)))


@forked
def test_children_give_the_same_losses_as_this_process():
    setup = nets.healthy()
    there = results(Forks(setup, width=2), jobs())
    here = results(Inline(setup), jobs())
    assert {k: r.loss for k, r in there.items()} == {k: r.loss for k, r in here.items()}
    assert sorted(there) == [0, 1, 2, 3]


@forked
def test_a_setup_of_closures_needs_no_pickling():
    scale = torch.tensor(1.0)
    setup = nets.healthy()
    setup.loss_fn = lambda model, batch: nets.cross_entropy(model, batch) * scale
    assert all(r.loss is not None for r in results(Forks(setup, width=2), jobs(3)).values())


@forked
def test_a_child_that_is_killed_is_run_again(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADWELL_TEST_MARK", str(tmp_path / "mark"))
    setup = nets.healthy()
    setup.loss_fn = nets.killed_once
    found = results(Forks(setup, width=1), jobs(3))
    assert [found[k].problem for k in range(3)] == ["", "", ""]
    assert (tmp_path / "mark").exists()


@forked
def test_a_run_that_kills_its_child_twice_is_told_and_the_others_go_on():
    setup = nets.healthy()
    setup.loss_fn = nets.killed_always
    found = results(Forks(setup, width=2), jobs(3))
    assert found[0].loss is not None  # done in this process, to warm it
    assert [found[k].problem for k in (1, 2)] == [KILLED, KILLED]
    assert found[1].ending.infeasible
    assert multiprocessing.active_children() == []


@forked
def test_a_child_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr("gradwell.trial.workers.GRACE", 0.2)
    setup = nets.healthy()
    setup.loss_fn = nets.hangs
    began = time.monotonic()
    found = results(Forks(setup, width=2), jobs(3, limit_s=0.5))
    assert found[1].late
    assert found[2].late
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


@forked
def test_nothing_stays_behind_when_the_caller_walks_away(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    setup = nets.healthy()
    setup.loss_fn = nets.hangs
    run = Forks(setup, width=2)(jobs(4), until=soon())
    next(run)
    fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    run.close()
    assert multiprocessing.active_children() == []
    assert len(os.listdir("/proc/self/fd")) <= fds  # noqa: PTH208
    assert list(tmp_path.iterdir()) == []


@forked
def test_children_are_quiet(capfd):
    setup = nets.healthy()

    def loss_fn(model, batch):
        if nets.away():
            print("noise")
        return nets.cross_entropy(model, batch)

    setup.loss_fn = loss_fn
    results(Forks(setup, width=1), jobs(2))
    assert capfd.readouterr() == ("", "")


def test_no_run_starts_after_the_time():
    setup = nets.healthy()
    assert results(Inline(setup), jobs(), seconds=-1.0) == {}


def test_threads_give_the_same_losses_one_after_the_other():
    setup = nets.healthy()
    with ThreadPoolExecutor(3) as pool:
        there = results(Given(setup, pool), jobs())
    assert {k: r.loss for k, r in there.items()} == {k: r.loss for k, r in results(Inline(setup), jobs()).items()}


@forked
def test_an_executors_worker_that_dies_is_told():
    setup = nets.healthy()
    setup.loss_fn = nets.killed_always
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        found = results(Given(setup, pool), jobs(2))
    assert {r.problem for r in found.values()} == {"its worker was killed"}


@forked
def test_a_setup_that_no_executor_can_be_sent_is_refused_in_one_sentence():
    setup = nets.healthy()
    setup.loss_fn = lambda model, batch: nets.cross_entropy(model, batch)
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool,
        pytest.raises(UsageError, match=r"cannot be sent to the executor's workers .* leave the executor out\."),
    ):
        results(Given(setup, pool), jobs(1))


def test_an_executor_that_was_shut_down_is_refused():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(UsageError, match="takes no more runs"):
        results(Given(nets.healthy(), pool), jobs(1))


def test_where_runs_happen():
    setup = nets.healthy()
    with ThreadPoolExecutor(3) as pool:
        assert runner(setup, pool).width == 3
    setup.model.to("meta")
    assert isinstance(runner(setup), Inline)


def test_a_run_is_the_same_whoever_does_it():
    setup = nets.healthy()
    (found,) = results(runner(setup), jobs(1)).values()
    assert found.loss == work(setup, jobs(1)[0]).loss
