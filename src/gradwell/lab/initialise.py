"""The init of a NetConfig: weights and biases by id, then `gain` and `bias_value`. The draws live in `surgery.reinit`.

Draws come from the global generator; `nets.build` forks it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gradwell.lab._ids import pick
from gradwell.lab.data import batch
from gradwell.lab.modules import ResidualBlock, TransformerBlock
from gradwell.records.net import NetConfig
from gradwell.surgery.reinit import GAUSSIAN, draws, fixup, layers, unit_variance


def initialise(model: nn.Module, config: NetConfig) -> None:
    """Draw every weight layer of a model in place, in module order; norms and positions keep torch's own.

    Raises `UnknownId` for an unknown init.
    """
    draw = pick(draws(config.activation), config.init, "init")
    with torch.no_grad():
        for weight, bias in layers(model):
            draw(weight, bias)
            if config.init in {*GAUSSIAN} - {"centred_sigmoid"} and bias is not None and not bias.any():
                torch.empty_like(bias).normal_()  # zeros were drawn once; the documents' seeds stand on it
        if config.init == "lsuv":
            plain = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
            unit_variance(plain, partial(model, batch(config)[0]))
        if config.init == "fixup":
            _quiet_branches(model)
        for weight, bias in layers(model):
            weight.mul_(config.gain)
            if bias is not None and config.bias_value is not None:
                bias.fill_(config.bias_value)


def _quiet_branches(model: nn.Module) -> None:
    """Fixup on the lab's own blocks; the output of attention is zero too. A net without branches keeps He."""
    blocks = [m for m in model.modules() if isinstance(m, (ResidualBlock, TransformerBlock))]
    chains = [block.branch if isinstance(block, ResidualBlock) else block.mlp for block in blocks]
    fixup([[m for m in chain if isinstance(m, nn.Linear)] for chain in chains], model.get_submodule("head"))
    for block in blocks:
        if isinstance(block, TransformerBlock):
            nn.init.zeros_(block.attention.out_proj.weight)
