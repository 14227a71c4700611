"""The command line in this process: what `main(argv)` prints and how it ends."""

import contextlib
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gradwell.cli import main

SICK = """
import torch

torch.manual_seed(0)
layers = []
for _ in range(10):
    layers += [torch.nn.Linear(16, 16), torch.nn.Sigmoid()]
net = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
x, y = torch.randn(32, 16), torch.randint(0, 2, (32,))
for step in range(6):
    loss = torch.nn.functional.cross_entropy(net(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    print("step", step, loss.item().hex())
"""
"""Ten sigmoid layers at their default init: vanishing, in a blink."""

HEALTHY = SICK.replace("range(10)", "range(2)").replace("Sigmoid", "Tanh")


class Result(NamedTuple):
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one clear line of a refusal."""
        assert self.status == 2, self
        assert self.out == "", self.out
        assert self.err.startswith("gradwell: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("gradwell: ").rstrip("\n")


class Kept(io.StringIO):
    """A stream whose text outlives it: scripts close stderr."""

    last = ""

    def text(self) -> str:
        return self.last if self.closed else self.getvalue()

    def close(self) -> None:
        if not self.closed:
            self.last = self.getvalue()
        super().close()


def call(*argv: str) -> Result:
    """Run a command here; what it leaves behind (a script changes argv and path as python does) is put back."""
    before = sys.argv, list(sys.path), sys.orig_argv, sys.modules["__main__"], dict(sys.modules)
    out, err, status = Kept(), Kept(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in argv])
    except SystemExit as ended:
        status = int(ended.code or 0)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    finally:
        sys.argv, sys.path[:], sys.orig_argv, sys.modules["__main__"] = before[:4]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name not in before[4] and "site-packages" not in file and "/pytest-" in file:
                del sys.modules[name]
    return Result(status, out.text(), err.text())


@pytest.fixture
def gradwell(tmp_path, monkeypatch):
    """`gradwell(*argv)` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def write(tmp_path):
    """Put a file into the working directory and give its name."""

    def written(name: str, text: str) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return name

    return written


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    """A run folder of the sick script; only to be read."""
    place = tmp_path_factory.mktemp("recorded")
    (place / "train.py").write_text(SICK)
    with contextlib.chdir(place) if sys.version_info >= (3, 11) else _inside(place):
        assert call("run", "train.py").status == 0
    (folder,) = [path for path in (place / "runs").iterdir() if path.is_dir()]
    return folder


@contextlib.contextmanager
def _inside(place: Path):
    import os

    here = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(here)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `run.jsonl`."""
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def diagnosis(folder: Path) -> dict[str, Any]:
    """`diagnosis.json` of a run folder."""
    found: dict[str, Any] = json.loads((folder / "diagnosis.json").read_text())
    return found


def newest(place: Path) -> Path:
    """The only run folder below a working directory."""
    (folder,) = [path for path in (place / "runs").iterdir() if path.is_dir()]
    return folder
