"""x + F(x) / sqrt(L): branches small enough that L of them add up to order one."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

TREATS = (
    Treats("exploding_gradient", "shortcut_growth", 1),
    Treats("exploding_gradient", "between_modules", 1),
    Treats("diverging_loss", "shortcut_growth", 1),
    Treats("nonfinite_value", "shortcut_growth", 1),
)


def scale_residual(case: Case, *, scale: float | None = None) -> Prescription | None:
    """Multiplies each residual branch by 1/sqrt(L), L the number of blocks, so that their sum keeps its size.

    `scale`: the factor; None takes 1/sqrt(L).

    What it does:
        L plain ReLU branches of full size multiply the squared gradient norm by 2 each, 2^L in all; scaled by 1/sqrt(L)
        they multiply it by (1 + 1/L)^L, less than e.

    In your code:
        branches = 16  # residual blocks in your model
        scale = branches**-0.5

        # in the block's forward(): return x + scale * self.branch(x)

    What it costs:
        Nothing.

    When it fails:
        It slows the first steps of the branches; with norm layers inside the branch and on the trunk (post-norm) it is
        not needed. A trained net must be trained again.

    Source:
        De and Smith 2020; Hayou et al. 2021 (stable ResNet).
    """
    if not case.shortcut and not case.has("between_modules"):
        return None
    blocks = max(case.blocks, 1)
    factor = scale if scale is not None else blocks**-0.5
    text = f"""scale = {factor:.3g}  # 1 / sqrt({blocks}), {blocks} blocks
# in the block's forward(): return x + scale * self.branch(x)"""
    expected = case.back("between_modules", otherwise="the sum of all branches stays of order one")
    return advise(scale_residual, expected=expected, code=text, at=case.lines(), scale=round(factor, 4))
