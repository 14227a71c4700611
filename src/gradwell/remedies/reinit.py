"""Draw the weights again, at the scale that the activation needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gradwell.errors import GradwellError
from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise
from gradwell.shelf import shelf

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_gradient", "weight_gain", 1),
    Treats("vanishing_gradient", "activation_slope", 2),
    Treats("vanishing_gradient", "", 3),
    Treats("exploding_gradient", "weight_gain", 1),
    Treats("exploding_gradient", "", 3),
    Treats("symmetric_units", "", 1),
    Treats("saturated_units", "", 1),
    Treats("saturated_output", "", 2),
    Treats("dead_units", "", 3),
    Treats("rank_collapse", "", 2),
    Treats("slow_loss", "weight_gain", 1),
    Treats("slow_loss", "", 3),
    Treats("loss_plateau", "weight_gain", 1),
    Treats("loss_plateau", "", 3),
    Treats("undersized_update", "weight_gain", 2),
    Treats("gradient_underflow", "weight_gain", 2),
    Treats("diverging_loss", "weight_gain", 2),
    Treats("nonfinite_value", "weight_gain", 2),
)

_HE = {
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "elu",
    "celu",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "hardswish",
    "softplus",
}
_CENTRED = "centred_sigmoid"
_FOR = {"sigmoid": "centred_sigmoid", "hard_sigmoid": "centred_sigmoid", "selu": "lecun", "identity": "lecun"}

_DRAW = {
    "he": 'nn.init.kaiming_normal_(m.weight, nonlinearity="relu")',
    "xavier": "nn.init.xavier_normal_(m.weight)",
    "lecun": 'nn.init.kaiming_normal_(m.weight, nonlinearity="linear")',
    "centred_sigmoid": "nn.init.normal_(m.weight, std={root} / m.weight[0].numel() ** 0.5)",
    "critical": "nn.init.normal_(m.weight, std=({w2:.9g} / m.weight[0].numel()) ** 0.5)",
    "orthogonal": "nn.init.orthogonal_(m.weight)",
    "identity": "(nn.init.eye_ if m.weight.dim() == 2 else nn.init.dirac_)(m.weight)",
    "delta_orthogonal": """nn.init.zeros_(m.weight)
        centre = tuple(size // 2 for size in m.weight.shape[2:])  # () for a linear layer
        m.weight.data[(slice(None), slice(None), *centre)] = nn.init.orthogonal_(torch.empty(m.weight.shape[:2]))""",
}
_DRAW |= {"lsuv": _DRAW["orthogonal"], "jacobian": _DRAW["he"], "fixup": _DRAW["he"]}
_BY_GROUP = {
    "xavier": "nn.init.xavier_normal_(group)",
    "orthogonal": "nn.init.orthogonal_(group)",
    "lsuv": "nn.init.orthogonal_(group)",
    "identity": "(nn.init.eye_ if group.dim() == 2 else nn.init.dirac_)(group)",
    "delta_orthogonal": """nn.init.zeros_(group)
            centre = tuple(size // 2 for size in group.shape[2:])  # () for a linear layer
            group[(slice(None), slice(None), *centre)] = nn.init.orthogonal_(torch.empty(group.shape[:2]))""",
}
"""The draws that look at both sides of a matrix, for convolutions in groups: each is a layer of its own."""
_BIAS = {
    "centred_sigmoid": "m.bias.data = -0.5 * m.weight.data.flatten(1).sum(1)  # the layer sees sigmoid - 1/2",
    "critical": "nn.init.normal_(m.bias, std={b2:.9g} ** 0.5)",
}
_THEN = {
    "lsuv": """

def unit(m, args, out):
    out = out - (0.0 if m.bias is None else m.bias.view(-1, *[1] * (m.weight.dim() - 2)))
    m.weight.data /= out.std()
    return out / out.std()


hooks = [m.register_forward_hook(unit) for m in model.modules() if isinstance(m, {classes})]
with torch.no_grad():
    loss_fn(model, batch)  # one batch of your data
for hook in hooks:
    hook.remove()""",
    "jacobian": """
cuts = []
keep = lambda m, args, out: cuts.append((m, out))
hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, {classes})]
for sweep in range(10):
    cuts.clear()
    loss_fn(model, batch)  # one batch of your data
    chi = []
    for (_, below), (m, out) in zip(cuts, cuts[1:]):
        v = torch.randn_like(out)
        back = torch.autograd.grad(out, below, v, retain_graph=True)[0]
        chi.append((m, back.square().sum() / v.square().sum()))
    for m, value in chi:
        m.weight.data /= value ** (0.5 / max(1, sweep - 3))  # shorter ways later: the noise averages
