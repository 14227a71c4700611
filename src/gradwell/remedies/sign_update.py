"""Steps of one size in every element, whatever the gradient's size."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

TREATS = (
    Treats("undersized_update", "", 3),
    Treats("vanishing_gradient", "", 8),
)


def sign_update(case: Case, *, lr: float = 1e-3) -> Prescription | None:
    """Moves each weight by the learning rate in the direction of its gradient's sign.

    `lr`: the step of each weight, in units of the weight.

    What it does:
        w <- w - lr * sign(g): a layer whose gradient is a billion times smaller moves as far as the others.

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
        it jumps about unless the rate decays. Below float32's smallest number nothing is left.

    Source:
        Riedmiller and Braun 1993 (Rprop); Bernstein et al. 2018 (signSGD); Chen et al. 2023 (Lion).
    """
    if case.adaptive and case.symptom == "vanishing_gradient":
        return None
    text = lines(sign_update).replace("1e-3", f"{lr:g}")
    expected = "all layers move by the same step; the depth profile itself stays"
    return advise(sign_update, expected=expected, code=text, lr=lr)
