"""x + F(x) instead of F(x): a path with gain 1 beside every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_gradient", "depth_without_shortcut", 5),
    Treats("vanishing_gradient", "activation_slope", 5),
    Treats("exploding_gradient", "normalization_gain", 1),
    Treats("exploding_gradient", "", 1),
    Treats("rank_collapse", "", 1),
    Treats("slow_loss", "depth_without_shortcut", 5),
    Treats("loss_plateau", "depth_without_shortcut", 5),
)


def add_shortcut(case: Case, *, form: str = "rezero", over: int = 1) -> Prescription | None:
    """Adds the input of each layer to its output, so that the gradient has a way past the layer.

    `form`: "rezero" (x + a F, a learned from 0), "scaled" (x + F / sqrt(L), L shortcuts), "identity" (x + F) or
    "highway" (F T + x (1 - T), T a learned gate that starts at 12 %). `over`: weight layers that one shortcut passes.

    What it does:
        The Jacobian of x + a F(x) is 1 + a J: where J shrinks the gradient, 1 remains. In a batch-normed net it dilutes
        the growth of each layer. It fits where input and output have the same shape. Measured on digits, loss after 60
        steps at the best rate, mean of three seeds: 60 layers of batch norm and ReLU (2.2 without) rezero 0.03, scaled
        0.10, identity 1.3; 14 of ReLU (2.3) 0.14, 0.12, 1.0; 8 of sigmoid (2.3) 0.9, 2.0, 1.6.

    In your code:
        import torch
        from torch import nn


        class Shortcut:  # x + a F(x) by hooks: no module gets another name
            def __init__(self, first, last):
                self.first = first
                first.shortcut_scale = nn.Parameter(torch.tensor(0.0))  # before the optimizer is made
                first.register_forward_pre_hook(self.enter)
                last.register_forward_hook(self.leave)

            def enter(self, first, args):
                self.x = args[0]

            def leave(self, last, args, out):
                return self.x + self.first.shortcut_scale * out


        parts = [m for m in model.modules() if isinstance(m, nn.Linear) or not list(m.children())]
        at = [i for i, m in enumerate(parts) if isinstance(m, nn.Linear)]
        for start, end in zip(at, at[1:]):  # from a layer to the one before the next: its activation is inside
            if end - start > 1 and parts[start].in_features == parts[start].out_features:
                Shortcut(parts[start], parts[end - 1])

    What it costs:
        One addition a block and the memory of its input; a highway's gates double the weights.

    When it fails:
        Identity: many branches of full size add up, and L plain ReLU branches grow the gradient 2^(L/2) times.
        Branches that are never negative (ReLU or sigmoid last) drift the activations upwards: end the branch in a
        weight layer where you can. Layers that change the shape need a projection. ReZero's first step moves only the
        factors and the head.

    Source:
        Srivastava et al. 2015 (highway, bias -2); He et al. 2016; Yang and Schoenholz 2017; Bachlechner et al. 2020.
    """
    kind = next((kind for kind in case.weight_kinds if kind in _GATE), "")
    exploding = case.symptom == "exploding_gradient"
    if not kind or case.shortcut or case.recurrent or case.layers < 3 or (exploding and not case.normalised):
        return None
    path = "the gradient gets a path of gain 1 past each layer"
    expected = f"{path}, which dilutes the growth" if exploding else case.back(*_ALL, otherwise=path)
    text = code(kind, form, blocks) if (blocks := chain_blocks(case, kind, over)) else _IN_FORWARD
    return advise(add_shortcut, expected=expected, code=text, at=case.lines("weight"), form=form, over=over)


_ALL = ("weight_gain", "activation_slope", "normalization_gain")


_IN_FORWARD = "# in forward(), where input and output have the same shape: x = x + F.relu(self.fc(x))"
_SUM = {
    "identity": "self.x + out",
    "scaled": "self.x + self.scale * out",
    "rezero": "self.x + self.first.shortcut_scale * out",
    "highway": "out * self.gate + self.x * (1 - self.gate)",
}
_PART = {
    "rezero": "first.shortcut_scale = nn.Parameter(torch.tensor(0.0))",
    "highway": """first.gate = {gate}
        nn.init.constant_(first.gate.bias, -2.0)""",
}
_GATE = {
    "Linear": "nn.Linear(first.in_features, first.in_features)",
    "Conv2d": "nn.Conv2d(first.in_channels, first.in_channels, 1)",
}


_KEEPS_SIZE = """def keeps_size(conv):
    pad = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size))
    return conv.stride == (1, 1) and conv.padding in ("same", pad)


