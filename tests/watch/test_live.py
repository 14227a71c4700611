"""What is told while the training still runs: one line and one call for each new finding, at the right step."""

import math

import pytest
import torch
from torch import nn

import gradwell as gw
from gradwell.journeys.live import Live
from gradwell.journeys.log import Log, thinned
from gradwell.probe import clock
from gradwell.records.run import Event, Header, Run, Step

from .conftest import X, events, loss_of, net, numbers, sgd, train


def lines(capsys) -> list[str]:
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.splitlines()


class Heard(list):
    """A sink."""

    def __call__(self, item):
        self.append(item)

    @property
    def findings(self):
        return [item for item in self if isinstance(item, gw.Finding)]


def test_a_structural_fault_is_named_at_the_first_sampled_step(capsys):
    model, heard = net(12, nn.Sigmoid), Heard()
    with gw.watch(model, every=1, sinks=[heard]):
        optimizer = sgd(model)
        train(model, optimizer, 1)
        assert "vanishing_gradient" in {finding.symptom for finding in heard.findings}
        first = lines(capsys)
        train(model, optimizer, 8)
    assert any(line.startswith("gradwell: step 0: FATAL vanishing_gradient: from 24 to 0 the grad") for line in first)
    assert "largest cause: activation slope" in first[0]
    assert lines(capsys)[0].startswith("gradwell: checkup after 3 steps: FATAL: vanishing_gradient")
    symptoms = [finding.symptom for finding in heard.findings]
    assert len(symptoms) == len(set(symptoms))  # each once


def test_a_healthy_training_has_one_line(capsys):
    model, heard = net(2), Heard()
    with gw.watch(model, every=1, sinks=[heard]):
        train(model, sgd(model), 30)
    (line,) = lines(capsys)
    assert line.startswith("gradwell: checkup after 3 steps: HEALTHY: the gradient arrives at all 5 layers within ")
    assert heard.findings == []


@pytest.fixture
def _sparse(monkeypatch):
    """Only the first steps and those after a trigger are sampled."""
    monkeypatch.setattr(clock, "ALLOWANCE", 0.0)
    monkeypatch.setattr(clock, "FIRST", 3)


@pytest.mark.usefixtures("_sparse")
def test_a_loss_that_is_not_finite_is_told_at_its_own_step(capsys):
    model, heard = net(2), Heard()
    with gw.watch(model, budget=1e-9, sinks=[heard]) as watch:
        optimizer = sgd(model)
        train(model, optimizer, 30)
        assert numbers(watch) == [0, 1, 2]
        lines(capsys)
        loss_of(model, X * math.nan).backward()
        (finding,) = heard.findings  # before the optimizer has stepped
        assert lines(capsys)[0].startswith("gradwell: step 30: FATAL nonfinite_value: the loss is nan at step 30")
        optimizer.step()
        train(model, optimizer, 3)
    assert (finding.symptom, finding.severity, finding.first_step) == ("nonfinite_value", "fatal", 30)
    assert [found.symptom for found in heard.findings].count("nonfinite_value") == 1
    assert "nonfinite_loss" in events(watch)


@pytest.mark.parametrize("every", [1, 5])
def test_a_fault_that_begins_later_is_told_within_ten_steps(every, capsys):
    model, heard = net(2, nn.ReLU), Heard()
    onset = 30
    with gw.watch(model, every=every, sinks=[heard]):
        optimizer = sgd(model, lr=0.01)
        train(model, optimizer, onset)
        assert heard.findings == []
        with torch.no_grad():
            model[0].bias.fill_(-100.0)  # all units of the first layer die
        train(model, optimizer, 10)
        told = {finding.symptom for finding in heard.findings}
    assert "dead_units" in told


@pytest.mark.usefixtures("_sparse")
def test_a_training_that_breaks_between_the_samples_is_told_within_ten_steps(capsys):
    model, heard = net(2, nn.ReLU), Heard()
    with gw.watch(model, budget=1e-9, sinks=[heard]) as watch:
        optimizer = sgd(model, lr=0.05)
        train(model, optimizer, 40)
        assert numbers(watch) == [0, 1, 2]
        assert heard.findings == []
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(100)
        train(model, optimizer, 10)
        told = {finding.symptom: finding.severity for finding in heard.findings}
    assert told["nonfinite_value"] == "fatal"
    assert {"unusual_loss", "nonfinite_loss"} & set(events(watch))


