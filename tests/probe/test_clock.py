"""Steps, micro-steps, samples and the end: counted, not timed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradwell.probe import clock
from gradwell.probe.clock import FIRST, Monitor
from gradwell.probe.host import StopTraining
from gradwell.probe.names import Names
from gradwell.records.run import Event, Step

X, Y = torch.randn(6, 8), torch.randn(6, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Said(list[Any]):
    @property
    def steps(self) -> list[Step]:
        return [item for item in self if isinstance(item, Step)]

    @property
    def events(self) -> list[str]:
        return [item.event for item in self if isinstance(item, Event) and item.event != "losses"]


@contextlib.contextmanager
def watching(**options: Any) -> Iterator[tuple[Monitor, Said]]:
    said = Said()
    monitor = Monitor(Names(), sink=said.append, **options).install()
    try:
        yield monitor, said
    finally:
        monitor.remove()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loss_of(model: nn.Module) -> Tensor:
    return F.mse_loss(model(X), Y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------ counting


def test_a_plain_loop():
    with watching(every=1) as (monitor, said):
        model = net()
        losses = train(model, sgd(model), 5)
    assert (monitor.steps, monitor.micro_steps) == (5, 5)
    assert [s.step for s in said.steps] == [0, 1, 2, 3, 4]
    assert [s.loss for s in said.steps] == losses
    assert [s.micro_steps for s in said.steps] == [1] * 5


def test_gradient_accumulation():
    with watching(every=1) as (monitor, said):
        model = net()
        optimizer = sgd(model)
        for k in range(12):
            loss_of(model).backward()
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert (monitor.steps, monitor.micro_steps) == (3, 12)
    assert [s.micro_steps for s in said.steps] == [4, 4, 4]


def test_gradient_accumulation_with_an_optimizer_from_before():
    model = net()
    optimizer = sgd(model)
    with watching(every=1) as (monitor, _):
        monitor.knows(optimizer)
        for k in range(12):
            loss_of(model).backward()
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert (monitor.steps, monitor.micro_steps) == (3, 12)


def test_lbfgs_takes_many_backwards_a_step():
    with watching(every=1) as (monitor, said):
        model = net()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    assert monitor.steps == 3
    assert monitor.micro_steps == calls > 3
    assert sum(s.micro_steps for s in said.steps) == calls
    assert all(v > 0 for s in said.steps for v in s.params["update_rms"])


def play(maker: nn.Module, judge: nn.Module, *, rounds: int) -> None:
    """A GAN's training: the judge steps between the maker's forward pass and its backward."""
    one, two = sgd(judge), sgd(maker)
    for _ in range(rounds):
        fake = maker(torch.randn(6, 4))
        one.zero_grad()
        (judge(X).mean() - judge(fake.detach()).mean()).backward()
        one.step()
        two.zero_grad()
        judge(fake).mean().backward()
        two.step()


def test_two_optimizers_of_a_gan_both_step():
    with watching(every=1) as (monitor, said):
        torch.manual_seed(1)
        maker, judge = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        play(maker, judge, rounds=3)
    assert (monitor.steps, monitor.micro_steps) == (6, 6)
    assert [s.step for s in said.steps] == list(range(6))
    groups = {p.group for p in monitor.recorder.params}
    assert groups == {"0.0", "1.0"}


def test_the_maker_of_a_gan_keeps_its_sites():
    with watching(every=1) as (monitor, said):
        maker = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        judge = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        play(maker, judge, rounds=2)
    kinds = {monitor.recorder.sites[i].kind for i, d in enumerate(said.steps[1].sites["delta_norm"]) if d is not None}
    assert kinds == {"Linear", "Tanh", "ReLU"}


def test_the_maker_of_a_gan_keeps_its_sites_wherever_sampling_begins():
    places = {}
    for every in (1, 3):  # 3: every second time sampling begins between the maker's forward pass and its backward
        with watching(every=every) as (monitor, said):
            torch.manual_seed(2)
            maker, judge = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
            play(maker, judge, rounds=8)
        names = [f"{site.site} #{site.call}" for site in monitor.recorder.sites]
        measured = [[d is not None for d in step.sites["delta_norm"]] for step in said.steps]
        places[every] = {step.step: set(compress(names, m)) for step, m in zip(said.steps, measured, strict=True)}
    assert list(places[3]) == [0, 4, 5, 6, 7, 10, 11, 12, 13]  # not 3 and 9, which is what came late
    assert places[3] == {step: places[1][step] for step in places[3]}
    assert len(places[3][5]) == 4


def test_a_manual_update_steps_at_the_next_backward():
    with watching(every=1) as (monitor, said):
        model = net()
        for _ in range(4):
            model.zero_grad()
            loss_of(model).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    assert monitor.micro_steps == 4
    assert monitor.steps == 3  # whether the fourth is over nobody can know
    assert len(said.steps) == 4
    for step in said.steps:
        for update, grad in zip(step.params["update_rms"], step.params["grad_rms"], strict=True):
            assert update == pytest.approx(0.1 * grad, rel=1e-4)


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 3}, {"budget": 1e9}, {"budget": 0.0}])
def test_a_manual_update_is_measured_as_an_optimizers_is(options, monkeypatch):
    monkeypatch.setattr(clock, "ALLOWANCE", 0.0)
    seen = []
    for manual in (True, False):
        with watching(**options) as (_, said):
            model = net()
            optimizer = None if manual else sgd(model)
            for _ in range(9):
                model.zero_grad()
                loss_of(model).backward()
                if optimizer is not None:
                    optimizer.step()
                    continue
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(p.grad, alpha=-0.1)  # the bits of torch's own
        seen.append({step.step: (step.loss, step.total, step.sites["act_rms"]) for step in said.steps})
    by_hand, by_optimizer = seen
    assert by_hand == by_optimizer
    assert len(by_hand) == (9 if options in ({"every": 1}, {"budget": 1e9}) else 3)
    assert all(None not in sizes[:3] and len(sizes) == 3 for _, _, sizes in by_hand.values())


@pytest.mark.parametrize("retain", [False, True])
def test_two_backwards_a_step(retain):
    with watching(every=1) as (monitor, said):
        model = net()
        optimizer = sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            if retain:
                loss = loss_of(model)
                loss.backward(retain_graph=True)
                loss.backward()
            else:
                loss_of(model).backward()
                loss_of(model).backward()
            optimizer.step()
    assert (monitor.steps, monitor.micro_steps) == (3, 6)
    assert [s.micro_steps for s in said.steps] == [2] * 3


def test_several_losses_in_one_backward():
    with watching(every=1) as (monitor, said):
        model = net()
        optimizer = sgd(model)
        torch.autograd.backward([loss_of(model), model(X).square().mean()])
        optimizer.step()
    assert (monitor.steps, monitor.micro_steps) == (1, 1)
    assert len(said.steps) == 1


def test_autograd_grad_and_a_backward_of_nothing_are_no_steps():
    with watching(every=1) as (monitor, said):
        model = net()
        for _ in range(3):
            torch.autograd.grad(loss_of(model), list(model.parameters()))
        with torch.no_grad():
            loss_of(model)
    assert (monitor.steps, monitor.micro_steps, len(said)) == (0, 0, 0)


def test_backward_to_chosen_inputs():
    with watching(every=1) as (monitor, said):
        model = net()
        optimizer = sgd(model)
        loss_of(model).backward(inputs=list(model[2].parameters()))
        optimizer.step()
    assert (monitor.steps, monitor.micro_steps) == (1, 1)
    assert said.events == []
    assert said.steps[0].params["grad_rms"][:1] == [None]


def test_updates_are_weight_after_minus_before():
    with watching(every=1) as (_, said):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        befores = []
        afters = []
        for _ in range(4):
            befores.append([p.detach().clone() for p in model.parameters()])
            train(model, optimizer, 1)
            afters.append([p.detach().clone() for p in model.parameters()])
    for step, before, after in zip(said.steps, befores, afters, strict=True):
        expected = [(a.double() - b.double()).square().mean().sqrt().item() for a, b in zip(after, before, strict=True)]
        assert step.params["update_rms"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_is_told_once_and_sampled():
    with watching(every=100) as (_, said):
        model = net()
        optimizer = sgd(model)
        train(model, optimizer, 2)
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        train(model, optimizer, 4)
    assert said.events == ["nonfinite_loss"]
    assert len(said.steps) >= 2


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("stop", [1, 4])
def test_the_training_stops_after_so_many_steps(manual, stop):
    model = net()
    optimizer = None if manual else sgd(model)
    done = 0

    def script() -> None:
        nonlocal done
        for _ in range(20):
            model.zero_grad()
            loss_of(model).backward()
            if optimizer is None:
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.1 * p.grad
            else:
                optimizer.step()
            done += 1

    with watching(every=1, max_steps=stop) as (monitor, said):
        with pytest.raises(StopTraining):
            script()
        assert monitor.steps == stop
    assert done == (stop if manual else stop - 1)  # the last step itself is done when the optimizer's hook stops it
    assert [s.step for s in said.steps] == list(range(stop))
    assert said.events == []


@pytest.mark.parametrize("manual", [False, True])
def test_a_training_in_a_thread_stops_without_a_traceback(manual, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # instead of the one of pytest
    model = net()
    optimizer = None if manual else sgd(model)
    done: list[int] = []

    def script() -> None:
        for step in range(20):
            loss_of(model).backward()
            if optimizer is not None:
                optimizer.step()
            done.append(step)

    with watching(every=1, max_steps=4) as (monitor, _):
        thread = threading.Thread(target=script)
        thread.start()
        thread.join()
        assert monitor.steps == 4
        with ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit) as stopped:
            pool.submit(script).result()
        assert isinstance(stopped.value.__cause__, StopTraining)  # so that the host calls it stopped, where it gets out
    assert done == list(range(4 if manual else 3))
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------ failures of ours


def fails(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("ours")


PLACES: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "a call begins": lambda m: m.setattr("gradwell.probe.tape.Tape._look_at_input", fails),
    "a call ends": lambda m: m.setattr("gradwell.probe.tape.Tape._note", fails),
    "names": lambda m: m.setattr("gradwell.probe.names.Names.place", fails),
    "the backward is planned": lambda m: m.setattr("gradwell.probe.backward.Backward._plan", fails),
    "a gradient arrives": lambda m: m.setattr("gradwell.probe.backward.sizes.flat_sample", fails),
    "the backward ends": lambda m: m.setattr("gradwell.probe.backward.Backward.finish", fails),
    "the record": lambda m: m.setattr("gradwell.probe.recorder.Recorder.step", fails),
    "the copy of the weights": lambda m: m.setattr("gradwell.probe.clock.Weights", fails),
    "the update": lambda m: m.setattr("gradwell.probe.recorder.Weights.update_norms", fails),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_of_ours_is_told_once_and_the_training_goes_on(place, monkeypatch):
    model = net()
    plain = train(model, sgd(model), 5)
    PLACES[place](monkeypatch)
    told: list[str] = []
    with watching(every=1, on_failure=told.append) as (monitor, said):
        model = net()
        assert train(model, sgd(model), 5) == plain
        assert not monitor.tape.running
        assert not torch.nn.modules.module._global_forward_hooks
        assert (monitor.steps, monitor.micro_steps) == (5, 5)  # counting goes on: `max_steps` still holds
    assert said.events == ["instrument_failed"]
    assert told == ["ZeroDivisionError: ours"]


def test_a_sink_that_always_fails_does_not_stop_the_training():
    model = net()
    monitor = Monitor(Names(), sink=fails, every=1).install()
    try:
        train(model, sgd(model), 3)
    finally:
        monitor._sink = lambda _: None
        monitor.remove()


# ------------------------------------------------------------------ what is sampled


def test_every_k_steps():
    with watching(every=3) as (monitor, said):
        model = net()
        train(model, sgd(model), 10)
    assert [s.step for s in said.steps] == [0, 3, 6, 9]
    assert monitor.sampled == 4


def test_without_a_budget_only_the_first_steps_are_sampled(monkeypatch):
    monkeypatch.setattr(clock, "ALLOWANCE", 0.0)
    with watching(budget=0.0) as (_, said):
        model = net()
        train(model, sgd(model), 40)
    assert [s.step for s in said.steps] == list(range(FIRST))


def test_with_all_budget_every_step_is_sampled():
    with watching(budget=1e9) as (_, said):
        model = net()
        train(model, sgd(model), 12)
    assert [s.step for s in said.steps] == list(range(12))


def test_layer_hooks_are_on_in_sampled_steps_only():
    module = torch.nn.modules.module
    with watching(every=3) as (_, _said):
        model = net()
        optimizer = sgd(model)
        on = []
        for _ in range(7):
            on.append(len(module._global_forward_hooks))
            train(model, optimizer, 1)
    assert on == [1, 0, 0, 1, 0, 0, 1]


# ------------------------------------------------------------------ another process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_trains_unwatched():
    with watching(every=1, max_steps=4) as (monitor, said):
        model = net()
        optimizer = sgd(model)
        train(model, optimizer, 2)
        before = len(said)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(model, optimizer, 9)  # past max_steps of the parent
                status = 0 if (monitor.steps, monitor.micro_steps, len(said)) == (2, 2, before) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        train(model, optimizer, 1)
    assert (monitor.steps, len(said.steps)) == (3, 3)


# ------------------------------------------------------------------ on and off


def test_nothing_stays_and_remove_may_come_twice():
    optimizer = __import__("torch.optim.optimizer", fromlist=["_"])
    before = (torch.autograd._make_grads, torch.optim.Optimizer.__init__, len(optimizer._global_optimizer_pre_hooks))
    with watching(every=1) as (monitor, _):
        model = net()
        train(model, sgd(model), 1)
        monitor.remove()
        monitor.remove()
        train(model, sgd(model), 2)
        assert monitor.steps == 1
    after = (torch.autograd._make_grads, torch.optim.Optimizer.__init__, len(optimizer._global_optimizer_pre_hooks))
    assert after == before


def test_two_monitors_one_after_the_other():
    for _ in range(2):
        with watching(every=1) as (monitor, said):
            model = net()
            train(model, sgd(model), 2)
        assert (monitor.steps, len(said.steps)) == (2, 2)


def test_a_step_in_flight_is_handed_over():
    with watching(every=1) as (_, said):
        model = net()
        sgd(model)
        loss_of(model).backward()
    assert len(said.steps) == 1
    assert said.steps[0].params["grad_rms"][0] > 0
