"""`gw.watch` as it is used: what it counts and finds, what it leaves behind, and what it refuses."""

import copy
import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

import gradwell as gw
from gradwell.errors import NotMeasurable, UsageError

from .conftest import bits, events, loss_of, net, numbers, process_state, sgd, train

# Invisible.


@pytest.mark.parametrize("options", [{}, {"every": 1}, {"every": 3}, {"rescue": True}])
def test_losses_and_weights_are_those_without_a_watch(options):
    plain = net(4)
    losses = train(plain, sgd(plain), 12)
    model = net(4)
    with gw.watch(model, **options) as watch:
        assert train(model, sgd(model), 12) == losses
    assert bits(model) == bits(plain)
    assert watch.run.steps
    assert events(watch) == ["ended"]


def test_nothing_stays_and_stop_may_come_twice(capsys):
    before = process_state()
    model = net()
    optimizer = sgd(model)
    watch = gw.watch(model, optimizer, every=1)
    train(model, optimizer, 2)
    assert process_state() != before
    watch.stop()
    run = watch.run
    watch.stop()
    assert process_state() == before
    train(model, optimizer, 2)
    assert watch.run == run
    assert numbers(watch) == [0, 1]
    assert run.events[-1].detail["reason"] == "stopped"


@pytest.mark.parametrize(
    ("raised", "reason"), [(ValueError("theirs"), "exception"), (KeyboardInterrupt(), "interrupted")]
)
def test_an_exception_passes_through_and_the_record_is_whole(raised, reason, tmp_path):
    model = net()
    watch = gw.watch(model, every=1, log=tmp_path / "run")

    def body():
        with watch:
            train(model, sgd(model), 2)
            loss_of(model).backward()
            raise raised

    with pytest.raises(type(raised)):
        body()
    assert numbers(watch) == [0, 1, 2]  # the step in flight is told too
    assert watch.run.events[-1].detail["reason"] == reason
    assert [step.step for step in gw.load(tmp_path / "run").steps] == [0, 1, 2]
    assert watch.diagnose().verdict == "healthy"


def test_a_patch_of_somebody_else_over_ours_is_left_alone():
    original = torch.autograd._make_grads
    model = net()
    watch = gw.watch(model, every=1)
    ours = torch.autograd._make_grads

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    torch.autograd._make_grads = theirs
    try:
        watch.stop()
        assert torch.autograd._make_grads is theirs
        with gw.watch(model, every=1) as second:
            loss_of(model).backward()
            assert torch.autograd._make_grads is theirs
        assert torch.autograd._make_grads is theirs
        assert not second.run.steps  # their function is the caller that we see
    finally:
        torch.autograd._make_grads = ours
    with gw.watch(model, every=1) as third:
        loss_of(model).backward()
    assert torch.autograd._make_grads is original
    assert len(third.run.steps) == 1


def test_watched_objects_are_free_after_the_watch():
    model = net()
    optimizer = sgd(model)
    with gw.watch(model, optimizer, every=1) as watch:
        train(model, optimizer, 3)
    gone = [weakref.ref(thing) for thing in (model, model[0], model[0].weight, optimizer)]
    del model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None] * 4
    assert len(watch.run.steps) == 3
    assert watch.diagnose().verdict == "healthy"


def test_a_dropped_watch_is_gone():
    model = net()
    watch = gw.watch(model, every=1)
    train(model, sgd(model), 2)
    watch.stop()
    gone = weakref.ref(watch)
    del watch
    gc.collect()
    assert gone() is None


# Which model, which optimizer.


@pytest.mark.parametrize("told", ["one", "list", "found"])
def test_an_optimizer_from_before_counts_from_the_start(told):
    model = net()
    optimizer = sgd(model)
    given = {"one": optimizer, "list": [optimizer], "found": None}[told]
    with gw.watch(model, given, every=1) as watch:
        for k in range(12):
            loss_of(model).backward()
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert numbers(watch) == [0, 1, 2]
    assert [step.micro_steps for step in watch.run.steps] == [4, 4, 4]
    assert watch.run.events[-1].detail["steps"] == 3


def test_a_forgotten_optimizer_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("gradwell.probe.clock.PATIENCE", 6)
    model = net()
    forgotten = torch.optim.Adam(model.parameters())
    with gw.watch(model, every=1) as watch:
        for _ in range(10):
            model.zero_grad()
            loss_of(model).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    assert len(watch.run.steps) >= 4
    assert watch.run.header.optimizers == []
    model = net()
    stale, used = torch.optim.Adam(model.parameters()), sgd(model)
    with gw.watch(model, every=1) as watch:
        train(model, used, 2)
    assert [optimizer.kind for optimizer in watch.run.header.optimizers] == ["SGD"]
    assert numbers(watch) == [0, 1]
    del forgotten, stale