def test_a_severity_that_rises_is_told_again(monkeypatch):
    from gradwell.journeys import live
    from gradwell.records.verdict import Diagnosis, Evidence, Finding

    def finding(severity):
        return Finding("dead_units", severity, [], 0, 0, [Evidence("dead_frac", 0.5, "")], "units are dead.")

    severities = iter([["mild"], [], ["mild"], ["mild"], ["serious"], ["mild"], ["serious", "serious"], []])
    said, found = [], Heard()
    monkeypatch.setattr(
        live, "diagnose", lambda *_, **__: Diagnosis(Header("gradwell"), "mild", [finding(s) for s in next(severities)])
    )

    class OfNothing:
        def run(self):
            return Run(Header("gradwell"))

    teller = Live(OfNothing(), say=said.append, found=found)
    for look, told in enumerate([0, 0, 0, 1, 2, 2, 3, 3]):  # what is mild is told when it is found twice in a row
        teller.look()
        assert len(said) == told, look
    assert said == [
        "step 0: MILD dead_units: units are dead",
        "step 0: SERIOUS dead_units: units are dead",
        "step 0: SERIOUS dead_units: units are dead",  # the second of its kind
    ]
    assert [item.severity for item in found] == ["mild", "serious", "serious"]


def test_looks_get_rarer_while_nothing_moves(monkeypatch):
    from gradwell.journeys import live

    looked, plain = [], live.diagnose
    monkeypatch.setattr(live, "diagnose", lambda run, **o: looked.append(run.steps[-1].step) or plain(run, **o))
    model = net(2)
    with gw.watch(model, every=1):
        train(model, sgd(model, lr=1e-4), 60)
    assert looked[:3] == [0, 1, 2]
    assert len(looked) <= live.EARLY + 6


