"""A ceiling for each element of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("exploding_gradient", "", 7),
    Treats("exploding_through_time", "", 4),
    Treats("loss_spike", "", 4),
    Treats("nonfinite_value", "", 6),
)


def clip_value(case: Case, *, value: float = 1.0) -> Prescription | None:
    """Cuts every element of the gradient to an interval; the direction changes.

    `value`: the largest size of an element.

    What it does:
        g_i <- clamp(g_i, -value, value), between `backward()` and `step()`.

    In your code:
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), clip_value=1.0)
        optimizer.step()

    What it costs:
        One pass over the gradients.

    When it fails:
        It bends the direction, most where few elements are large; `clip_norm` does not. It never helps a gradient that
        vanishes. The right value depends on the loss's scale and the batch.

    Source:
        Mikolov 2012; compared with the norm in Pascanu et al. 2013.
    """
    if case.symptom.startswith("vanishing"):
        return None
    text = f"""import torch

loss.backward()
torch.nn.utils.clip_grad_value_(model.parameters(), clip_value={value:g})
optimizer.step()"""
    return advise(clip_value, expected="no element of a step is longer than the bound", code=text, value=value)


GRID = ({"value": 0.01}, {"value": 1.0})


@acting
def apply(setup: TrainSetup, *, value: float = 1.0) -> None:
    """Clamp every element of the gradient."""
    setup.clip_value = value