for hook in hooks:
    hook.remove()""",
    "fixup": """
blocks = {blocks}
for name in blocks:
    branch = [m for m in model.get_submodule(name).modules() if isinstance(m, {classes})]
    for m in branch[:-1]:
        m.weight.data *= len(blocks) ** (-1 / (2 * len(branch) - 2))
    nn.init.zeros_(branch[-1].weight)
nn.init.zeros_(model.get_submodule("{head}").weight)  # the last layer""",
}
"""What follows the draw where an init looks at data or at blocks."""
_DECADES = {"he": math.log10(2) / 2, "xavier": 0.0, "lecun": 0.0, "centred_sigmoid": math.log10(16) / 2}
"""Decades a layer that the weights of each init add, log10 sigma_w."""

ALREADY = 0.06
"""Weights within this many decades a layer of the right scale are left as they are."""

_MENDS = ("weight_gain", "activation_slope")


def init_for(activation: str) -> str:
    """The init that keeps gradients steady for an activation: he, xavier, lecun or centred_sigmoid."""
    return _FOR.get(activation, "he" if activation in _HE else "xavier")


def reinit(case: Case, *, init: str = "", where: str = "") -> Prescription | None:
    """Draws the weights again at the scale that keeps the gradient the same size from layer to layer.

    `init`: "he", "xavier", "lecun", "orthogonal", "critical", "centred_sigmoid", "delta_orthogonal", "identity",
    "fixup" (residual nets), "lsuv" (unit variance on a batch), "jacobian" (unit gradient gain on a batch); "" takes the
    one for the net's activation. `where`: "head" draws the last layer only.

    What it does:
        A layer multiplies the gradient by sigma_w sqrt(E phi'^2). He (sigma_w^2 = 2) makes that 1 for ReLU and its
        kin, Xavier and LeCun (1) for tanh, the centred rule (16, with b = -1/2 sum_j W_ij) for sigmoid. PyTorch's
        default is 1/3: ReLU then loses 0.39 decades a layer, tanh 0.24, sigmoid 0.85. "critical" takes the exact point
        of each activation. LSUV divides each layer by its output's deviation; "jacobian" by the square root of its
        measured chi = |J^T v|^2 / |v|^2, ten times over. Fixup starts every residual branch at zero.

    In your code:
        from torch import nn

        # after `model = ...`, before training
        for m in model.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")  # tanh: nn.init.xavier_normal_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    What it costs:
        Nothing at run time. Trained weights are lost: it is for the start of a training.

    When it fails:
        Before a norm layer the scale cancels. Xavier does not save sigmoids (chi = 0.056). GELU and SiLU have no exact
        scale with zero biases: He loses 5.7 decades in 50 layers. At width 64 a depth of 30 is luck for any single
        seed (Hanin). Dropout with keep probability p needs sigma_w^2 = 2 p. LSUV mends the forward signal only, and
        neither it nor "jacobian" knows what to do with a layer that is used twice. Delta-orthogonal needs as many
        channels out as in. Identity on every layer leaves units alike where the input has few features. Fixup wants
        shortcuts, and its scalar biases are left to the layers' own.

    Source:
        Glorot and Bengio 2010; He et al. 2015; LeCun et al. 1998; Saxe et al. 2014; Mishkin and Matas 2016; Schoenholz
        et al. 2017; Xiao et al. 2018; Zhang et al. 2019; He, Doshi and Gromov 2022; centred rule: derived here.
    """
    if case.symptom == "saturated_output" or where == "head":
        return _head(case)
    if case.recurrent or (not init and _idle(case)):
        return None
    init = init or init_for(case.activation)
    if (init == "critical" and not _has_point(case.activation)) or (init == _CENTRED and not case.weak_activation):
        return None
    expected = case.back(*_mended(case), otherwise=_EXPECTED.get(case.symptom, "the gradient keeps its size"))
    return advise(reinit, expected=expected, code=code(case, init), at=case.lines("weight"), init=init)


