"""Another learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("oversized_update", "", 1),
    Treats("oscillating_loss", "", 1),
    Treats("diverging_loss", "", 2),
    Treats("nonfinite_value", "learning_rate", 1),
    Treats("nonfinite_value", "", 1),
    Treats("exploding_gradient", "learning_rate", 4),
    Treats("loss_spike", "learning_rate", 1),
    Treats("dead_units", "", 2),
    Treats("saturated_units", "learning_rate", 2),
    Treats("undersized_update", "", 2),
    Treats("slow_loss", "", 1),
    Treats("loss_plateau", "", 1),
)

_TOO_SMALL = {"undersized_update", "slow_loss", "loss_plateau"}
_GRID = (0.01, 0.03, 0.1, 0.3, 3.0, 10.0, 30.0, 100.0)


def scale_lr(case: Case, *, factor: float | None = None) -> Prescription | None:
    """Multiplies the learning rate.

    `factor`: None takes what the measured update ratio asks for, rounded to 1, 3, 10; else 0.1 where steps are too
    long and 3 where they are too short.

    What it does:
        The update is lr times the gradient (SGD) or about lr (Adam). Updates of about a thousandth of the weights each
        step are usual; a tenth throws units into their flat parts.

    In your code:
        for group in optimizer.param_groups:
            group["lr"] *= 0.1

        # the same where the optimizer is made: lr=0.005 instead of lr=0.05

    What it costs:
        A smaller rate needs more steps.

    When it fails:
        It scales all layers alike, so it cannot mend a profile: with a vanishing gradient the rate that moves the first
        layer throws the last one away.

    Source:
        Goodfellow, Bengio and Courville 2016, chapter 8; the update ratio of 1e-3 is Karpathy's rule of thumb.
    """
    factor = factor if factor is not None else _factor(case)
    value = f'group["lr"] *= {factor:g}'
    if case.lr and case.groups < 2:  # groups have rates of their own
        value = f'group["lr"] = {case.lr * factor:.3g}  # was {case.lr:g}'
    text = f"for group in optimizer.param_groups:\n    {value}"
    change = "shorter" if factor < 1 else "longer"
    return advise(scale_lr, expected=f"steps {max(factor, 1 / factor):.3g} times {change}", code=text, factor=factor)


def _factor(case: Case) -> float:
    small = case.symptom in _TOO_SMALL and not (case.symptom == "loss_plateau" and case.has("learning_rate"))
    excess = case.excess() if case.symptom in {"oversized_update", "undersized_update", "slow_loss"} else None
    if not excess or excess <= 0:
        return 3.0 if small else 0.1
    wanted = 1 / excess
    return min((f for f in _GRID if (f > 1) is small), key=lambda f: max(f / wanted, wanted / f))


GRID = ({"factor": 0.1}, {"factor": 3.0})


@acting
def apply(setup: TrainSetup, *, factor: float) -> None:
    """Multiply every learning rate."""
    setup.lr_scale *= factor
