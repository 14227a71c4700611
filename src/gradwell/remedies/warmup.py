"""A learning rate that starts small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("loss_spike", "", 3),
    Treats("oversized_update", "", 4),
    Treats("diverging_loss", "", 4),
    Treats("oscillating_loss", "", 5),
)


def warmup(case: Case, *, steps: int | None = None) -> Prescription | None:
    """Raises the learning rate from near zero to its value over the first steps.

    `steps`: None takes 2000 for Adam and its kin, twice the memory 1 / (1 - beta2) of their second moment, else 500.

    What it does:
        Adam's first steps divide by a size estimated from few gradients, and deep nets are at their most curved at the
        start; small steps let both settle.

    In your code:
        import torch

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 2000))

        # after each optimizer.step(): scheduler.step()

    What it costs:
        The warm-up steps are slow ones.

    When it fails:
        It only delays an unstable rate. It does not change gradients that vanish or explode over depth.

    Source:
        Goyal et al. 2017; Ma and Yarats 2021 for the length; Xiong et al. 2020 for post-norm transformers.
    """
    steps = steps or (2000 if case.adaptive else 500)
    text = f"""import torch

scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / {steps}))
# after each optimizer.step(): scheduler.step()"""
    return advise(warmup, expected="the first steps are small enough for the curved start", code=text, steps=steps)


GRID = ({"steps": 10}, {"steps": 100})


@acting
def apply(setup: TrainSetup, *, steps: int = 500) -> None:
    """Raise the rate linearly over the first steps."""
    setup.warmup_steps = steps