def test_trainings_of_other_models_are_none_of_ours():
    model, other = net(seed=1), net(seed=2)
    with gw.watch(model, every=1) as watch:
        train(other, sgd(other), 5)
        mine = train(model, sgd(model), 2)
        train(other, sgd(other), 3)
    assert [step.loss for step in watch.run.steps] == mine
    assert numbers(watch) == [0, 1]
    assert [optimizer.kind for optimizer in watch.run.header.optimizers] == ["SGD"]
    assert {param.name for param in watch.run.header.params} == set(dict(model.named_parameters()))
    assert {site.site for site in watch.run.sites} >= {"0", "1", "2"}


def test_a_long_training_of_another_model_does_not_keep_the_hooks_on(monkeypatch):
    monkeypatch.setattr("gradwell.probe.clock.OTHERS", 4)
    model, other = net(seed=1), net(seed=2)
    hooks = torch.nn.modules.module._global_forward_hooks
    with gw.watch(model, every=1) as watch:
        train(other, sgd(other), 5)
        assert not hooks
        train(model, sgd(model), 4)
    assert numbers(watch) == [1, 2, 3]  # the hooks come back with the second step


def gan(steps: int = 4) -> tuple[nn.Module, nn.Module, list[float]]:
    torch.manual_seed(3)
    maker, judge = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return maker, judge, []


def play(maker, judge, losses, steps: int = 4) -> list[float]:
    torch.manual_seed(4)
    one, two = sgd(judge), sgd(maker)
    for _ in range(steps):
        fake = maker(torch.randn(6, 4))
        one.zero_grad()
        first = judge(torch.randn(6, 8)).mean() - judge(fake.detach()).mean()
        first.backward()
        one.step()
        two.zero_grad()
        second = judge(fake).mean()
        second.backward()
        two.step()
        losses += [first.item(), second.item()]
    return losses


def test_two_watches_at_once_on_the_parts_of_a_gan():
    plain = play(*gan())
    maker, judge, losses = gan()
    with gw.watch(maker, every=1) as first, gw.watch(judge, every=1) as second:
        assert play(maker, judge, losses) == plain
    assert numbers(first) == [0, 1, 2, 3]  # the maker's optimizer, one step each
    assert {site.kind for site in first.run.sites} >= {"Linear", "Tanh"}
    assert {param.name for param in first.run.header.params} >= {"0.weight", "0.bias"}
    assert len(first.run.header.optimizers) == 1
    assert len(numbers(second)) >= 4
    for watch in (first, second):
        assert events(watch) == ["ended"]
        assert watch.diagnose().verdict != "undecided"


