"""x + F(x) instead of F(x): a path with gain 1 beside every layer."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

TREATS = (
    Treats("vanishing_gradient", "depth_without_shortcut", 5),
    Treats("vanishing_gradient", "activation_slope", 5),
    Treats("exploding_gradient", "normalization_gain", 1),
    Treats("exploding_gradient", "", 1),
    Treats("rank_collapse", "", 1),
    Treats("slow_loss", "depth_without_shortcut", 5),
    Treats("loss_plateau", "depth_without_shortcut", 5),
)

_SQUARE = {
    "Linear": "layer.in_features == layer.out_features",
    "Conv2d": "layer.in_channels == layer.out_channels and layer.stride == (1, 1)",
}


def add_shortcut(case: Case) -> Prescription | None:
    """Adds the input of each layer to its output, so that the gradient has a way past the layer.

    What it does:
        The Jacobian of x + F(x) is 1 + J: where J shrinks the gradient, 1 remains. In a batch-normed net it dilutes
        the growth of each layer. It fits where input and output have the same shape.

    In your code:
        from torch import nn


        class Residual(nn.Module):
            def __init__(self, *branch):
                super().__init__()
                self.branch = nn.Sequential(*branch)

            def forward(self, x):
                return x + self.branch(x)


        for chain in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
            parts = list(chain)
            starts = [i for i, m in enumerate(parts) if isinstance(m, nn.Linear)] + [len(parts)]
            for start, end in zip(starts, starts[1:]):
                layer = parts[start]
                if layer.in_features == layer.out_features and end - start > 1:
                    chain[start] = Residual(*parts[start:end])
                    for i in range(start + 1, end):
                        chain[i] = nn.Identity()

    What it costs:
        One addition a block and the memory of its input.

    When it fails:
        Many branches of full size add up: L plain ReLU branches grow the gradient 2^(L/2) times (see scale_residual).
        Branches that are never negative (ReLU or sigmoid last) drift the activations upwards: end the branch in a
        weight layer where you can. Layers that change the shape need a projection.

    Source:
        Srivastava et al. 2015; He et al. 2016; Yang and Schoenholz 2017.
    """
    kind = next((kind for kind in case.weight_kinds if kind in _SQUARE), "")
    exploding = case.symptom == "exploding_gradient"
    if not kind or case.shortcut or case.recurrent or case.layers < 3 or (exploding and not case.normalised):
        return None
    path = "the gradient gets a path of gain 1 past each layer"
    expected = f"{path}, which dilutes the growth" if exploding else case.back(*_ALL, otherwise=path)
    return advise(add_shortcut, expected=expected, code=code(kind), at=case.lines("weight"))


_ALL = ("weight_gain", "activation_slope", "normalization_gain")


def code(kind: str) -> str:
    """A wrapper module, and the loop that puts it around each layer that keeps its shape."""
    return f"""from torch import nn


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


for chain in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
    parts = list(chain)
    starts = [i for i, m in enumerate(parts) if isinstance(m, nn.{kind})] + [len(parts)]
    for start, end in zip(starts, starts[1:]):
        layer = parts[start]
        if {_SQUARE[kind]} and end - start > 1:
            chain[start] = Residual(*parts[start:end])
            for i in range(start + 1, end):
                chain[i] = nn.Identity()"""
