"""No step on a gradient that is not finite, or far too large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("nonfinite_value", "bad_batch", 1),
    Treats("nonfinite_value", "", 3),
    Treats("loss_spike", "bad_batch", 1),
    Treats("loss_spike", "", 5),
)


def skip_bad_batch(case: Case, *, bound: float = 0.0) -> Prescription | None:
    """Leaves out the optimizer's step when the gradient's norm is NaN or infinite, and says so.

    `bound`: leave out steps with a norm from that on too; 0 takes ten times the usual norm after a spike of a finite
    loss, and no bound otherwise.

    What it does:
        One NaN in one sample would make every weight NaN in one step, for good; a step left out costs one batch.

    In your code:
        import torch

        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=float("inf"))  # measures, changes nothing
        if torch.isfinite(norm):
            optimizer.step()
        else:
            print("step left out, gradient norm", norm.item())
        optimizer.zero_grad()

    What it costs:
        One norm over the gradients and a wait for the device.

    When it fails:
        When most batches are bad: it hides a cause that must be found (log of 0, division by 0, a label out of range).
        Running statistics of batch norm have seen the bad batch already.

    Source:
        Micikevicius et al. 2018 (skipped steps); Chowdhery et al. 2022 (batches skipped at spikes).
    """
    expected = "the weights survive the batch; the batch itself still has to be looked at"
    usual = case.usual_grad_norm if case.symptom == "loss_spike" else None
    if usual and not bound:  # a finite batch may be as bad
        bound = float(f"{10 * usual:.1g}")
    text = lines(skip_bad_batch)
    if bound:  # a norm that is NaN is not below the bound either
        text = text.replace("torch.isfinite(norm)", f"norm < {bound:g}")
    return advise(skip_bad_batch, expected=expected, code=text, at=case.lines(), **({"bound": bound} if bound else {}))


GRID: tuple[dict[str, object], ...] = ({}, {"bound": 10.0})


@acting
def apply(setup: TrainSetup, *, bound: float = 0.0) -> None:
    """Leave out the step after a gradient that is not finite, or whose norm reaches the bound."""
    setup.skip_nonfinite = True
    setup.skip_from = bound or None
