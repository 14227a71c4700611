"""Weights drawn again: by a variance, as an orthogonal matrix, or until a measured size is 1.

Var W_ij = sigma_w^2 / fan_in, Var b_i = sigma_b^2. Draws come from the global generator: callers fork it. Recurrent and
attention weights are drawn gate by gate: each (M, N) block is one layer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import Refused, UnknownId, UsageError
from gradwell.shelf import shelf
from gradwell.surgery.replace import tied
from gradwell.theory.nonlinearity import nonlinearity

Draw = Callable[[Tensor, Tensor | None], None]
Layer = tuple[Tensor, Tensor | None]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

GAUSSIAN = ("xavier", "he", "lecun", "critical", "centred_sigmoid", "normal")
"""Inits that are a variance of W and b and nothing else: drawn as the theory's shelf of inits says."""


def layers(model: nn.Module) -> Iterator[Layer]:
    """The (weight, bias) of every weight layer as views, (M, N) or (M, N, kH, kW) and (M,), one for each gate."""
    for module in model.modules():
        if isinstance(module, WEIGHTED):
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


def draws(activation: str) -> dict[str, Draw]:
    """Every init as a function that draws one layer in place, for nets of this activation."""
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
        nn.init.normal_(bias, std=math.sqrt(spread.sigma_b2)) if spread.sigma_b2 else nn.init.zeros_(bias)


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
    half = weight.dtype in {torch.float16, torch.bfloat16}  # torch has no QR for them, nor for channels-last weights
    fresh = torch.empty(weight.shape, dtype=torch.float32 if half else weight.dtype, device=weight.device)
    weight.copy_(nn.init.orthogonal_(fresh))
    _zero(bias)