def test_two_watches_on_one_model_nested_or_crossed():
    plain = net(3)
    losses = train(plain, sgd(plain), 9)
    model = net(3)
    optimizer = sgd(model)
    outer = gw.watch(model, optimizer, every=1)
    said = train(model, optimizer, 3)
    inner = gw.watch(model, optimizer, every=1)
    said += train(model, optimizer, 3)
    outer.stop()
    said += train(model, optimizer, 3)
    inner.stop()
    assert said == losses
    assert (numbers(outer), numbers(inner)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert [s.sites["delta_norm"] for s in outer.run.steps[3:]] == [s.sites["delta_norm"] for s in inner.run.steps[:3]]


def test_functional_activations_are_seen_by_two_watches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model = Net()
    with gw.watch(model, every=1) as one, gw.watch(model, every=1) as two:
        train(model, sgd(model), 2)
        assert torch.overrides._len_torch_function_stack() == 0
    for watch in (one, two):
        assert [site.kind for site in watch.run.sites] == ["Linear", "tanh", "Linear"]
    assert one.run.steps[0].sites == two.run.steps[0].sites


def test_an_optimizer_of_another_model_is_refused():
    model, other = net(), net()
    with pytest.raises(UsageError, match=r"^This SGD holds no parameter of the Sequential to be watched; pass the opt"):
        gw.watch(model, sgd(other))


# Bad input: one clear sentence.


@pytest.mark.parametrize(
    ("arguments", "options", "problem", "sentence"),
    [
        ((3,), {}, UsageError, "watch needs a torch.nn.Module, found int; pass the model itself."),
        ((nn.ReLU(),), {}, NotMeasurable, "ReLU has no parameters: there is nothing to watch; build its layers before"),
        ((net(), 0.1), {}, UsageError, "optimizer must be a torch.optim.Optimizer or a sequence of them, found float;"),
        ((net(), [net()]), {}, UsageError, "a sequence of them, found Sequential;"),
        ((net(),), {"budget": 0}, UsageError, "above 0 and at most 1, found 0."),
        ((net(),), {"budget": -0.1}, UsageError, "above 0 and at most 1, found -0.1."),
        ((net(),), {"budget": 1.5}, UsageError, "above 0 and at most 1, found 1.5."),
        ((net(),), {"budget": float("nan")}, UsageError, "above 0 and at most 1, found nan."),
        ((net(),), {"budget": "1%"}, UsageError, "above 0 and at most 1, found '1%'."),
        ((net(),), {"every": 0}, UsageError, "every is a whole number of steps, at least 1, found 0;"),
        ((net(),), {"every": 2.5}, UsageError, "every is a whole number of steps, at least 1, found 2.5;"),
        ((net(),), {"sinks": [3]}, UsageError, "A sink is called with every Step, Event and Finding; int is no call"),
        ((net(),), {"rescue": "yes"}, UsageError, "rescue is True or False, found 'yes'."),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_sentence(arguments, options, problem, sentence):
    before = process_state()
    with pytest.raises(problem) as told:
        gw.watch(*arguments, **options)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)
    assert process_state() == before


def test_a_log_that_is_a_file_or_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^log must be a folder, found the file .*file; name a folder\.$"):
        gw.watch(net(), log=tmp_path / "file")
    with pytest.raises(UsageError, match=r"^Cannot make the folder .*; name another one as log\.$"):
        gw.watch(net(), log=tmp_path / "file" / "below")


# The process around it.


def test_a_training_in_a_thread():
    plain = net(2)
    losses = train(plain, sgd(plain), 4)
    model, said = net(2), []
    with gw.watch(model, every=1) as watch:
        thread = threading.Thread(target=lambda: said.extend(train(model, sgd(model), 4)))
        thread.start()
        thread.join()
    assert said == losses
    assert numbers(watch) == [0, 1, 2, 3]
    assert None not in watch.run.steps[-1].sites["delta_norm"]


def test_two_trainings_in_two_threads_do_not_mix():
    plain = [train(model, sgd(model), 12) for model in (net(2, seed=1), net(2, seed=2))]
    models, said = [net(2, seed=1), net(2, seed=2)], {}
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def run(k):
        optimizer, losses = sgd(models[k]), []
        for _ in range(12):  # one forward pass here, one there, then the backward passes: both tapes hold both
            turns[k].acquire()
            optimizer.zero_grad()
            loss = loss_of(models[k])
            turns[1 - k].release()
            turns[k].acquire()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            turns[1 - k].release()
        said[k] = losses

    with gw.watch(models[0], every=1) as one, gw.watch(models[1], every=1) as two:
        threads = [threading.Thread(target=run, args=(k,)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [said[0], said[1]] == plain
    for watch, model in ((one, models[0]), (two, models[1])):
        assert numbers(watch) == list(range(12))
        assert [site.site for site in watch.run.sites] == ["0", "1", "2", "3", "4"]
        assert {param.name for param in watch.run.header.params} == set(dict(model.named_parameters()))


def test_a_copy_a_pickle_and_the_state_hold_nothing_of_ours(tmp_path):
    model = net(2)
    fresh = {name: sorted(module.__dict__) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with gw.watch(model, every=1) as watch:
        train(model, sgd(model), 2)
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        assert list(model.state_dict()) == keys
        train(twin, sgd(twin), 3)  # a copy is another model
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for module in (model, twin, again):
        assert {name: sorted(part.__dict__) for name, part in module.named_modules()} == fresh
        assert not any(p._backward_hooks for p in module.parameters())
    assert bits(again) == bits(model)
    assert b"gradwell" not in (tmp_path / "model.pt").read_bytes()
    assert numbers(watch) == [0, 1]


def test_a_watch_that_nobody_stops_ends_with_the_process(tmp_path):
    script = """
import torch, gradwell as gw
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
gw.watch(model, log="run", every=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.ones(4, 8)).square().mean().backward()
    optimizer.step()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["diagnosis.json", "report.html", "run.jsonl"]
    assert len(gw.load(tmp_path / "run").steps) == 3
