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

Draw = Callable[[Tensor, Tensor | None], None]
Layer = tuple[Tensor, Tensor | None]

_CRITICAL: dict[str, tuple[float, float]] = {
    # activation: (sigma_w^2, sigma_b^2) with chi_1 = 1 (Schoenholz 2017; Roberts, Yaida, Hanin 2022)
    "relu": (2.0, 0.0),
    "leaky_relu": (2 / (1 + 0.01**2), 0.0),
    "prelu": (2 / (1 + 0.25**2), 0.0),
    "selu": (0.476771, 0.0),
    "gelu": (1.983058, 0.172922),
    "silu": (1.988005, 0.555143),
    "mish": (2.013524, 0.094522),
    "hardswish": (1.973290, 0.507146),
    "softplus": (2.0, 0.0),
    "erf": (math.pi / 4, 0.0),
}
_CENTRED: dict[str, float] = {"sigmoid": 16.0, "hard_sigmoid": 36.0}
"""sigma_w^2 at which the centred net (b = -1/2 sum_j W_ij, so that it sees sigma - 1/2) is critical."""


def initialise(model: nn.Module, config: NetConfig) -> None:
    """Draw every weight layer of a model in place, in module order; norms and positions keep torch's own.

    Raises `UnknownId` for an unknown init.
    """
    draw = pick({**INITS, "critical": _critical(config.activation)}, config.init, "init")
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


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


def _torch_default(weight: Tensor, bias: Tensor | None) -> None:
    """As the module drew it: sigma_w^2 = 1/3, sigma_b^2 = 1 / (3 fan_in) for Linear and Conv2d."""


def _xavier(weight: Tensor, bias: Tensor | None) -> None:
    """Var W = 2 / (fan_in + fan_out), b = 0 (Glorot and Bengio, 2010)."""
    nn.init.xavier_normal_(weight)
    _zero(bias)


def _he(weight: Tensor, bias: Tensor | None) -> None:
    """Var W = 2 / fan_in, b = 0 (He et al., 2015)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    _zero(bias)


def _lecun(weight: Tensor, bias: Tensor | None) -> None:
    """Var W = 1 / fan_in, b = 0 (LeCun et al., 1998)."""
    nn.init.kaiming_normal_(weight, nonlinearity="linear")
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


def _critical(activation: str) -> Draw:
    """chi_1 = 1 for an activation, by weight and bias variance; centred for sigmoids; LeCun's where not listed."""
    if activation in _CENTRED:
        return partial(_centred, sigma_w2=_CENTRED[activation])
    sigma_w2, sigma_b2 = _CRITICAL.get(activation, (1.0, 0.0))

    def draw(weight: Tensor, bias: Tensor | None) -> None:
        nn.init.normal_(weight, std=math.sqrt(sigma_w2 / _fan_in(weight)))
        if bias is not None:
            nn.init.normal_(bias, std=math.sqrt(sigma_b2))

    return draw


def _centred_sigmoid(weight: Tensor, bias: Tensor | None) -> None:
    """W ~ N(0, 16 / fan_in), b_i = -1/2 sum_j W_ij: the next layer sees sigma - 1/2."""
    _centred(weight, bias, sigma_w2=_CENTRED["sigmoid"])


def _centred(weight: Tensor, bias: Tensor | None, *, sigma_w2: float) -> None:
    nn.init.normal_(weight, std=math.sqrt(sigma_w2 / _fan_in(weight)))
    if bias is not None:
        bias.copy_(-weight.flatten(1).sum(1) / 2)


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


def _normal(weight: Tensor, bias: Tensor | None) -> None:
    """W from N(0, 1) whatever the fan, b = 0; `gain` is its standard deviation."""
    nn.init.normal_(weight)
    _zero(bias)


INITS: dict[str, Draw] = {
    "torch_default": _torch_default,
    "xavier": _xavier,
    "he": _he,
    "lecun": _lecun,
    "orthogonal": _orthogonal,
    "lsuv": _orthogonal,
    "centred_sigmoid": _centred_sigmoid,
    "delta_orthogonal": _delta_orthogonal,
    "identity": _identity,
    "fixup": _he,
    "zeros": _zeros,
    "uniform": _uniform,
    "normal": _normal,
}
"""Every init id of the contract but `critical`, which needs the activation."""


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
