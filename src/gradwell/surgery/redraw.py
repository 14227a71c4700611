"""The weights of a setup drawn again, where that may be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradwell.errors import Refused
from gradwell.probe.preserve import preserved
from gradwell.surgery.blocks import layer_of
from gradwell.surgery.observe import Pass, observe
from gradwell.surgery.reinit import WEIGHTED, draw, fixup, require_drawable, unit_chi, unit_variance
from gradwell.surgery.setup import TrainSetup

MEASURING = {"lsuv": "orthogonal", "jacobian": "he"}
"""Inits that look at a batch, and what is drawn before."""


def redraw(setup: TrainSetup, init: str, *, where: str = "", init_for: Callable[[str], str]) -> None:
    """Draw the linear and convolution layers (`where="head"`: the last one) by an init's id.

    `init` "" takes `init_for(activation)` of the most frequent hidden activation.
    """
    seen = observe(setup) if setup.batches is not None else None
    activation = seen.activation if seen is not None else ""
    modules: list[nn.Module] = [m for m in setup.model.modules() if isinstance(m, WEIGHTED)]
    if where == "head":
        modules = _head(setup, seen, modules)
    if not modules:
        raise Refused("The model has no linear or convolution layer to draw.")
    require_drawable(setup.model, modules, pretrained=setup.pretrained)
    init = init or (init_for(activation) if where != "head" else "lecun")
    if init == "centred_sigmoid" and activation not in {"sigmoid", "hard_sigmoid"}:
        raise Refused(f"The centred rule is for sigmoids, and the hidden activation is {activation or 'unknown'}.")
    if init == "fixup":
        return _fixup(setup, seen, modules)
    draw(modules, MEASURING.get(init, init), activation)
    if init in MEASURING:
        _measured(setup, seen, init)
    return None


def _head(setup: TrainSetup, seen: Pass | None, modules: list[nn.Module]) -> list[nn.Module]:
    """The last layer called; without data, the last one built."""
    if seen is None:
        return modules[-1:]
    called = [layer for call in seen.weights if (layer := layer_of(setup, call)) is not None]
    return called[-1:]


def _measured(setup: TrainSetup, seen: Pass | None, init: str) -> None:
    if seen is None:
        raise Refused(f"The init {init} looks at a batch, and the setup has no data; give it `batches`.")
    called = [layer for call in seen.weights if (layer := layer_of(setup, call)) is not None]
    if len({id(layer) for layer in called}) < len(called):
        raise Refused(f"A layer is used several times in one pass; {init} would undo its first use by the second.")
    batch = setup.batch()

    def run() -> Any:
        return setup.loss_fn(setup.model, batch)

    with preserved(setup.model):
        (unit_variance if init == "lsuv" else unit_chi)(called, run)


def _fixup(setup: TrainSetup, seen: Pass | None, modules: list[nn.Module]) -> None:
    branches = seen.branches() if seen is not None else []
    chains = [[layer for call in branch.calls if (layer := layer_of(setup, call)) is not None] for branch in branches]
    chains = [chain for chain in chains if len(chain) > 1]
    if not chains or seen is None:
        raise Refused("Fixup is for residual branches of two or more layers, and none was found; take he.")
    draw(modules, "he", seen.activation)
    with torch.no_grad():
        fixup(chains, layer_of(setup, seen.weights[-1]))
