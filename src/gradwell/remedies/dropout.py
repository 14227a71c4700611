"""Units left out at random during training."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise

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
        for name in [n for n, m in model.named_modules() if isinstance(m, nn.ReLU)]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))

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
    keep = "[:-1]" if case.output_activation == case.activation else ""
    text = f"""from torch import nn

for name in [n for n, m in model.named_modules() if isinstance(m, {old})]{keep}:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Sequential(model.get_submodule(name), nn.Dropout({p:g})))"""
    return advise(dropout, expected="outputs become less certain", code=text, at=case.lines("activation"), p=p)
