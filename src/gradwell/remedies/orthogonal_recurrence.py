"""Recurrent weights that turn the state but do not stretch it."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

TREATS = (
    Treats("vanishing_through_time", "", 2),
    Treats("exploding_through_time", "", 2),
    Treats("symmetric_units", "", 2),
)


def orthogonal_recurrence(case: Case, *, gain: float = 1.0) -> Prescription | None:
    """Starts the hidden-to-hidden weights as orthogonal matrices, whose powers neither shrink nor grow.

    `gain`: factor on them.

    What it does:
        Through T steps the gradient is multiplied by the T-th power of W_hh (times the activation's slopes). All
        singular values of an orthogonal matrix are 1, and so are those of its powers; 0.9^50 = 0.005, 1.1^50 = 117.

    In your code:
        from torch import nn

        # after `model = ...`, before training
        for m in model.modules():
            if isinstance(m, (nn.RNNBase, nn.RNNCellBase)):
                for name, weight in m.named_parameters():
                    if "weight_hh" in name:
                        for gate in weight.data.split(m.hidden_size):  # each gate is a matrix of its own
                            nn.init.orthogonal_(gate)

    What it costs:
        Nothing at run time. To keep it so: `torch.nn.utils.parametrizations.orthogonal(cell, "weight_hh")`, one matrix
        exponential a step.

    When it fails:
        The slopes of tanh still shrink what large states carry. It drifts in training unless parametrised. Under ReLU
        states can grow.

    Source:
        Saxe et al. 2014; Arjovsky et al. 2016; Lezcano-Casado and Martinez-Rubio 2019 (expRNN).
    """
    if case.symptom == "symmetric_units" and not case.recurrent:
        return None
    text = f"""from torch import nn

for m in model.modules():  # after `model = ...`, before training
    if isinstance(m, (nn.RNNBase, nn.RNNCellBase)):
        for name, weight in m.named_parameters():
            if "weight_hh" in name:
                for gate in weight.data.split(m.hidden_size):  # each gate is a matrix of its own
                    nn.init.orthogonal_(gate, gain={gain:g})"""
    expected = "the recurrent weights neither shrink nor stretch; what remains is the slope of the activation"
    places = [site.source for site in case.run.sites if site.kind == case.recurrent and site.source]
    return advise(orthogonal_recurrence, expected=expected, code=text, at=places, gain=gain)