def _delta_orthogonal(weight: Tensor, bias: Tensor | None) -> None:
    """A convolution that is orthogonal at its centre and zero elsewhere (Xiao et al., 2018); a Linear: orthogonal."""
    if weight.dim() == 2:
        return _orthogonal(weight, bias)
    nn.init.zeros_(weight)
    middle = weight
    for size in weight.shape[2:]:
        middle = middle[:, :, size // 2]
    _orthogonal(middle, None)
    return _zero(bias)


def _identity(weight: Tensor, bias: Tensor | None) -> None:
    """W = 1 (a convolution: its centre tap), b = 0."""
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


# inits that measure


def unit_variance(modules: Iterable[nn.Module], run: Callable[[], Any]) -> None:
    """LSUV (Mishkin and Matas, 2016): one pass in which each layer divides its weights by its output's deviation.

    The output is linear in the weights and its bias is set aside, so that one division makes the deviation 1 and
    no second look is needed. `run` runs the model on a batch.
    """

    def rescale(module: Any, _: Any, out: Tensor) -> Tensor:
        shift = 0.0 if module.bias is None else module.bias.view(-1, *[1] * (module.weight.dim() - 2))
        std = (out - shift).std().clamp_min(1e-12)
        module.weight.div_(std)
        return (out - shift) / std + shift

    handles = [module.register_forward_hook(rescale) for module in modules]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()


def unit_chi(modules: Sequence[nn.Module], run: Callable[[], Any], *, sweeps: int = 10) -> None:
    """Scale each layer until the measured chi from the layer before to it is 1.

    chi = |J^T v|^2 / |v|^2 for a Gaussian v at a layer's output, J its Jacobian by the output of the layer before:
    W <- W / sqrt(chi). Signals change with the weights, hence the sweeps (He, Doshi and Gromov 2022 descend instead);
    the later ones go shorter ways, which averages the noise of the probes.
    """
    for sweep in range(sweeps):
        for module, chi in measured_chi(modules, run):
            if math.isfinite(chi) and chi > 0:
                with torch.no_grad():
                    module.weight.div_(chi ** (0.5 / max(1, sweep - 3)))


def measured_chi(modules: Sequence[nn.Module], run: Callable[[], Any]) -> list[tuple[Any, float]]:
    """(layer, chi) for each layer but the first, in the order of the calls; without those that no gradient connects."""
    cuts: list[tuple[nn.Module, Tensor]] = []
    handles = [m.register_forward_hook(lambda m, _, out: cuts.append((m, out))) for m in modules]
    try:
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for (_, below), (module, out) in pairwise(cuts):
        v = torch.randn_like(out)
        (back,) = torch.autograd.grad(out, below, v, retain_graph=True, allow_unused=True)
        if back is not None:
            found.append((module, float(back.double().square().sum() / v.double().square().sum())))
    return found


def fixup(branches: Sequence[Sequence[nn.Module]], head: nn.Module | None) -> None:
    """Fixup (Zhang et al., 2019), weights only, on weights drawn by He.

    In each of L branches of m layers the last layer is zero, the others shrink by L^(-1/(2m - 2)); the head is zero.
    """
    for branch in branches:
        for module in branch[:-1]:
            _weight(module).mul_(len(branches) ** (-1 / (2 * len(branch) - 2)))
        for module in branch[-1:]:
            nn.init.zeros_(_weight(module))
    if branches and head is not None:
        nn.init.zeros_(_weight(head))


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")


BY_GROUP = ("xavier", "orthogonal", "lsuv", "delta_orthogonal", "identity")
"""Inits that look at both sides of a matrix: each group of a convolution is a layer of its own for them."""


# whether it may


OUTLIER = 1.2
"""Largest singular value over the edge of a random matrix, from which on a weight is taken for trained.

Measured: 500 draws of 16 x 16 and more reach 1.13 at most; seven-layer nets after 400 steps have medians of 1.1 to 1.3.
"""


LONG = 100
"""Batches that a batch norm may have seen before its net counts as trained."""


def require_drawable(model: nn.Module, modules: Sequence[nn.Module], *, pretrained: bool | None) -> None:
    """Raise `Refused` where a new draw would be wrong: tied, parametrised, frozen or trained weights."""
    names = {id(module): name for name, module in model.named_modules()}
    drawn = {id(p) for module in modules for p in module.parameters(recurse=False)}
    for first, second in tied(model, drawn):
        raise Refused(f"{first} and {second} are one tied weight; drawing it for one use would break the other.")
    for module in modules:
        if "parametrizations" in module._modules or not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise Refused(
                f"The weight of {names[id(module)]!r} is computed from others (weight norm, a parametrisation); "
                "draw what it is computed from."
            )
    if pretrained is False:
        return
    frozen = [names[id(m)] for m in modules if not _weight(m).requires_grad]
    if frozen and len(frozen) < len(modules):
        raise Refused(f"{frozen[0]!r} is frozen, so its weights are meant to stay; {_ASK}")
    if pretrained or trained_already(model, modules):
        raise Refused(f"These weights have been trained, and a new draw would throw that away; {_ASK}")


_ASK = "give the TrainSetup `pretrained=False` to draw it all the same."


@torch.no_grad()
def trained_already(model: nn.Module, modules: Sequence[nn.Module]) -> bool:
    """True when batch norms have counted many batches, or most weights stand out of what any random draw gives.

    A random (M, N) matrix has no singular value far above std (sqrt M + sqrt N); training adds some that are.
    """
    counts = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    if any(int(count) > LONG for count in counts):
        return True
    ratios = [_outlier(_weight(m)) for m in modules if min(_weight(m).flatten(1).shape) >= 16]
    return len(ratios) > 0 and sorted(ratios)[len(ratios) // 2] > OUTLIER


def _outlier(weight: Tensor) -> float:
    flat = weight.detach().flatten(1).float()
    flat = flat - flat.mean()  # a draw from U(0, 1) has one, and is no training
    edge = float(flat.std()) * (math.sqrt(flat.shape[0]) + math.sqrt(flat.shape[1]))
    v = torch.ones(flat.shape[1], device=flat.device) + torch.linspace(0, 1, flat.shape[1], device=flat.device)
    for _ in range(20):
        v = torch.nn.functional.normalize(flat.T @ (flat @ v), dim=0)
    return float((flat @ v).norm()) / edge if edge > 0 else 0.0


def draw(modules: Sequence[nn.Module], init: str, activation: str) -> None:
    """Draw layers in place by the id of an init; raises `UnknownId`, and `Refused` where there is none to draw."""
    table = draws(activation or "relu")
    if init not in table:
        raise UnknownId(f"There is no init {init!r} to draw; there is {', '.join(sorted([*table, 'jacobian']))}.")
    if init == "delta_orthogonal":
        for module in modules:
            (outputs, inputs, *taps), groups = _weight(module).shape, getattr(module, "groups", 1)
            if taps and outputs < inputs * groups:
                raise Refused(
                    f"A convolution from {inputs * groups} to {outputs} channels cannot be delta-orthogonal; "
                    "it needs as many out as in."
                )
    try:
        with torch.no_grad():
            for module in modules:
                weight, bias = _weight(module), module._parameters.get("bias")
                for group in _gates(weight, bias, getattr(module, "groups", 1) if init in BY_GROUP else 1):
                    table[init](*group)
    except UsageError as problem:
        raise Refused(str(problem)) from problem
