"""A normalisation behind each hidden weight layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise
from gradwell.theory.norms import batchnorm_rate

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_gradient", "", 4),
    Treats("exploding_gradient", "weight_gain", 3),
    Treats("exploding_gradient", "shortcut_growth", 2),
    Treats("rank_collapse", "", 3),
    Treats("saturated_units", "", 4),
    Treats("dead_units", "", 4),
    Treats("slow_loss", "", 4),
    Treats("loss_plateau", "", 4),
)

_GROUPS = "next(n for n in range(32, 0, -1) if layer.{units} % n == 0 and (layer.{units} > n or n == 1))"
_NORMS = {
    ("Linear", "batch"): "nn.BatchNorm1d(layer.out_features)",
    ("Linear", "layer"): "nn.LayerNorm(layer.out_features)",
    ("Linear", "rms"): "nn.RMSNorm(layer.out_features)",
    ("Linear", "group"): f"nn.GroupNorm({_GROUPS.format(units='out_features')}, layer.out_features)",
}
for _axes in (1, 2, 3):
    _NORMS |= {
        (f"Conv{_axes}d", "batch"): f"nn.BatchNorm{_axes}d(layer.out_channels)",
        (f"Conv{_axes}d", "layer"): "nn.GroupNorm(1, layer.out_channels)",
        (f"Conv{_axes}d", "group"): f"nn.GroupNorm({_GROUPS.format(units='out_channels')}, layer.out_channels)",
    }


def add_norm(case: Case, *, norm: str = "") -> Prescription | None:
    """Puts a normalisation behind each weight layer but the last, so that the scale of the weights no longer matters.

    `norm`: "batch", "layer", "rms" (linear layers) or "group"; "" takes batch for sigmoids and convolutions, layer
    otherwise and for tokens.

    What it does:
        Divides the pre-activations by their own standard deviation, which divides the gradient by the same number:
        weights that are too small or too large cancel. With layer norm a ReLU layer has gain exactly 1. It stands
        between the weights and the activation, never behind the last layer and never inside a recurrent one; batch
        norm wants the units on the second axis, layer and RMS norm on the last.

    In your code:
        from torch import nn

        # after `model = ...`, before the optimizer: the norms have parameters of their own
        for layer in [m for m in model.modules() if type(m) is nn.Linear][:-1]:
            layer.norm = nn.LayerNorm(layer.out_features)
            layer.register_forward_hook(lambda layer, args, out: layer.norm(out))  # `fc.weight` keeps its name

    What it costs:
        One pass over the activations a layer; two parameters a unit. Batch norm couples the samples of a batch and
        differs between training and evaluation.

    When it fails:
        Layer norm does not cure sigmoids (gain^2 0.153 a layer: their mean stays); batch norm does. Batch norm without
        shortcuts makes gradients grow (ReLU 1.467 in gain^2 a layer, 4 decades in 50 layers), more so for small
        batches, and fails below 4 samples.

    Source:
        Ioffe and Szegedy 2015; Ba, Kiros and Hinton 2016; Yang et al. 2019 for the growth.
    """
    norm = norm or _choice(case)
    kinds = [kind for kind in case.weight_kinds if (kind, norm) in _NORMS]
    useless = case.normalised and not (case.weak_activation and not case.batch_normalised)
    if not kinds or useless or case.recurrent:
        return None
    expected = case.back(*_MENDS, otherwise="pre-activations keep unit size in every layer") + _growth(case, norm)
    return advise(add_norm, expected=expected, code=code(kinds, norm, case.head), at=case.lines("weight"), norm=norm)


_MENDS = ("weight_gain", "activation_slope")


def _choice(case: Case) -> str:
    convolution = bool(case.weight_kinds) and case.weight_kinds[0].startswith("Conv")
    return "batch" if (case.weak_activation or convolution) and not case.tokens else "layer"


def _growth(case: Case, norm: str) -> str:
    if norm != "batch" or not case.activation:
        return ""
    grown = 0.5 * math.log10(batchnorm_rate(case.activation)) * case.layers
    return f"; batch norm itself makes the gradient grow by about {grown:.1f} decades over these layers"


def code(kinds: list[str], norm: str, head: str) -> str:
    """The loop that puts the norm behind each weight layer but the last, by its name: it may be built first."""
    classes = f"nn.{kinds[0]}" if len(kinds) == 1 else f"({', '.join(f'nn.{kind}' for kind in kinds)})"
    text = f"""from torch import nn

# before the optimizer is made: the norms have parameters of their own; a hook leaves `fc.weight` its name
for layer in [m for name, m in model.named_modules() if isinstance(m, {classes}) and name != "{head}"]:
"""
    for number, kind in enumerate(kinds):
        made = _NORMS[kind, norm]
        if len(kinds) == 1:
            text += f"    layer.norm = {made}\n"
        else:
            text += f"    {'el' * bool(number)}if isinstance(layer, nn.{kind}):\n        layer.norm = {made}\n"
    return f"{text}    layer.register_forward_hook(lambda layer, args, out: layer.norm(out))"


GRID = ({"norm": "batch"}, {"norm": "layer"}, {"norm": "rms"}, {"norm": "group"})


@acting
def apply(setup: TrainSetup, *, norm: str = "layer") -> None:
    """Put a norm behind each hidden linear or convolution layer, by a hook; refused where none may stand."""
    from gradwell.surgery.blocks import add_norms

    add_norms(setup, norm)
