"""Every remedy on every odd model of the museum: done, or refused with a reason; the original is as before."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

import gradwell as gw
from gradwell.errors import Refused
from gradwell.shelf import shelf
from gradwell.surgery.loop import Loop

sys.path.insert(0, str(Path(__file__).parents[1]))
museum = importlib.import_module("museum")

NO_SETUP = {"layers_in_a_list", "raw_tensors"}
"""Their parameters are not the model's, so no TrainSetup can hold them."""
TORCHS_OWN = {"sparse_embedding", "complex_parameters", "nested_tensor"}
"""torch has no clipping, sign or norm for these tensors, and says so in the training step."""


def state(model):
    return {name: t.clone() for name, t in model.state_dict(keep_vars=False).items() if not t.is_nested}


@pytest.mark.parametrize("name", [name for name in museum.MUSEUM if name not in NO_SETUP])
def test_a_remedy_is_done_or_refused(name):
    torch.manual_seed(3)
    case = museum.MUSEUM[name].build()
    setup = gw.TrainSetup(case.model, case.optimizer, case.loss_fn, lambda seed: iter([case.batch]))
    before = state(case.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for remedy, entry in shelf("gradwell.remedies").items():
            arm = setup.copy()
            try:
                entry.fact("apply")(arm, **entry.fact("GRID")[0])
            except Refused:
                continue
            try:
                Loop(arm).run(1)
            except (NotImplementedError, RuntimeError, Refused):
                assert name in TORCHS_OWN or remedy == "truncate_bptt", (remedy, name)
    after = state(case.model)
    assert all(torch.equal(before[key], after[key]) or before[key].isnan().any() for key in before)
