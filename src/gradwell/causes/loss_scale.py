"""The loss is not scaled, or not enough, for float16."""

from __future__ import annotations

from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("gradient_underflow",)


def loss_scale(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """The loss is not scaled, or not enough, for float16: its gradients lie at the lower end of the format.

    What it is:
        float16 has room for gradients of up to 65504 and none below 6e-8. Multiplying the loss by a large number
        moves all gradients up; the optimizer divides them by it again in float32.

    How it is measured:
        The parameters are float16, and the scale seen in `GradScaler.scale` is absent or leaves the gradients too
        small. A loss multiplied by hand is not seen.

    What changes it:
        `torch.amp.GradScaler` with its dynamic scale; bfloat16 needs none.

    Source:
        Micikevicius et al. 2018.
    """
    if run.header.dtype != "float16":
        return None
    if step.loss_scale is None:
        text = "float16 without a loss scale"
    else:
        text = f"the loss scale of {step.loss_scale:g} is too small for these gradients"
    return Attribution(0, "loss_scale", "condition", None, None, text)
