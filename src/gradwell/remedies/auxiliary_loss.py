"""A loss closer to the layers that get no gradient."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

TREATS = (
    Treats("vanishing_gradient", "", 6),
    Treats("vanishing_through_time", "", 4),
    Treats("unreached_parameter", "", 1),
    Treats("rank_collapse", "", 6),
)


def auxiliary_loss(case: Case, *, weight: float = 0.3) -> Prescription | None:
    """Adds a small head and its loss in the middle of the net.

    `weight`: factor of the extra loss.

    What it does:
        The lower half gets a gradient that has half as many layers to cross.

    In your code:
        from torch import nn

        half = len(model.hidden) // 2  # the middle of your chain of layers
        aux_head = nn.LazyLinear(classes)  # its parameters belong to the optimizer too

        # in the training step
        middle = model.hidden[:half](x)
        loss = loss_fn(model(x), y) + 0.3 * loss_fn(aux_head(middle), y)

    What it costs:
        A head a cut; it is thrown away after training.

    When it fails:
        It halves the decades, it does not remove them; the lower layers are pulled to what a shallow net would learn.

    Source:
        Szegedy et al. 2015 (weight 0.3 at a third and two thirds); Lee et al. 2015; Trinh et al. 2018 for sequences.
    """
    if case.symptom == "unreached_parameter":
        return _unreached(case, weight)
    total = case.total
    if total is not None and total < 0:
        expected = f"the lower half has about {abs(total) / 2:.1f} decades to cross instead of {abs(total):.1f}"
    else:
        expected = "the lower half is half as far from a loss"
    text = lines(auxiliary_loss).replace("0.3", f"{weight:g}")
    return advise(auxiliary_loss, expected=expected, code=text, weight=weight)


def _unreached(case: Case, weight: float) -> Prescription:
    text = f"""# 1. between here and the loss, look for .detach(), .item(), .data, no_grad(), a branch never called
# 2. a head that is meant to learn needs its loss in the sum:
loss = loss + {weight:g} * aux_loss
# 3. a part that is not meant to learn: say so
for name, p in model.named_parameters():
    if p.grad is None:
        print("no gradient:", name)  # then p.requires_grad_(False)"""
    expected = "the parameter is reached by a loss, or is frozen on purpose"
    return advise(auxiliary_loss, expected=expected, code=text, at=case.lines(), weight=weight)
