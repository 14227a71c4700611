"""A loss closer to the layers that get no gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradwell.measure.held import astray, unreached
from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats, middle
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_gradient", "", 6),
    Treats("unreached_parameter", "", 1),
    Treats("rank_collapse", "", 6),
)


def auxiliary_loss(case: Case, *, weight: float = 0.3, cut: str = "") -> Prescription | None:
    """Adds a small head and its loss in the middle of the net.

    `weight`: factor of the extra loss. `cut`: the module after which the head stands; "" takes the middle one.

    What it does:
        The lower half gets a gradient that has half as many layers to cross.

    In your code:
        import torch
        from torch import nn

        kept = {}
        cut = model.get_submodule("hidden.3")  # in the middle of your chain of layers
        cut.register_forward_hook(lambda m, args, out: kept.update(middle=out))
        with torch.no_grad():
            out = model(x)  # one batch of inputs, to see the sizes
        leaf = next(m for m in cut.modules() if not list(m.children()))  # a Sequential would run the head itself
        leaf.aux_head = nn.Linear(kept["middle"].shape[-1], out.shape[-1])  # before the optimizer is made

        # in the training step
        aux = leaf.aux_head(kept["middle"])
        (loss + 0.3 * loss_fn(lambda *args: aux, batch)).backward()  # the same loss, of the head's output
        optimizer.step()

    What it costs:
        A head a cut; it is thrown away after training.

    When it fails:
        It halves the decades, it does not remove them; the lower layers are pulled to what a shallow net would learn.

    Source:
        Szegedy et al. 2015 (weight 0.3 at a third and two thirds); Lee et al. 2015; Trinh et al. 2018 for sequences.
    """
    if case.symptom == "unreached_parameter":
        return None if astray(case.run, unreached(case.run)) else _unreached(case, weight)
    total = case.total
    if total is not None and -math.inf < total < 0:
        expected = f"the lower half has about {abs(total) / 2:.1f} decades to cross instead of {abs(total):.1f}"
    else:
        expected = "the lower half is half as far from a loss"
    cut = cut or case.middle
    if not cut and case.layers and not case.recurrent:  # fewer than three: there is no middle
        return None
    text = lines(auxiliary_loss).replace("0.3", f"{weight:g}").replace("hidden.3", cut or "hidden.3")
    if any(kind.startswith("Conv") for kind in case.weight_kinds):
        text = text.replace("kept.update(middle=out))", f"kept.update(middle={_POOLED}))")
    return advise(auxiliary_loss, expected=expected, code=text, weight=weight, **({"cut": cut} if cut else {}))


_POOLED = "out.flatten(2).mean(2) if out.dim() > 3 else out"
"""The mean over an image, (B, C, H, W) -> (B, C)."""


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


GRID = ({"weight": 0.3}, {"weight": 1.0})


@acting
def apply(setup: TrainSetup, *, weight: float = 0.3, cut: str = "") -> None:
    """A linear head behind the module in the middle, trained by the same loss; it is a child of the model."""
    from gradwell.surgery.auxiliary import add_auxiliary
    from gradwell.surgery.observe import observe

    calls = [(call.name, call.role) for call in observe(setup).calls if not call.function]
    add_auxiliary(setup, cut or middle(calls), weight)
