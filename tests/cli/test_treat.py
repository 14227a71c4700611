"""`gradwell treat TARGET` as a person runs it: text, JSON, files, exit status, refusals."""

import json

import pytest

from .contract import OUTCOME, OUTCOME_VERDICTS, TREATMENT, missing

TARGET = """
import torch
from torch import nn

import gradwell as gw


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(32, 8, generator=generator)
        yield x, (x[:, 0] > x[:, 1]).long()


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def chain(depth, activation):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(8, 8), activation()]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def setup(model, steps):
    return gw.TrainSetup(model, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), loss_fn, batches, steps=steps)


def sick():
    return setup(chain(8, nn.Sigmoid), 100)


def healthy():
    return setup(chain(2, nn.Tanh), 40)


def tuple_():
    return chain(2, nn.Tanh), next(batches(0)), loss_fn


def broken():
    found = healthy()
    found.loss_fn = lambda model, batch: model(batch)
    return found
"""


@pytest.fixture
def target(write):
    write("train.py", TARGET)
    return "train.py"


def test_a_sick_training_is_treated_within_the_time(gradwell, target, tmp_path):
    done = gradwell("treat", f"{target}:sick", "--minutes", "0.6", "--seeds", "3", "--json", "-", "--out", "out")
    record = json.loads(done.out)
    assert record["schema"] == 1
    assert record["diagnosis"]["findings"][0]["symptom"] == "vanishing_gradient"
    assert record["seeds"] == 3
    assert missing(record, TREATMENT) == []
    assert all(missing(outcome, OUTCOME) == [] for outcome in record["outcomes"])
    verdicts = [outcome["verdict"] for outcome in record["outcomes"]]
    assert set(verdicts) <= OUTCOME_VERDICTS
    assert done.status == (0 if verdicts[0] == "cures" else 1)
    assert "gradwell: screening" in done.err
    assert "What was tried, best first" in done.err
    assert any("train.py:" in outcome["in_your_code"] for outcome in record["outcomes"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "diagnosis.json", "report.html", "treatment.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/treatment.json").read_text()) == record
    assert "What was tried" in (tmp_path / "out/report.html").read_text()


def test_a_healthy_training_has_nothing_to_cure(gradwell, target):
    done = gradwell("treat", f"{target}:healthy", "--quiet", "--json", "-")
    assert done.status == 0
    assert done.err == ""
    record = json.loads(done.out)
    assert record["diagnosis"]["verdict"] == "healthy"
    assert (record["outcomes"], record["baseline"], record["control"]) == ([], None, None)
    assert "NOTHING TO CURE: HEALTHY" in gradwell("treat", f"{target}:healthy").err


def test_a_script_is_refused_in_one_sentence(gradwell, target):
    assert gradwell("treat", target).line == gradwell("treat", target, "--epochs", "3").line
    assert gradwell("treat", target).line == (
        "treat cannot run a script yet, found 'train.py'; name a function of it that returns a TrainSetup, "
        "train.py:function."
    )


def test_other_targets_are_refused(gradwell, target):
    assert (
        "must return a TrainSetup to be treated, found (Sequential, tuple, function)"
        in gradwell("treat", f"{target}:tuple_").line
    )
    assert "has no function 'nothing'" in gradwell("treat", f"{target}:nothing").line
    assert "takes one TARGET and options, found 'more'" in gradwell("treat", f"{target}:sick", "more").line
    assert "minutes must be above 0" in gradwell("treat", f"{target}:sick", "--minutes", "0").line
    assert "seeds must be at least 2" in gradwell("treat", f"{target}:sick", "--seeds", "1").line
    assert "--fail-on takes" in gradwell("treat", f"{target}:sick", "--fail-on", "never").line


def test_a_setup_can_be_checked_too(gradwell, target):
    done = gradwell("check", f"{target}:sick")
    assert done.status == 1
    assert "vanishing_gradient" in done.err


def test_the_users_exception_is_shown_without_our_frames(gradwell, target):
    done = gradwell("treat", f"{target}:broken")
    assert done.status == 2
    assert "linear(): argument 'input'" in done.err or "TypeError" in done.err
    assert "train.py" in done.err
    assert "gradwell/" not in done.err.replace("gradwell: ", "")
    assert "fault of gradwell" not in done.err


def test_a_place_that_cannot_be_written_is_told_and_the_status_is_2(gradwell, target, tmp_path):
    (tmp_path / "file").write_text("")
    done = gradwell("treat", f"{target}:healthy", "--json", "file/treatment.json")
    assert done.status == 2
    assert "Cannot write" in done.err
    assert "NOTHING TO CURE" in done.err


def test_a_full_disk_loses_neither_the_treatment_nor_what_was_there(gradwell, target, tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("before")

    def full(path, content):
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    done = gradwell("treat", f"{target}:healthy", "--json", "out.json")
    assert done.status == 2
    assert "out.json: No space left on device; name a place that can be written." in done.err
    assert "NOTHING TO CURE" in done.err
    assert (tmp_path / "out.json").read_text() == "before"
    assert not list(tmp_path.glob("*.part"))


def test_a_link_is_written_through_and_stays_a_link(gradwell, target, tmp_path):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "there")  # as /dev/stdout is one
    assert gradwell("treat", f"{target}:healthy", "--json", "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "there").read_text())["schema"] == 1
