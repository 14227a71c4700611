"""`gradwell check`: targets that can be read and those that cannot, and models that refuse."""

import json

import pytest

from .conftest import diagnosis, lines

TARGET = """
import torch
from torch import nn

def net(depth=10, activation=nn.Sigmoid):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(16, 16), activation()]
    return nn.Sequential(*layers, nn.Linear(16, 2))

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)

def data():
    torch.manual_seed(1)
    return torch.randn(32, 16), torch.randint(0, 2, (32,))

def sick():
    model = net()
    return model, data(), loss, torch.optim.SGD(model.parameters(), lr=0.1)

def healthy():
    model = net(2, nn.Tanh)
    return model, data(), loss, torch.optim.SGD(model.parameters(), lr=0.1)

def three():
    return net(2, nn.Tanh), data(), loss

def vector():
    return net(2), data(), lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def number():
    return net(2), data(), lambda model, batch: loss(model, batch).item()

def nothing():
    return net(2), data(), lambda model, batch: None

def detached():
    return net(2), data(), lambda model, batch: loss(model, batch).detach()

def frozen():
    return net(2).requires_grad_(False), data(), loss

def under_no_grad():
    return net(2), data(), torch.no_grad()(loss)

def empty():
    return net(2), (torch.zeros(0, 16), torch.zeros(0, dtype=torch.long)), loss

def spoiled():
    x, y = data()
    x[3, 4] = float("nan")
    return net(2), (x, y), loss

def wrong_shape():
    return net(2), (torch.zeros(32, 15), data()[1]), loss

def wrong_inside():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 2)
        def forward(self, x):
            try:
                return self.fc(x).view(7, 7)
            except RuntimeError as error:
                raise ValueError("my own words") from error
    return Odd(), data(), loss

def raises():
    raise KeyError("mine")

def pair():
    return net(2), loss

def word():
    return "model"

def no_model():
    return "model", data(), loss

def no_optimizer():
    return net(2), data(), loss, "SGD"

def wants(depth):
    return net(depth), data(), loss

def leaves():
    raise SystemExit(4)

def talks():
    print("hello from the target")
    return healthy()

def late():
    from sibling import WORD
    print(WORD)
    return healthy()

NUMBER = 3
"""


@pytest.fixture
def check(gradwell, write):
    """`check("name", *options)` on a function of the target file."""
    write("model.py", TARGET)
    write("sibling.py", "WORD = 'from the sibling'\n")
    return lambda name, *options: gradwell("check", *options, f"model.py:{name}")


def test_verdict_and_status(check):
    sick, healthy = check("sick"), check("healthy")
    assert (sick.status, healthy.status) == (1, 0)
    assert (sick.out, healthy.out) == ("", "")
    assert "vanishing_gradient" in sick.err.splitlines()[0]
    assert "model.py:9" in sick.err
    assert healthy.err.startswith("HEALTHY")
    assert check("three").status == 0


def test_fail_on_is_serious_unless_said_otherwise(check, tmp_path):
    check("sick", "--json", "d.json")
    severity = json.loads((tmp_path / "d.json").read_text())["verdict"]
    ranks = ["mild", "serious", "fatal"]
    assert check("sick").status == int(ranks.index(severity) >= 1)
    for fail_on in ranks:
        assert check("sick", "--fail-on", fail_on).status == int(ranks.index(severity) >= ranks.index(fail_on))


def test_ignore(check):
    done = check("sick", "--ignore", "vanishing_gradient", "--ignore", "*_*")
    assert done.status == 0
    assert "ignored on request" in done.err


def test_ignore_at_a_site(check, tmp_path):
    check("sick", "--json", "a.json")
    (before,) = _vanishing(tmp_path / "a.json")
    options = [f"--ignore=vanishing_gradient:{place['site']}" for place in before["where"]]
    check("sick", *options, "--json", "b.json")
    assert _vanishing(tmp_path / "b.json") == []
    notes = json.loads((tmp_path / "b.json").read_text())["notes"]
    assert f"vanishing_gradient at {before['where'][0]['site']} is ignored on request." in notes
    check("sick", "--ignore", "vanishing_gradient:elsewhere", "--json", "c.json")
    assert _vanishing(tmp_path / "c.json") == [before]


def _vanishing(file):
    return [f for f in json.loads(file.read_text())["findings"] if f["symptom"] == "vanishing_gradient"]


def test_set_changes_the_verdict(check):
    from gradwell.shelf import shelf

    assert "vanishing_gradient" in check("sick").err
    names = shelf("gradwell.symptoms")["vanishing_gradient"].thresholds
    changed = [check("sick", *(f"--set=vanishing_gradient.{name}={value}" for name in names)) for value in (0, 1e9)]
    assert any("vanishing_gradient" not in done.err.splitlines()[0] for done in changed)


def test_json_to_stdout(check):
    done = check("sick", "--json", "-", "--quiet")
    assert json.loads(done.out)["schema"] == 1
    assert done.err == ""


def test_out_is_a_whole_run_folder(check, tmp_path, gradwell):
    check("sick", "--out", "here", "--html", "deep/down/r.html")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["diagnosis.json", "report.html", "run.jsonl"]
    assert (tmp_path / "deep/down/r.html").is_file()
    assert lines(tmp_path / "here")[0]["argv"] == ["model.py:sick"]
    gradwell("report", "--json", "again.json", "here")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["findings"] == diagnosis(tmp_path / "here")["findings"]


