"""`gradwell demo`: the main job on real data: a digits script that does not learn, why, and what cures it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gradwell.errors import UnreadableInput, UsageError
from gradwell.surgery.setup import TrainSetup

SCRIPT = "digits_sigmoid.py"
MINUTES = 1.5
"""Time for the trial; with the script's own run the demo stays under three minutes."""


def demo_script() -> Path:
    """The shipped script: in the package when installed, in `examples/` in a checkout."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "The demo's digits come with scikit-learn, which is not installed: pip install 'gradwell[lab]'."
        )
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / "examples" / SCRIPT, here.parents[3] / "examples" / SCRIPT):
        if candidate.is_file():
            return candidate
    raise UnreadableInput(f"The demo script {SCRIPT} is missing from this installation; install gradwell again.")


def demo_setup(script: Path) -> TrainSetup:
    """The script's training as a `TrainSetup`: its model, data, loss and optimizer, with the rates of its arguments."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    train, _ = module.load_data()
    x, y = train.tensors

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.cross_entropy(model(images), labels)

    def batches(seed: int) -> Iterator[Any]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return ((x[order[k : k + 128]], y[order[k : k + 128]]) for k in range(0, len(x), 128))

    return TrainSetup(module.DigitNet(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), loss_fn, batches)
