"""x + F(x) / sqrt(L): branches small enough that L of them add up to order one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("exploding_gradient", "shortcut_growth", 1),
    Treats("exploding_gradient", "between_modules", 1),
    Treats("diverging_loss", "shortcut_growth", 1),
    Treats("nonfinite_value", "shortcut_growth", 1),
)


def scale_residual(case: Case, *, scale: float | None = None, learned: bool = False) -> Prescription | None:
    """Multiplies each residual branch by 1/sqrt(L), L the number of blocks, so that their sum keeps its size.

    `scale`: the factor; None takes 1/sqrt(L). `learned`: it is a parameter of each branch (ReZero, SkipInit: from 0).

    What it does:
        L plain ReLU branches of full size multiply the squared gradient norm by 2 each, 2^L in all; scaled by 1/sqrt(L)
        they multiply it by (1 + 1/L)^L, less than e.

    In your code:
        # in the block's forward(): return x + scale * self.branch(x); or from outside, by the branch's last module:
        branches = [block.branch for block in model.blocks]
        for branch in branches:
            branch.register_forward_hook(lambda m, args, out: len(branches) ** -0.5 * out)

    What it costs:
        Nothing.

    When it fails:
        Before a norm inside the branch the factor cancels. It slows the first steps of the branches; with norm layers
        inside the branch and on the trunk (post-norm) it is not needed. A trained net must be trained again.

    Source:
        De and Smith 2020 (SkipInit); Bachlechner et al. 2020 (ReZero); Hayou et al. 2021 (stable ResNet).
    """
    if not case.shortcut and not case.has("between_modules"):
        return None
    blocks = max(case.blocks, 1)
    factor = scale if scale is not None else blocks**-0.5
    expected = case.back("between_modules", otherwise="the sum of all branches stays of order one")
    text = code(case.branch_ends, factor, blocks, learned=learned)
    settings = {"learned": True} if learned else {}
    return advise(scale_residual, expected=expected, code=text, at=case.lines(), scale=round(factor, 4), **settings)


def code(ends: list[str], factor: float, blocks: int, *, learned: bool) -> str:
    """Hooks on the last layers of the branches, where their names are known; else the line for the forward."""
    if not ends:
        return f"""scale = {factor:.3g}  # 1 / sqrt({blocks}), {blocks} blocks
# in the block's forward(): return x + scale * self.branch(x)"""
    names = ",\n    ".join(f'"{name}"' for name in ends)
    start = f"\n    m.branch_scale = nn.Parameter(torch.tensor({round(factor, 4)}))" if learned else ""
    times = "m.branch_scale" if learned else "scale"
    head = "import torch\nfrom torch import nn\n" if learned else f"scale = {factor:.4g}"
    return f"""{head}

# the last layer of each branch; the same in the block's forward(): return x + scale * self.branch(x)
def scaled(m, args, out):
    return ({times} * out[0], *out[1:]) if isinstance(out, tuple) else {times} * out


ends = [
    {names},
]
for m in [model.get_submodule(name) for name in ends]:{start}
    m.register_forward_hook(scaled)"""


GRID = ({"scale": None}, {"scale": 0.5}, {"scale": 0.0, "learned": True})


@acting
def apply(setup: TrainSetup, *, scale: float | None = None, learned: bool = False) -> None:
    """Scale each branch at its last module; refused for a net without shortcuts."""
    from gradwell.surgery.blocks import scale_branches

    scale_branches(setup, scale, learned=learned)
