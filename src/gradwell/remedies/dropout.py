"""Units left out at random during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (Treats("saturated_output", "", 5),)


def dropout(case: Case, *, p: float = 0.1) -> Prescription | None:
    """Leaves out units at random in training, which keeps outputs from becoming certain.

    `p`: probability that a unit is left out.

    What it does:
        It regularises: a net that cannot rely on single units gives less extreme outputs, and the loss keeps a slope.
        It is on this shelf because it is often named as a remedy for vanishing gradients, which it is not.

    In your code:
        from torch import nn

        # after `model = ...`; its activations are nn.ReLU here
        for m in [m for m in model.modules() if isinstance(m, nn.ReLU)]:
            m.register_forward_hook(lambda m, args, out: nn.functional.dropout(out, 0.1, m.training))

    What it costs:
        More steps to the same training loss.

    When it fails:
        Never for vanishing or exploding gradients: noise destroys the critical point, and with keep probability p the
        weights need sigma_w^2 = 2p for ReLU. With it a tanh net (sigma_b^2 = 0.05) is trainable to about 41 layers at
        p = 0.95 and 18 at p = 0.8, whatever its weights.

    Source:
        Srivastava et al. 2014; Schoenholz et al. 2017 and Pretorius et al. 2018 for what it does to depth.
    """
    old = case.torch_class(case.activation)
    if not old or any(site.kind == "Dropout" for site in case.run.sites):
        return None
    keep = f' and name != "{case.output_name}"' if case.output_activation == case.activation else ""
    text = f"""from torch import nn

for m in [m for name, m in model.named_modules() if isinstance(m, {old}){keep}]:
    m.register_forward_hook(lambda m, args, out: nn.functional.dropout(out, {p:g}, m.training))"""
    return advise(dropout, expected="outputs become less certain", code=text, at=case.lines("activation"), p=p)


GRID = ({"p": 0.1}, {"p": 0.3})


@acting
def apply(setup: TrainSetup, *, p: float = 0.1) -> None:
    """Dropout behind each hidden activation, module or function."""
    from gradwell.errors import Refused
    from gradwell.surgery.attach import Dropped, after
    from gradwell.surgery.observe import observe

    seen = observe(setup)
    places = {call.place: call for call in seen.hidden_activations if call.activation == seen.activation}
    if not places:
        raise Refused("No activation stands before the last layer, so there is nothing to drop units of.")
    for call in places.values():
        after(setup.model, call, Dropped(p))
