"""A head in the middle of a net, and the loss that trains it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import Refused
from gradwell.probe.preserve import preserved
from gradwell.surgery.attach import add_part, grow
from gradwell.surgery.setup import TrainSetup
from gradwell.surgery.terms import Auxiliary, Given, pooled


def add_auxiliary(setup: TrainSetup, cut: str, weight: float) -> None:
    """A linear head on the output of the module `cut`, a child of its first leaf, and `weight` times its loss."""
    if not cut:
        raise Refused("The model has fewer than three weight layers, so there is no middle to put a head behind.")
    batch = setup.batch()
    middle, out = _shapes(setup, cut, batch)
    try:
        with preserved(setup.model):
            setup.loss_fn(Given(out), batch)
    except Exception as problem:
        raise Refused(
            f"loss_fn needs more of the model than its output ({type(problem).__name__}: {problem}); "
            "an auxiliary head gives only that."
        ) from problem
    middle = pooled(middle)
    if middle.dim() != out.dim():
        raise Refused(
            f"The middle gives {tuple(middle.shape)} and the model {tuple(out.shape)}; a linear head cannot "
            "make one of the other."
        )
    # on a leaf, because a container such as nn.Sequential runs every child it has
    leaf = next(m for m in setup.model.get_submodule(cut).modules() if not list(m.children()))
    head = add_part(setup, leaf, "aux_head", nn.Linear(middle.shape[-1], out.shape[-1]))
    grow(setup, leaf.get_submodule(head).parameters())
    where = next(name for name, m in setup.model.named_modules() if m is leaf)
    setup.loss_terms.append(Auxiliary(weight, cut, f"{where}.{head}"))


def _shapes(setup: TrainSetup, cut: str, batch: Any) -> tuple[Tensor, Tensor]:
    """What comes out of the cut and of the model."""
    kept: dict[str, Any] = {}
    handles = [
        setup.model.get_submodule(cut).register_forward_hook(lambda _, __, out: kept.update(middle=out)),
        setup.model.register_forward_hook(lambda _, __, out: kept.update(out=out)),
    ]
    try:
        with preserved(setup.model), torch.no_grad():
            setup.loss_fn(setup.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    middle, out = kept.get("middle"), kept.get("out")
    if not isinstance(middle, Tensor) or not isinstance(out, Tensor) or out.dim() < 2:
        raise Refused("The model or its middle gives no tensor (or is not called as a whole), so no head fits there.")
    return middle, out