def _has_point(activation: str) -> bool:
    """True when the activation has a critical point at all."""
    try:
        shelf("gradwell.theory.inits")["critical"](1, 1, activation=activation or "relu")
    except GradwellError:
        return False
    return True


def _idle(case: Case) -> bool:
    """True when a new draw would change no profile: before norms, or when the weights have the right scale already."""
    if case.symptom not in {"vanishing_gradient", "exploding_gradient"}:
        return False
    gain = case.decades("weight_gain")
    right = _DECADES[init_for(case.activation)]
    return case.normalised or (gain != 0 and abs(gain / max(case.layers, 1) - right) < ALREADY)


def _mended(case: Case) -> tuple[str, ...]:
    """Drawn at the right scale, weights make up for the slope too, unless the slope is what grows."""
    return _MENDS if (case.total or 0) < 0 else ("weight_gain",)


_EXPECTED = {
    "symmetric_units": "units start different and can learn different things",
    "saturated_units": "pre-activations come back to the steep part of the activation",
    "dead_units": "pre-activations are centred again, so half of them let the gradient through",
    "rank_collapse": "samples stay apart for more layers",
}


def code(case: Case, init: str) -> str:
    """The loop that draws every weight layer of the net's own kinds."""
    kinds = [f"nn.{kind}" for kind in case.weight_kinds if kind in _SUPPORTED] or ["nn.Linear"]
    classes = kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"
    numbers: dict[str, Any] = {"root": 6 if case.activation == "hard_sigmoid" else 4}
    if init == "critical":
        spread = shelf("gradwell.theory.inits")["critical"](1, 1, activation=case.activation or "relu")
        numbers |= {"w2": spread.sigma_w2, "b2": spread.sigma_b2}
    draw = _DRAW[init].format(**numbers)
    bias = "nn.init.zeros_(m.bias)" if numbers.get("b2") == 0 else _BIAS.get(init, "nn.init.zeros_(m.bias)")
    then = _THEN[init].format(classes=classes, blocks=case.block_names, head=case.head) if init in _THEN else ""
    if init in _BY_GROUP and case.grouped:
        draw = f"for group in m.weight.data.chunk(getattr(m, 'groups', 1)):\n            {_BY_GROUP[init]}"
    imports = "import torch\nfrom torch import nn" if "torch." in draw + then else "from torch import nn"
    return f"""{imports}

for m in model.modules():  # after `model = ...`, before training
    if isinstance(m, {classes}):
        {draw}
        if m.bias is not None:
            {bias.format(**numbers)}
{then}""".rstrip()


_SUPPORTED = {"Linear", "Conv1d", "Conv2d", "Conv3d"}


def _head(case: Case) -> Prescription:
    last = (
        f'model.get_submodule("{case.head}")'
        if case.head
        else "[m for m in model.modules() if isinstance(m, nn.Linear)][-1]"
    )
    text = f"""from torch import nn

head = {last}  # the last layer
nn.init.kaiming_normal_(head.weight, nonlinearity="linear")
if head.bias is not None:
    nn.init.zeros_(head.bias)"""
    expected = "outputs start near the middle, where the loss still has a slope"
    return advise(reinit, expected=expected, code=text, at=case.lines(), init="lecun", where="head")


GRID = (
    {"init": "he"},
    {"init": "xavier"},
    {"init": "lecun"},
    {"init": "orthogonal"},
    {"init": "critical"},
    {"init": "lsuv"},
    {"init": "jacobian"},
)


@acting
def apply(setup: TrainSetup, *, init: str = "", where: str = "") -> None:
    """Draw the linear and convolution layers again; refused for tied, frozen, parametrised or trained weights."""
    from gradwell.surgery.redraw import redraw

    redraw(setup, init, where=where, init_for=init_for)
