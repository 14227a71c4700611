"""A ceiling for the gradient of each unit, relative to the unit's weights."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

TREATS = (
    Treats("exploding_gradient", "", 6),
    Treats("loss_spike", "", 2),
    Treats("oversized_update", "", 3),
    Treats("diverging_loss", "", 5),
)


def adaptive_clip(case: Case, *, ratio: float = 0.01) -> Prescription | None:
    """Clips the gradient of each output unit at a fixed part of that unit's weight norm (AGC).

    `ratio`: largest |gradient| / |weight| of a unit.

    What it does:
        g_i <- g_i * min(1, ratio * max(|w_i|, 0.001) / |g_i|) for each row i of a weight: large gradients of one layer
        no longer take the whole budget, as under one global norm.

    In your code:
        import torch

        loss.backward()
        weights = [p for p in model.parameters() if p.grad is not None and p.dim() > 1]
        for p in weights[:-1]:  # the last layer is left alone
            dims = tuple(range(1, p.dim()))
            limit = 0.01 * torch.linalg.vector_norm(p.detach(), dim=dims, keepdim=True).clamp_min(1e-3)
            size = torch.linalg.vector_norm(p.grad, dim=dims, keepdim=True).clamp_min(1e-6)
            p.grad.mul_((limit / size).clamp_max(1.0))
        optimizer.step()

    What it costs:
        Two norms a weight matrix and step.

    When it fails:
        Weights near zero (fresh Fixup branches, zero gamma) can hardly leave; the last layer must be left out. It never
        helps a gradient that vanishes.

    Source:
        Brock et al. 2021 (NFNet); lambda 0.01, over each output unit as in timm.
    """
    if case.symptom.startswith("vanishing"):
        return None
    text = lines(adaptive_clip).replace("limit = 0.01", f"limit = {ratio:g}")
    return advise(
        adaptive_clip, expected="no unit moves by more than its own share in one step", code=text, ratio=ratio
    )
