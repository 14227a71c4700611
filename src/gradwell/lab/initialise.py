"""Initialisations by id, drawn with torch: weights, biases, then `gain` and `bias_value` of a NetConfig.

Var W_ij = sigma_w^2 / fan_in, Var b_i = sigma_b^2. Draws come from the global generator; `nets.build` forks it.
Recurrent and attention weights are drawn gate by gate: each (M, N) block is one layer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from gradwell.lab._ids import pick
from gradwell.lab.data import batch
from gradwell.lab.modules import ResidualBlock, TransformerBlock
from gradwell.records.net import NetConfig
from gradwell.shelf import shelf
from gradwell.theory.nonlinearity import nonlinearity

Draw = Callable[[Tensor, Tensor | None], None]
Layer = tuple[Tensor, Tensor | None]

GAUSSIAN = ("xavier", "he", "lecun", "critical", "centred_sigmoid", "normal")
"""Inits that are a variance of W and b and nothing else: drawn as the theory's shelf of inits says."""


def initialise(model: nn.Module, config: NetConfig) -> None:
    """Draw every weight layer of a model in place, in module order; norms and positions keep torch's own.

    Raises `UnknownId` for an unknown init.
    """
    draw = pick(_draws(config.activation), config.init, "init")
    with torch.no_grad():
        for weight, bias in layers(model):
            draw(weight, bias)
        if config.init == "lsuv":
            _unit_variance(model, config)
        if config.init == "fixup":
            _quiet_branches(model)
        for weight, bias in layers(model):
            weight.mul_(config.gain)
            if bias is not None and config.bias_value is not None:
                bias.fill_(config.bias_value)


def layers(model: nn.Module) -> Iterator[Layer]:
    """The (weight, bias) of every weight layer as views, (M, N) or (M, N, kH, kW) and (M,), one for each gate."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield module.weight, module.bias
        elif isinstance(module, nn.MultiheadAttention):
            yield from _gates(module.in_proj_weight, module.in_proj_bias, 3)
        elif isinstance(module, nn.RNNBase):
            yield from _recurrent(module)


def _recurrent(module: nn.RNNBase) -> Iterator[Layer]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    for number in range(module.num_layers):
        for part in ("ih", "hh"):
            weight = getattr(module, f"weight_{part}_l{number}")
            yield from _gates(weight, getattr(module, f"bias_{part}_l{number}", None), gates)


def _gates(weight: Tensor, bias: Tensor | None, gates: int) -> Iterator[Layer]:
    biases = [None] * gates if bias is None else bias.chunk(gates)
    yield from zip(weight.chunk(gates), biases, strict=True)


def _draws(activation: str) -> dict[str, Draw]:
    return {**INITS, **{name: partial(_gaussian, name=name, activation=activation) for name in GAUSSIAN}}


def _gaussian(weight: Tensor, bias: Tensor | None, *, name: str, activation: str) -> None:
    """W ~ N(0, sigma_w^2 / fan_in) and b ~ N(0, sigma_b^2), or b_i = -phi(0) sum_j W_ij where it is centred.

    Convolutions count their kernel in both fans.
    """
    taps = weight[0, 0].numel()
    fan_in, fan_out = weight.shape[1] * taps, weight.shape[0] * taps
    spread = shelf("gradwell.theory.inits")[name](fan_in, fan_out, activation=activation)
    nn.init.normal_(weight, std=math.sqrt(spread.sigma_w2 / fan_in))
    if bias is not None and spread.centred:
        bias.copy_(-nonlinearity(activation).at_zero * weight.flatten(1).sum(1))
    elif bias is not None:
        nn.init.normal_(bias, std=math.sqrt(spread.sigma_b2))


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


def _torch_default(weight: Tensor, bias: Tensor | None) -> None:
    """As the module drew it: sigma_w^2 = 1/3, sigma_b^2 = 1 / (3 fan_in) for Linear and Conv2d."""


def _he(weight: Tensor, bias: Tensor | None) -> None:
    """Var W = 2 / fan_in, b = 0 (He et al., 2015)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    _zero(bias)


def _orthogonal(weight: Tensor, bias: Tensor | None) -> None:
    """W^T W = 1 or W W^T = 1, b = 0 (Saxe et al., 2014)."""
    nn.init.orthogonal_(weight)
    _zero(bias)


def _delta_orthogonal(weight: Tensor, bias: Tensor | None) -> None:
    """A convolution that is orthogonal at its centre and zero elsewhere (Xiao et al., 2018); a Linear: orthogonal."""
    if weight.dim() == 2:
        return _orthogonal(weight, bias)
    nn.init.zeros_(weight)
    centre = [size // 2 for size in weight.shape[2:]]
    weight[:, :, centre[0], centre[1]] = nn.init.orthogonal_(torch.empty(weight.shape[:2], dtype=weight.dtype))
    return _zero(bias)


def _identity(weight: Tensor, bias: Tensor | None) -> None:
    """W = 1 (a convolution: its centre tap), b = 0; the IRNN's start (Le et al., 2015)."""
    if weight.dim() == 2:
        nn.init.eye_(weight)
    else:
        nn.init.dirac_(weight)
    _zero(bias)


def _zeros(weight: Tensor, bias: Tensor | None) -> None:
    """W = 0, b = 0: no unit ever differs from its neighbour."""
    nn.init.zeros_(weight)
    _zero(bias)


def _uniform(weight: Tensor, bias: Tensor | None) -> None:
    """W and b from U(0, 1), all positive: the classic mistake."""
    nn.init.uniform_(weight)
    if bias is not None:
        nn.init.uniform_(bias)


INITS: dict[str, Draw] = {
    "torch_default": _torch_default,
    "orthogonal": _orthogonal,
    "lsuv": _orthogonal,
    "delta_orthogonal": _delta_orthogonal,
    "identity": _identity,
    "fixup": _he,
    "zeros": _zeros,
    "uniform": _uniform,
}
"""Every other init of the contract."""


def _unit_variance(model: nn.Module, config: NetConfig) -> None:
    """LSUV (Mishkin and Matas, 2016): one forward pass in which each layer divides itself by its output's std."""

    def rescale(module: nn.Linear | nn.Conv2d, _: object, out: Tensor) -> Tensor:
        shift = 0.0 if module.bias is None else module.bias.view(-1, *[1] * (out.dim() - 2) if out.dim() == 4 else ())
        std = (out - shift).std().clamp_min(1e-12)
        module.weight.div_(std)
        return (out - shift) / std + shift

    plain = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [m.register_forward_hook(rescale) for m in plain]
    try:
        model(batch(config)[0])
    finally:
        for handle in handles:
            handle.remove()


def _quiet_branches(model: nn.Module) -> None:
    """Fixup (Zhang et al., 2019), weights only: the branches' first layers shrink by L^-1/2, the last ones are zero.

    L branches; the head is zero too. A net without branches keeps He.
    """
    branches = [m for m in model.modules() if isinstance(m, (ResidualBlock, TransformerBlock))]
    for block in branches:
        chain = block.branch if isinstance(block, ResidualBlock) else block.mlp
        first, last = (m for m in chain if isinstance(m, nn.Linear))
        first.weight.mul_(len(branches) ** -0.5)
        nn.init.zeros_(last.weight)
        if isinstance(block, TransformerBlock):
            nn.init.zeros_(block.attention.out_proj.weight)
    if branches:
        nn.init.zeros_(model.get_submodule("head").get_parameter("weight"))
