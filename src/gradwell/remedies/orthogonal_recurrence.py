"""Recurrent weights that turn the state but do not stretch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_through_time", "", 2),
    Treats("exploding_through_time", "", 2),
    Treats("symmetric_units", "", 2),
)


def orthogonal_recurrence(case: Case, *, start: str = "orthogonal", gain: float = 1.0) -> Prescription | None:
    """Starts the hidden-to-hidden weights as orthogonal matrices, whose powers neither shrink nor grow.

    `start`: "orthogonal", or "identity" with ReLU (IRNN, plain RNNs only); `gain`: factor on orthogonal ones.

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
        states can grow: an identity start wants clipping and a small rate.

    Source:
        Saxe et al. 2014; Le et al. 2015 (IRNN); Arjovsky et al. 2016; Lezcano-Casado and Martinez-Rubio 2019 (expRNN).
    """
    if case.symptom == "symmetric_units" and not case.recurrent:
        return None
    if start == "identity" and case.recurrent not in {"RNN", "RNNCell", ""}:
        return None
    text = (
        _IDENTITY
        if start == "identity"
        else f"""from torch import nn

for m in model.modules():  # after `model = ...`, before training
    if isinstance(m, (nn.RNNBase, nn.RNNCellBase)):
        for name, weight in m.named_parameters():
            if "weight_hh" in name:
                for gate in weight.data.split(m.hidden_size):  # each gate is a matrix of its own
                    nn.init.orthogonal_(gate, gain={gain:g})"""
    )
    expected = "the recurrent weights neither shrink nor stretch; what remains is the slope of the activation"
    settings = {"start": start} if start == "identity" else {"gain": gain}
    places = [site.source for site in case.run.sites if site.kind == case.recurrent and site.source]
    return advise(orthogonal_recurrence, expected=expected, code=text, at=places, **settings)


_IDENTITY = """from torch import nn

for m in model.modules():  # after `model = ...`, before training; in short: nn.RNN(..., nonlinearity="relu")
    if isinstance(m, (nn.RNN, nn.RNNCell)):
        m.nonlinearity = "relu"
        if isinstance(m, nn.RNN):
            m.mode = "RNN_RELU"
        for name, p in m.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.eye_(p)
            elif name.startswith("weight_ih"):
                nn.init.normal_(p, std=0.001)
            else:
                nn.init.zeros_(p)"""

GRID = ({"start": "orthogonal", "gain": 1.0}, {"start": "identity"})


@acting
def apply(setup: TrainSetup, *, start: str = "orthogonal", gain: float = 1.0) -> None:
    """Draw the hidden-to-hidden weights as orthogonal matrices, or start a plain RNN as the identity."""
    from gradwell.surgery import recurrent

    if start == "identity":
        recurrent.identity(setup)
    else:
        recurrent.orthogonal(setup, gain)
