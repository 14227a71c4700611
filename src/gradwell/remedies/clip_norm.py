"""A ceiling for the length of the whole gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("exploding_gradient", "", 2),
    Treats("exploding_through_time", "", 1),
    Treats("nonfinite_value", "", 2),
    Treats("loss_spike", "", 1),
    Treats("oversized_update", "", 2),
    Treats("diverging_loss", "", 3),
    Treats("oscillating_loss", "", 3),
)

_STOPGAP = {"exploding_gradient"}


def clip_norm(case: Case, *, max_norm: float | None = None) -> Prescription | None:
    """Scales the gradient down when its norm is above a bound; its direction stays.

    `max_norm`: the bound; None takes twice the usual norm of this run for spikes, 1.0 otherwise.

    What it does:
        g <- g * min(1, max_norm / |g|), one number for all parameters together, between `backward()` and `step()`.

    In your code:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()

    What it costs:
        One pass over the gradients.

    When it fails:
        It never helps a gradient that vanishes. It treats the step, not the net: the layers keep their unequal gains,
        and the lowest layers take the whole budget. With float16 unscale first (`scaler.unscale_(optimizer)`). A
        gradient that is already NaN stays NaN. Under Adam a constant factor changes nothing.

    Source:
        Pascanu, Mikolov and Bengio 2013.
    """
    if case.symptom.startswith("vanishing"):
        return None
    bound = max_norm or _bound(case)
    text = f"""import torch

loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={bound:g})  # between backward() and step()
optimizer.step()"""
    stopgap = "a stopgap: no step is longer than the bound, but the layers keep their unequal gains"
    expected = stopgap if case.symptom in _STOPGAP else "no single step can throw the weights away"
    return advise(clip_norm, expected=expected, code=text, max_norm=bound)


def _bound(case: Case) -> float:
    usual = case.usual_grad_norm
    return float(f"{2 * usual:.1g}") if case.symptom == "loss_spike" and usual else 1.0


GRID = ({"max_norm": 0.1}, {"max_norm": 1.0})


@acting
def apply(setup: TrainSetup, *, max_norm: float = 1.0) -> None:
    """Clip the norm of all gradients together; a tighter bound that the setup has already stays."""
    setup.clip_norm = max_norm if setup.clip_norm is None else min(max_norm, setup.clip_norm)
