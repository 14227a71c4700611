"""Steps of one size in every element, whatever the gradient's size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("undersized_update", "", 3),
    Treats("vanishing_gradient", "", 8),
)


def sign_update(case: Case, *, rule: str = "sign", lr: float = 1e-3) -> Prescription | None:
    """Moves each weight by the learning rate in the direction of its gradient's sign.

    `rule`: "sign" (signSGD) or "rprop", which adapts the step of each weight; `lr`: the (first) step of each weight,
    in units of the weight.

    What it does:
        w <- w - lr * sign(g): a layer whose gradient is a billion times smaller moves as far as the others. Rprop makes
        the step of a weight 1.2 times longer while its sign stays, half as long when it turns, within 1e-6 and 50.

    In your code:
        import torch

        loss.backward()
        with torch.no_grad():  # instead of optimizer.step()
            for p in model.parameters():
                if p.grad is not None:
                    p -= 1e-3 * p.grad.sign()

    What it costs:
        Nothing; large batches are needed, because noise is amplified as well.

    When it fails:
        The profile stays: saturated units give sign noise, not signal, and an exact zero has no sign. Near the minimum
        it jumps about unless the rate decays. Below float32's smallest number nothing is left. Rprop wants the whole
        data in each batch: with small ones signs turn by chance and every step shrinks.

    Source:
        Riedmiller and Braun 1993 (Rprop); Bernstein et al. 2018 (signSGD); Chen et al. 2023 (Lion).
    """
    if case.adaptive and case.symptom == "vanishing_gradient":
        return None
    text = lines(sign_update).replace("1e-3", f"{lr:g}") if rule == "sign" else _RPROP.format(lr=lr)
    expected = "all layers move by the same step; the depth profile itself stays"
    return advise(sign_update, expected=expected, code=text, rule=rule, lr=lr)


_RPROP = """import torch

optimizer = torch.optim.Rprop(model.parameters(), lr={lr:g})

# in the training step
loss.backward()
optimizer.step()"""

GRID = ({"rule": "sign", "lr": 1e-3}, {"rule": "sign", "lr": 1e-4}, {"rule": "rprop", "lr": 1e-3})


@acting
def apply(setup: TrainSetup, *, rule: str = "sign", lr: float = 1e-3) -> None:
    """Step by the sign alone."""
    from functools import partial

    from gradwell.surgery.optimizers import SignSGD, known

    setup.make_optimizer = partial(SignSGD if rule == "sign" else known("Rprop"), lr=lr)
