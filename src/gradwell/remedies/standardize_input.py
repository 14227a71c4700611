"""Inputs with mean 0 and standard deviation 1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("saturated_units", "input_scale", 1),
    Treats("saturated_units", "", 2),
    Treats("saturated_output", "input_scale", 1),
    Treats("dead_units", "input_scale", 1),
    Treats("exploding_gradient", "input_scale", 2),
    Treats("vanishing_gradient", "input_scale", 1),
    Treats("nonfinite_value", "input_scale", 1),
    Treats("nonfinite_value", "", 5),
    Treats("diverging_loss", "input_scale", 1),
    Treats("oversized_update", "input_scale", 1),
    Treats("oscillating_loss", "input_scale", 2),
    Treats("slow_loss", "input_scale", 1),
    Treats("loss_plateau", "input_scale", 1),
)


def standardize_input(case: Case, *, per: str = "feature") -> Prescription | None:
    """Shifts and scales each input feature to mean 0 and standard deviation 1, with numbers from the training set.

    `per`: "feature" divides each by its own deviation, "all" by one for all.

    What it does:
        The first layer's pre-activations get the size that its init is made for, and its weight gradients, which are
        delta times the input, the size of the others.

    In your code:
        # x_train: the inputs of the training set, (samples, features)
        mean = x_train.mean(0)
        std = x_train.std(0)
        model.register_buffer("input_mean", mean)
        model.register_buffer("input_std", std.clamp_min(1e-6))  # constant features stay 0
        model.register_forward_pre_hook(lambda m, args: ((args[0] - m.input_mean) / m.input_std, *args[1:]))

    What it costs:
        Nothing; the two numbers a feature belong to the model and are needed wherever it runs.

    When it fails:
        Rare features (a pixel that is lit once) get huge values: divide by one std for all features there. Embedded or
        one-hot inputs need no scaling. Statistics of the test set must not be used.

    Source:
        LeCun, Bottou, Orr and Mueller 1998 (Efficient BackProp).
    """
    if any("Embedding" in site.kind for site in case.run.sites):
        return None
    expected = "the first layer works at the size its init is made for"
    text = lines(standardize_input)
    if image := next((kind for kind in case.weight_kinds if kind in _IMAGES), ""):
        axes = f"{_IMAGES[image][0]}, keepdim=True)[0]"  # a channel each
        text = text.replace("(samples, features)", f"(samples, channels, {_IMAGES[image][1]})")
        text = text.replace("mean(0)", f"mean({axes}").replace("std(0)", f"std({axes}")
    if per == "all":
        text = re.sub("^std = .*$", "std = (x_train - mean).std()", text, flags=re.MULTILINE)
    settings = {} if per == "feature" else {"per": per}
    return advise(standardize_input, expected=expected, code=text, at=case.lines(), **settings)


_IMAGES = {
    "Conv1d": ("(0, 2)", "length"),
    "Conv2d": ("(0, 2, 3)", "height, width"),
    "Conv3d": ("(0, 2, 3, 4)", "depth, height, width"),
}
"""Axes of one channel, and their names."""

GRID = ({"per": "feature"}, {"per": "all"})


@acting
def apply(setup: TrainSetup, *, per: str = "feature") -> None:
    """Standardise the model's first input with numbers from the first batches; they join its buffers."""
    from gradwell.surgery.blocks import standardize

    standardize(setup, per)
