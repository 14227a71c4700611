"""Another activation in the hidden layers, or logits instead of a squashed output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise
from gradwell.shelf import shelf

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("vanishing_gradient", "activation_slope", 1),
    Treats("exploding_gradient", "activation_slope", 2),
    Treats("nonfinite_value", "activation_slope", 3),
    Treats("dead_units", "", 1),
    Treats("saturated_units", "", 3),
    Treats("saturated_output", "", 1),
    Treats("slow_loss", "activation_slope", 2),
    Treats("loss_plateau", "activation_slope", 2),
    Treats("rank_collapse", "activation_slope", 4),
)


def swap_activation(case: Case, *, to: str = "") -> Prescription | None:
    """Puts an activation in the hidden layers that is steep where the units are.

    `to`: the id of any activation but maxout; "" takes leaky_relu for dead units, tanh for one that grows without
    bound, identity (logits) for a saturated output, relu otherwise.

    What it does:
        A sigmoid is at most 1/4 steep, so each layer divides the gradient by 4 or more whatever the weights. ReLU has
        slope 1 on half of its inputs; a leaky ReLU never has slope 0. On a saturated output it removes the squashing:
        give logits to a loss that contains it.

    In your code:
        from torch import nn

        # after `model = ...`
        for name in [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Sigmoid)]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.ReLU())

    What it costs:
        Nothing at run time; trained weights do not fit the new activation.

    When it fails:
        Alone, when the weights are too small as well: 20 sigmoid layers at PyTorch's default need ReLU and He together
        (measured: either alone is not enough). ReLU units can die at high learning rates. A sigmoid that is meant (a
        gate, a probability) must stay. SELU wants LeCun's init. Weight decay pulls the slope of a PReLU to 0.

    Source:
        Nair and Hinton 2010; Glorot, Bordes and Bengio 2011; Maas et al. 2013.
    """
    if case.symptom == "saturated_output":
        return _logits(case)
    to = to or _choice(case)
    if not to or to == case.activation:
        return None
    expected = case.back("activation_slope", otherwise=_expected(case, to))
    return advise(swap_activation, expected=expected, code=code(case, to), at=case.lines("activation"), to=to)


def _choice(case: Case) -> str:
    if case.symptom == "dead_units":
        return "leaky_relu" if case.can_die or not case.activation else ""
    if case.symptom in {"exploding_gradient", "nonfinite_value"}:
        return "tanh" if case.activation == "exp" else ""
    if case.symptom == "saturated_units":
        return "relu" if case.saturating else ""
    return "relu" if case.weak_activation else ""


def _expected(case: Case, to: str) -> str:
    if case.symptom == "dead_units":
        return "a dead unit gets 1 % of the gradient instead of none, and can come back"
    return f"{to} passes the gradient where {case.activation or 'the old activation'} is flat"


def code(case: Case, to: str) -> str:
    """A loop over the modules; a comment at the place to edit where the net calls a function."""
    old = case.torch_class(case.activation)
    if not old:
        here = f"{case.activation}(x)" if case.activation else "the old activation"
        return f"# in forward(): {_function(to)} instead of {here}"
    keep, note = "", ""
    if case.output_activation == case.activation:
        keep, note = f' and n != "{case.output_name}"', "  # the output stays"
    head, new = _new(to)
    return f"""from torch import nn
{head}
names = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, {old}){keep}]{note}
for name in names:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, {new})"""


def _new(to: str) -> tuple[str, str]:
    """Lines that define an activation which torch has no module for, and the call that makes one."""
    made: str = shelf("gradwell.theory.activations")[to].fact("CODE")
    if made.startswith("nn."):
        return "", made
    name = to.title().replace("_", "")
    imports = "import torch\n" if "torch." in made else ""
    return f"{imports}\n\nclass {name}(nn.Module):\n    def forward(self, x):\n        return {made}\n\n", f"{name}()"


def _function(to: str) -> str:
    """The activation as a function of x."""
    entry = shelf("gradwell.theory.activations")[to]
    made: str = entry.fact("CODE")
    lower = next((name for name in entry.fact("TORCH") if name.islower() and not name.endswith("_")), "")
    return f"{_HOMES.get(to, 'F')}.{lower}(x)" if made.startswith("nn.") and lower else made.replace("nn.", "F.")


_HOMES = {"tanh": "torch", "sigmoid": "torch"}

_LOSS = {
    "sigmoid": ("nn.BCEWithLogitsLoss()", "contains the sigmoid"),
    "": ("nn.CrossEntropyLoss()", "contains the softmax"),
}


def _logits(case: Case) -> Prescription | None:
    """No squashing at the output: the loss contains it, and its gradient does not vanish when the net is wrong."""
    squash = case.output_activation
    if not squash:
        return None
    loss, why = _LOSS.get(squash, _LOSS[""])
    old = case.torch_class(squash)
    remove = f"""
parent, _, child = "{case.output_name}".rpartition(".")  # the output only
setattr(model.get_submodule(parent), child, nn.Identity())"""
    comment = f"\n# in forward(): return the logits, without {squash}"
    text = f"from torch import nn\n{remove if old else comment}\nloss_fn = {loss}  # {why}"
    expected = "the gradient at the output becomes (prediction - target), which a wrong answer cannot make small"
    return advise(swap_activation, expected=expected, code=text, at=case.lines(), to="identity", where="output")


GRID = ({"to": "relu"}, {"to": "leaky_relu"}, {"to": "prelu"}, {"to": "elu"}, {"to": "gelu"}, {"to": "tanh"})


@acting
def apply(setup: TrainSetup, *, to: str = "", where: str = "") -> None:
    """Swap the most frequent activation of the hidden layers, module or function; gates and the output stay.

    `where="output"` swaps what stands behind the last weight layer instead.
    """
    from gradwell.surgery.swap import swap_hidden, swap_output

    if where == "output":
        swap_output(setup, to or "identity")
    else:
        swap_hidden(setup, to or "relu")
