"""Inputs with mean 0 and standard deviation 1."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

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


def standardize_input(case: Case) -> Prescription | None:
    """Shifts and scales each input feature to mean 0 and standard deviation 1, with numbers from the training set.

    What it does:
        The first layer's pre-activations get the size that its init is made for, and its weight gradients, which are
        delta times the input, the size of the others.

    In your code:
        mean = x_train.mean(dim=0)
        std = x_train.std(dim=0).clamp_min(1e-6)  # constant features stay 0

        # for every batch, of the training and of the test set alike
        x = (x - mean) / std

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
    return advise(standardize_input, expected=expected, at=case.lines())
