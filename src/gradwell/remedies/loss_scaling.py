"""A loss multiplied before backward and divided after, for half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (
    Treats("gradient_underflow", "", 1),
    Treats("undersized_update", "low_precision", 1),
    Treats("vanishing_gradient", "low_precision", 4),
    Treats("nonfinite_value", "loss_scale", 1),
    Treats("nonfinite_value", "low_precision", 1),
)

_ALREADY = "the scale falls until no gradient overflows; bfloat16 needs no scale at all"
_NEW = "gradients move up into the range of the dtype, by up to 4.8 decades (65536)"


def loss_scaling(case: Case, *, init_scale: float = 65536.0) -> Prescription | None:
    """Multiplies the loss so that small gradients stay above the smallest number of float16, and adapts the factor.

    `init_scale`: first factor; it halves after an overflow and doubles after 2000 good steps.

    What it does:
        float16 ends at 6e-8: a sigmoid net at PyTorch's default gets there in 9 layers. A factor on the loss moves
        every gradient up; the optimizer sees them divided again, in float32.

    In your code:
        import torch

        device = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(device, init_scale=65536.0)

        # in the training step; the loss is computed under torch.autocast(device, torch.float16)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # before any clipping
        scaler.step(optimizer)  # left out when a gradient is not finite
        scaler.update()

    What it costs:
        A skipped step after each overflow.

    When it fails:
        It moves all layers alike: a profile that is wider than the dtype (12 decades in float16) does not fit at any
        scale. Weights kept in float16 cannot take small updates: keep them in float32. bfloat16 has float32's range.

    Source:
        Micikevicius et al. 2018.
    """
    scaled = case.step.loss_scale is not None or "loss_scale" in case.conditions
    if not scaled and case.total is not None and case.total < -12:
        return None
    text = lines(loss_scaling).replace("65536.0", f"{init_scale:.1f}")
    return advise(loss_scaling, expected=_ALREADY if scaled else _NEW, code=text, init_scale=init_scale)


GRID = ({"init_scale": 65536.0}, {"init_scale": 1024.0})


@acting
def apply(setup: TrainSetup, *, init_scale: float = 65536.0) -> None:
    """Scale the loss, and skip and halve where a gradient overflows; refused for weights in half precision."""
    from gradwell.surgery.setup import scale_loss

    scale_loss(setup, init_scale)
