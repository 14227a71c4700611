"""A ceiling for the gradient of each unit, relative to the unit's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("exploding_gradient", "", 6),
    Treats("loss_spike", "", 2),
    Treats("oversized_update", "", 3),
    Treats("diverging_loss", "", 5),
)


def adaptive_clip(
    case: Case, *, rule: str = "unit", ratio: float = 0.01, percentile: float = 10.0, z: float = 2.5
) -> Prescription | None:
    """Clips the gradient of each output unit at a fixed part of that unit's weight norm (AGC), or the norm by its past.

    `rule`: "unit" (AGC), "percentile" (AutoClip) or "z" (ZClip). `ratio`: largest |gradient| / |weight| of a unit;
    `percentile`: of all norms so far; `z`: standard deviations above the running mean.

    What it does:
        AGC: g_i <- g_i * min(1, ratio * max(|w_i|, 0.001) / |g_i|) for each row i of a weight: large gradients of one
        layer no longer take the whole budget, as under one global norm. AutoClip bounds the whole norm by a percentile
        of its own past, ZClip by its running mean plus z standard deviations: neither needs a bound to be found.

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
        AGC: two norms a weight matrix and step. The others: one norm and a wait for the device.

    When it fails:
        Weights near zero (fresh Fixup branches, zero gamma) can hardly leave; the last layer must be left out. It never
        helps a gradient that vanishes. AutoClip at 10 % shortens nine steps of ten: it wants a larger rate, and a first
        gradient that is not finite spoils its memory. ZClip trusts its first 25 steps.

    Source:
        Brock et al. 2021 (NFNet; lambda 0.01, over each output unit as in timm); Seetharaman et al. 2020 (AutoClip);
        Kumar et al. 2025 (ZClip).
    """
    if case.symptom.startswith("vanishing"):
        return None
    text, settings, expected = _plan(rule, ratio, percentile, z)
    return advise(adaptive_clip, expected=expected, code=text, rule=rule, **settings)


def _plan(rule: str, ratio: float, percentile: float, z: float) -> tuple[str, dict[str, Any], str]:
    """Lines, settings and what to expect, by rule."""
    if rule == "percentile":
        return _AUTO.format(p=percentile), {"percentile": percentile}, "no step is longer than the usual short ones"
    if rule == "z":
        return _Z.format(z=z), {"z": z}, "a norm that is out of the ordinary is brought back to the ordinary"
    text = lines(adaptive_clip).replace("limit = 0.01", f"limit = {ratio:g}")
    return text, {"ratio": ratio}, "no unit moves by more than its own share in one step"


_AUTO = """import torch

norms = []

# in the training step
loss.backward()
grads = [p.grad for p in model.parameters() if p.grad is not None]
norms.append(torch.nn.utils.get_total_norm(grads))
bound = torch.quantile(torch.stack(norms).float(), {p:g} / 100).item()
torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
optimizer.step()"""

_Z = """import torch

first, mean, var = [], 0.0, 0.0  # of the gradient's norm

# in the training step
loss.backward()
grads = [p.grad for p in model.parameters() if p.grad is not None]
norm = torch.nn.utils.get_total_norm(grads).item()
bound = 1.0
if len(first) < 25:  # the first norms give the mean and the variance
    first.append(norm)
    mean = sum(first) / len(first)
    var = sum((n - mean) ** 2 for n in first) / len(first)
else:
    z = (norm - mean) / (var**0.5 + 1e-6)
    kept = mean + {z:g} * var**0.5 / (z / {z:g}) if z > {z:g} else norm
    mean = 0.97 * mean + 0.03 * kept
    var = 0.97 * var + 0.03 * (kept - mean) ** 2
    bound = min(kept, 1.0)
torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
optimizer.step()"""

GRID = ({"rule": "unit", "ratio": 0.01}, {"rule": "percentile", "percentile": 10.0}, {"rule": "z", "z": 2.5})


@acting
def apply(
    setup: TrainSetup, *, rule: str = "unit", ratio: float = 0.01, percentile: float = 10.0, z: float = 2.5
) -> None:
    """Clip by unit, by percentile or by z-score."""
    from gradwell.surgery.gradients import AutoClip, UnitClip, ZClip

    edits = {"unit": UnitClip(ratio), "percentile": AutoClip(percentile), "z": ZClip(z)}
    setup.gradient_edits.append(edits[rule])
