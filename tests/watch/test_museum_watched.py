"""Every odd model of the museum under `gw.watch`: the same bits as alone, and the steps that the script takes."""

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradwell as gw

from .conftest import events

sys.path.insert(0, str(Path(__file__).parents[1]))
museum = importlib.import_module("museum")


def has_parameters(piece: Any) -> bool:
    return next(piece.build().model.parameters(), None) is not None


def trained(piece: Any, *, watched: bool) -> tuple[list[str], list[bytes], gw.Watch | None]:
    torch.manual_seed(3)
    case = piece.build()
    torch.manual_seed(11)
    random.seed(12)
    optimizer = case.optimizer(case.tensors())
    watch = gw.watch(case.model, every=1) if watched else None
    try:
        losses = case.run(optimizer, 4)
    finally:
        if watch is not None:
            watch.stop()
    weights = [t.detach().to_dense().resolve_conj().contiguous().view(-1) for t in case.tensors()]
    return [repr(loss) for loss in losses], [t.view(torch.uint8).numpy().tobytes() for t in weights], watch


@pytest.mark.parametrize("piece", [pytest.param(e, id=e.name) for e in museum.MUSEUM.values() if has_parameters(e)])
def test_a_training_is_bit_equal_under_a_watch(piece):
    losses, weights, _ = trained(piece, watched=False)
    again, same, watch = trained(piece, watched=True)
    assert (again, same) == (losses, weights)
    assert "instrument_failed" not in events(watch)
    assert watch.run.events[-1].detail["steps"] == 4 - (piece.name == "grad_scaler")
    assert watch.run.steps
