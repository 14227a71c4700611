"""Draw the weights again, at the scale that the activation needs."""

from __future__ import annotations

import math

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

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
_FOR = {"sigmoid": "centred_sigmoid", "hard_sigmoid": "centred_sigmoid", "selu": "lecun", "identity": "lecun"}

_DRAW = {
    "he": 'nn.init.kaiming_normal_(m.weight, nonlinearity="relu")',
    "xavier": "nn.init.xavier_normal_(m.weight)",
    "lecun": 'nn.init.kaiming_normal_(m.weight, nonlinearity="linear")',
    "centred_sigmoid": "nn.init.normal_(m.weight, std={root} / m.weight[0].numel() ** 0.5)",
}
_BIAS = {
    "centred_sigmoid": "m.bias.data = -0.5 * m.weight.data.flatten(1).sum(1)  # the layer sees sigmoid - 1/2",
}
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

    `init`: "he", "xavier", "lecun", "centred_sigmoid"; "" takes the one for the net's activation. `where`: "head"
    draws the last layer only.

    What it does:
        A layer multiplies the gradient by sigma_w sqrt(E phi'^2). He (sigma_w^2 = 2) makes that 1 for ReLU and its
        kin, Xavier and LeCun (1) for tanh, the centred rule (16, with b = -1/2 sum_j W_ij) for sigmoid. PyTorch's
        default is 1/3: ReLU then loses 0.39 decades a layer, tanh 0.24, sigmoid 0.85.

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
        seed (Hanin). Dropout with keep probability p needs sigma_w^2 = 2 p.

    Source:
        Glorot and Bengio 2010; He et al. 2015; LeCun et al. 1998; Schoenholz et al. 2017; centred rule: theory 1.2.
    """
    if case.symptom == "saturated_output" or where == "head":
        return _head(case)
    if case.recurrent or (not init and _idle(case)):
        return None
    init = init or init_for(case.activation)
    expected = case.back(*_mended(case), otherwise=_EXPECTED.get(case.symptom, "the gradient keeps its size"))
    return advise(reinit, expected=expected, code=code(case, init), at=case.lines("weight"), init=init)


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
    draw = _DRAW[init].format(root=6 if case.activation == "hard_sigmoid" else 4)
    return f"""from torch import nn

for m in model.modules():  # after `model = ...`, before training
    if isinstance(m, {classes}):
        {draw}
        if m.bias is not None:
            {_BIAS.get(init, "nn.init.zeros_(m.bias)")}"""


_SUPPORTED = {"Linear", "Conv1d", "Conv2d", "Conv3d"}


def _head(case: Case) -> Prescription:
    text = """from torch import nn

head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]  # the last layer
nn.init.kaiming_normal_(head.weight, nonlinearity="linear")
if head.bias is not None:
    nn.init.zeros_(head.bias)"""
    expected = "outputs start near the middle, where the loss still has a slope"
    return advise(reinit, expected=expected, code=text, at=case.lines(), init="lecun", where="head")
