"""A pull of the weights towards zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("exploding_gradient", "weight_gain", 5),
    Treats("exploding_through_time", "", 6),
    Treats("saturated_units", "weight_gain", 5),
    Treats("saturated_output", "", 4),
)


def weight_decay(case: Case, *, decay: float = 0.01) -> Prescription | None:
    """Shrinks the weights a little at every step, so that their gain cannot grow without end.

    `decay`: part of the weight taken off each step, times the learning rate.

    What it does:
        w <- w - lr * decay * w: gains that grew during training come back.

    In your code:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01

        # decoupled from the gradient's scale: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

    What it costs:
        Nothing.

    When it fails:
        Weights too large at the start take 1 / (lr * decay) steps to shrink: draw again instead (reinit). It drives a
        plain net into the vanishing phase in the long run. Inside Adam (not AdamW) it is rescaled away.

    Source:
        Krogh and Hertz 1992; Pascanu et al. 2013 (L1 or L2 on the recurrent weights); Loshchilov and Hutter 2019.
    """
    if case.symptom.startswith("exploding") and (case.total or 1) < 0:
        return None
    expected = "weights stop growing; those that are too large already shrink slowly"
    text = f'for group in optimizer.param_groups:\n    group["weight_decay"] = {decay:g}'
    return advise(weight_decay, expected=expected, code=text, decay=decay)


GRID = ({"decay": 1e-4}, {"decay": 0.01})


@acting
def apply(setup: TrainSetup, *, decay: float = 0.01) -> None:
    """Set the weight decay of every group; refused where the optimizer has none."""
    from gradwell.errors import Refused

    optimizer = setup.optimizer()
    if "weight_decay" not in optimizer.defaults:
        raise Refused(f"{type(optimizer).__name__} has no weight decay; switch to AdamW or SGD.")
    setup.weight_decay = decay