"""
_PLAIN = {role: role for role in ("weight", "norm", "activation")}
"""Roles that a block may hold, beside dropout."""


def chain_blocks(case: Case, kind: str, over: int) -> list[tuple[str, str]]:
    """Names of the first and the last module of each block that keeps its shape, in the order of the calls.

    A block goes from a weight layer up to the one before the next. Empty where functions or modules that are used
    several times leave no names to hook.
    """
    sites = case.run.sites
    roles = [_PLAIN.get(site.role) or ("dropout" if "Dropout" in site.kind else "") for site in sites]
    starts = [i for i, role in enumerate(roles) if role == "weight"]
    found, number = [], 0
    while number + over < len(starts):
        start, end = starts[number], starts[number + over]
        first, last, inside = sites[start], sites[end - 1], roles[start:end]
        if "" not in inside and "activation" in inside and first.kind == kind and first.fan_in == last.fan_out:
            found.append((first.site, last.site))
            number += over
        else:
            number += 1
    again = {site.site for site in sites if site.call}
    hooked = {name for block in found for name in block}
    return [] if hooked & again or any(name.endswith("()") for name in hooked) else found


def code(kind: str, form: str, blocks: list[tuple[str, str]]) -> str:
    """Hooks around each block that keeps its shape."""
    part = f"\n        {_PART[form].format(gate=_GATE[kind])}" if form in _PART else ""
    scale = f"\n        self.scale = {'len(blocks) ** -0.5'}" if form == "scaled" else ""
    gate = "\n        self.gate = first.gate(self.x).sigmoid()" if form == "highway" else ""
    pairs = "".join(f'    ("{first}", "{last}"),\n' for first, last in blocks)
    same = " if keeps_size(model.get_submodule(first))" if kind == "Conv2d" else ""
    fits = " if out.shape == self.x.shape else out" if kind == "Conv2d" else ""
    modules = f"[(model.get_submodule(first), model.get_submodule(last)) for first, last in names{same}]"
    imports = "import torch\nfrom torch import nn" if "torch." in part else "from torch import nn"
    return f"""{imports}


class Shortcut:  # {_SUM[form].replace("self.", "")}, by hooks: no module gets another name
    def __init__(self, first, last):
        self.first = first{scale}{part}
        first.register_forward_pre_hook(self.enter)
        last.register_forward_hook(self.leave)

    def enter(self, first, args):
        self.x = args[0]{gate}

    def leave(self, last, args, out):
        return {_SUM[form]}{fits}


{_KEEPS_SIZE if same else ""}names = [  # a weight layer, and what stands before the next one
{pairs}]
blocks = {modules}
for first, last in blocks:
    Shortcut(first, last)"""


GRID = (
    {"form": "identity", "over": 1},
    {"form": "identity", "over": 2},
    {"form": "scaled", "over": 1},
    {"form": "rezero", "over": 1},
    {"form": "highway", "over": 1},
)


@acting
def apply(setup: TrainSetup, *, form: str = "rezero", over: int = 1) -> None:
    """A shortcut around each block that keeps its shape, by two hooks; refused where the net has shortcuts."""
    from gradwell.surgery.blocks import add_shortcuts

    add_shortcuts(setup, form, over)