def test_nothing_is_written_unasked(check, tmp_path):
    before = sorted(tmp_path.iterdir())
    check("sick")
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_the_targets_prints_go_to_stdout(check):
    assert check("talks").out == "hello from the target\n"


def test_a_target_may_import_its_neighbours_late(check):
    assert check("late").out == "from the sibling\n"


def test_module_target(gradwell, write):
    write("pack/__init__.py", "")
    write("pack/model.py", TARGET)
    assert gradwell("check", "pack.model:healthy").status == 0


REFUSED = {
    "vector": ["loss_fn must return a scalar tensor", "(32,)", ".mean()"],
    "number": ["loss_fn must return a scalar tensor", "float", "loss.item()"],
    "nothing": ["loss_fn must return a scalar tensor", "NoneType"],
    "detached": ["The loss needs no gradient", "detach"],
    "frozen": ["The loss needs no gradient", "frozen"],
    "under_no_grad": ["The loss needs no gradient", "no_grad"],
    "pair": ["must return (model, batch, loss_fn)", "(Sequential, function)"],
    "word": ["must return (model, batch, loss_fn)", "found str"],
    "no_model": ["must return (model, batch, loss_fn)", "(str, tuple, function)"],
    "no_optimizer": ["must return (model, batch, loss_fn)", "str)"],
    "wants": ["model.py:wants", "'depth'", "none"],
    "NUMBER": ["no function 'NUMBER'", "sick"],
    "absent": ["no function 'absent'", "it has net, loss, data, sick"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_clear_line(check, name):
    line = check(name).line
    assert all(word in line for word in REFUSED[name]), line


TARGETS = {
    "nowhere.py:f": ["No file nowhere.py"],
    "model.py": ["file.py:function", "'model.py'"],
    "model.py:": ["file.py:function"],
    ":sick": ["file.py:function"],
    "model.py:a b": ["file.py:function"],
    "no_such_module_here:f": ["No module named 'no_such_module_here'"],
    "torch.nowhere:f": ["No module named 'torch.nowhere'"],
    "..model:f": ["neither a file that ends in .py nor a module"],
    "./model.txt:f": ["no Python file"],
}


@pytest.mark.parametrize("target", TARGETS)
def test_bad_target(gradwell, write, target):
    write("model.py", TARGET)
    write("model.txt", "")
    line = gradwell("check", target).line
    assert all(word in line for word in TARGETS[target]), line


def test_level_deep(check):
    done = check("sick", "--level", "deep", "--json", "-")
    found = json.loads(done.out)
    assert done.status == 1
    assert found["deep"]["not_measured"] == {}
    assert found["profile"][3]["chi"] > 0
    assert "the model alone: -" in done.err


def test_bad_level(check):
    assert "flow" in check("sick", "--level", "molecular").line


USERS = {
    "wrong_shape": ["RuntimeError: mat1 and mat2 shapes cannot be multiplied", "in loss"],
    "wrong_inside": [
        "ValueError: my own words",
        "shape '[7, 7]' is invalid",
        "The above exception was the direct cause",
    ],
    "raises": ["KeyError: 'mine'", "in raises"],
}


@pytest.mark.parametrize("name", USERS)
def test_the_users_own_exception(check, name):
    done = check(name)
    assert (done.status, done.out) == (2, "")
    assert all(word in done.err for word in USERS[name])
    assert 'model.py", line' in done.err
    assert "src/gradwell" not in done.err
    assert "importlib" not in done.err


@pytest.mark.parametrize("text", ["import torch\n1 / 0\n", "def f(:\n", "import no_such_thing_here\n"])
def test_an_exception_while_the_file_is_read(gradwell, write, text):
    done = gradwell("check", write("broken.py", text) + ":f")
    assert done.status == 2
    assert "broken.py" in done.err or "no_such_thing_here" in done.err
    assert done.err.splitlines()[-1].split(":")[0] in {"ZeroDivisionError", "SyntaxError", "ModuleNotFoundError"}
    assert "src/gradwell" not in done.err
    assert "importlib" not in done.err


def test_a_module_that_misses_another(gradwell, write):
    done = gradwell("check", write("half.py", "import no_such_thing_here\n").removesuffix(".py") + ":f")
    assert done.status == 2
    assert done.err.endswith("ModuleNotFoundError: No module named 'no_such_thing_here'\n")


def test_a_target_that_exits(check):
    assert check("leaves").status == 4


@pytest.mark.parametrize("name", ["spoiled", "empty"])
def test_bad_data_gives_a_verdict(check, name):
    done = check(name, "--json", "-")
    assert json.loads(done.out)["verdict"] == "fatal"
    assert done.status == 1
    assert "FATAL nonfinite_value" in done.err
    assert "Traceback" not in done.err


def test_unwritable_output_is_told_and_counts(check, tmp_path):
    (tmp_path / "d").mkdir()
    done = check("healthy", "--json", "d")
    assert done.status == 2
    assert "gradwell: Cannot write" in done.err


def test_a_fault_of_ours_says_so(check, monkeypatch):
    def broken(*_, **__):
        raise KeyError("oops")

    monkeypatch.setattr("gradwell.journeys.diagnose.diagnose", broken)
    done = check("healthy")
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("gradwell: this is a fault of gradwell")


def test_a_fault_of_ours_inside_their_model_is_not_called_theirs(check, monkeypatch):
    def broken(*_, **__):
        raise ValueError("oops")

    monkeypatch.setattr("gradwell.probe.tape.Tape._leave", broken)
    done = check("healthy")
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("gradwell: this is a fault of gradwell")
    assert "tape.py" in done.err
