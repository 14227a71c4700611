"""The README says what is so: its Python example runs, its commands exist, its catalogue is the shelves' text."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gradwell
from gradwell.cli import app
from gradwell.journeys.catalogue import SHELVES, catalogue
from gradwell.shelf import shelf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (torch.nn.Linear(64, 64), torch.nn.Sigmoid())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
    batch = (torch.randn(128, 64), torch.randint(0, 10, (128,)))
    scope = {"model": model, "batch": batch, "loss_fn": lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1])}
    exec(code.group(1), scope)
    assert capsys.readouterr().out.startswith("SERIOUS vanishing_gradient: from 40 to 0")
    assert scope["diagnosis"].attributions[0].cause == "activation_slope"


def test_watch_example_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "gw.watch" in block]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (torch.nn.Linear(16, 16), torch.nn.Sigmoid())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 10))
    batches = [(torch.randn(32, 16), torch.randint(0, 10, (32,))) for _ in range(4)]
    scope = {
        "gw": gradwell, "model": model, "batches": batches, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1]),
    }  # fmt: skip
    exec(code, scope)
    told = capsys.readouterr()
    assert "FATAL vanishing_gradient: from 40 to 0" in told.out
    assert told.err.startswith("gradwell: step 0: FATAL vanishing_gradient: from 40 to 0")
    assert len(gradwell.load("runs/mine").steps) == 4


def test_public_names_are_the_exported_ones() -> None:
    assert sorted(gradwell.__all__) == gradwell.__all__
    for name in gradwell.__all__:
        assert getattr(gradwell, name) is not None
    assert set(gradwell.__all__) < set(dir(gradwell))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gradwell.nothing


def test_commands_of_the_readme_exist() -> None:
    told = set(re.findall(r"^\| `gradwell (\w+)", README, re.MULTILINE)) | {"list", "explain"}
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert all(re.search(rf"^\s+{command}\b", help_text, re.MULTILINE) for command in told)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_catalogue_is_the_text_of_the_shelves() -> None:
    fresh = "run `python -m gradwell.journeys.catalogue > docs/catalogue.md`"
    assert (ROOT / "docs" / "catalogue.md").read_text() == catalogue(), fresh


@pytest.mark.parametrize("name", SHELVES)
def test_every_shelf_has_pages(name: str) -> None:
    entries = shelf(SHELVES[name])
    assert len(entries) > 0
    assert all(entry.page.title.endswith(".") and entry.page.blocks for entry in entries.values())