def test_gradwell_run_tells_the_same_lines(tmp_path, capsys, monkeypatch):
    from gradwell.cli import main

    script = """
import torch
torch.manual_seed(0)
layers = [layer for _ in range(12) for layer in (torch.nn.Linear(8, 8), torch.nn.Sigmoid())]
net = torch.nn.Sequential(*layers, torch.nn.Linear(8, 8))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(6):
    optimizer.zero_grad()
    net(torch.ones(4, 8)).square().mean().backward()
    optimizer.step()
    print("theirs", step)
"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(script)
    for options in ([], ["--quiet"]):
        with pytest.raises(SystemExit):
            main(["run", *options, "train.py"])
        told = capsys.readouterr()
        assert told.out.splitlines() == [f"theirs {step}" for step in range(6)]
        if options:
            assert told.err == ""
        else:
            assert told.err.startswith("gradwell: step 0: FATAL vanishing_gradient: from 24 to 0 (train.py:4) the grad")
            assert "\ngradwell: checkup after 3 steps: FATAL: vanishing_gradient" in told.err


# Sinks.


def test_sinks_get_steps_events_and_findings():
    model, heard = net(12, nn.Sigmoid), Heard()
    with gw.watch(model, every=1, sinks=[heard]) as watch:
        train(model, sgd(model), 2)
    assert {type(item) for item in heard} == {gw.Step, gw.Event, gw.Finding}
    assert [item for item in heard if isinstance(item, gw.Step)] == watch.run.steps


def test_a_sink_that_raises_is_told_once_and_dropped(capsys):
    def broken(item):
        raise ZeroDivisionError("theirs")

    plain = net(2)
    losses = train(plain, sgd(plain), 6)
    model, heard = net(2), Heard()
    with gw.watch(model, every=1, sinks=[broken, heard]) as watch:
        assert train(model, sgd(model), 6) == losses
    told = [line for line in lines(capsys) if "sink" in line]
    assert told == ["gradwell: the sink broken raised ZeroDivisionError: theirs; it gets nothing more."]
    assert [item.step for item in heard if isinstance(item, gw.Step)] == numbers(watch) == list(range(6))


def test_a_fault_of_ours_in_a_look_is_told_once_and_the_training_goes_on(monkeypatch, capsys):
    from gradwell.journeys import live

    def fails(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(live, "diagnose", fails)
    plain = net(2)
    losses = train(plain, sgd(plain), 6)
    model = net(2)
    with gw.watch(model, every=1) as watch:
        assert train(model, sgd(model), 6) == losses
    assert numbers(watch) == list(range(6))  # the record goes on
    assert [line for line in lines(capsys) if "ours" in line] == [
        "gradwell: stopped looking (ZeroDivisionError: ours); the record goes on."
    ]


def test_a_closed_stderr_does_not_matter(monkeypatch):
    import io

    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    model = net(12, nn.Sigmoid)
    with gw.watch(model, every=1) as watch:
        train(model, sgd(model), 4)
    assert numbers(watch) == [0, 1, 2, 3]


# The folder.


def test_the_folder_is_that_of_gradwell_run(tmp_path):
    model = net(12, nn.Sigmoid)
    with gw.watch(model, every=1, log=tmp_path / "runs" / "mine") as watch:
        optimizer = sgd(model)
        train(model, optimizer, 3)
        assert [step.step for step in gw.load(tmp_path / "runs" / "mine").steps] == [0, 1, 2]  # live
        assert sorted(path.name for path in (tmp_path / "runs" / "mine").iterdir()) == ["run.jsonl"]
        train(model, optimizer, 2)
    folder = tmp_path / "runs" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.json", "report.html", "run.jsonl"]
    again = gw.load(folder)
    assert again.steps == watch.run.steps
    assert again.header == watch.run.header
    assert again.diagnose().findings == watch.diagnose().findings


def test_a_folder_that_goes_away_is_told_and_the_training_goes_on(tmp_path, capsys, monkeypatch):
    plain = net(2)
    losses = train(plain, sgd(plain), 6)
    model = net(2)
    with gw.watch(model, every=1, log=tmp_path / "run") as watch:
        optimizer = sgd(model)
        said = train(model, optimizer, 2)
        watch._log._writer._stream.close()
        monkeypatch.setattr(watch._log._writer, "_stream", Full())
        said += train(model, optimizer, 4)
    assert said == losses
    assert sum("No space left on device; the training goes on unrecorded" in line for line in lines(capsys)) == 1
    assert numbers(watch) == list(range(6))


class Full:
    """The stream of a full disk."""

    def write(self, _line):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


# Memory.


def test_the_steps_in_memory_are_thinned_and_the_file_holds_all(tmp_path, monkeypatch):
    monkeypatch.setattr("gradwell.journeys.log.STEPS", 40)
    model = net()
    with gw.watch(model, every=1, log=tmp_path / "run") as watch:
        optimizer = sgd(model, lr=1e-3)
        train(model, optimizer, 100)
        loss_of(model, X * 1e20).backward()  # not finite: marked
        optimizer.step()
        train(model, optimizer, 200)
    kept = numbers(watch)
    assert 20 <= len(kept) <= 40
    assert kept[:3] == [0, 1, 2]
    assert {100, 101, 102} <= set(kept)
    assert kept[-10:] == list(range(291, 301))
    assert [step.step for step in gw.load(tmp_path / "run").steps] == list(range(301))
    assert watch.run.events[-1].detail["sampled"] == 301
    assert watch.diagnose().overhead.sampled_steps == 301


def test_thinning_keeps_the_first_the_newer_and_the_marked():
    steps = [Step(k) for k in range(20)]
    assert [step.step for step in thinned(steps, {5})] == [0, 1, 2, 4, 5, 6, 8, *range(10, 20)]


def test_events_and_losses_in_memory_are_few(monkeypatch):
    events, losses = 40, 20_000
    monkeypatch.setattr("gradwell.journeys.log.EVENTS", events)
    monkeypatch.setattr("gradwell.journeys.log.LOSSES", losses)
    log = Log(None, argv=[], say=print)
    for k in range(3 * events):
        log(Event("rescue", k))
    assert [event.step for event in log.events[:2]] == [0, 1]
    assert log.events[-1].step == 3 * events - 1
    assert len(log.events) == events
    log.events = []
    for k in range(0, 2 * losses, 100):
        log(Event("losses", k, {"values": [1.0] * 100}))
    assert sum(len(event.detail["values"]) for event in log.events) <= losses
    assert log.events[0].step == 0
    assert log.events[-1].step + len(log.events[-1].detail["values"]) == 2 * losses


def test_losses_that_follow_each_other_are_one_event_in_memory(tmp_path):
    model = net()
    with gw.watch(model, every=1, log=tmp_path / "run") as watch:
        losses = train(model, sgd(model), 50)
    (event,) = [event for event in watch.run.events if event.event == "losses"]
    assert event.detail["values"] == losses
    assert len([event for event in gw.load(tmp_path / "run").events if event.event == "losses"]) > 10


# The notebook.


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_watch_and_its_run_show_themselves(when):
    model = net(12, nn.Sigmoid)
    watch = gw.watch(model, every=1)
    if when != "before":
        train(model, sgd(model), 4)
    if when == "after":
        watch.stop()
    bundles = [watch._repr_mimebundle_(), watch.run._repr_mimebundle_()]
    watch.stop()
    for bundle in bundles:
        assert set(bundle) == {"text/plain", "text/html"}
        assert "<script" not in bundle["text/html"]
        first = bundle["text/plain"].splitlines()[0]
        if when == "before":
            assert first == "No step has been sampled yet."
        else:
            end = "so far" if when == "during" else "(stopped)"
            assert first.startswith(f"4 steps {end}, loss ")
            assert "FATAL vanishing_gradient" in bundle["text/plain"]
            assert "data:image/svg+xml" in bundle["text/html"]
    assert ("UNDECIDED" if when == "before" else "FATAL vanishing_gradient") in str(watch)


@pytest.mark.parametrize("arguments", [(20, "sigmoid"), (1, "tanh"), (5, "relu", "zeros")])
def test_a_prediction_shows_itself(arguments):
    prediction = gw.predict(*arguments)
    bundle = prediction._repr_mimebundle_()
    assert bundle["text/plain"] == str(prediction)
    assert "data:image/svg+xml" in bundle["text/html"]
    assert f"each of {arguments[0]} places" in bundle["text/html"]
