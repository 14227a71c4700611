"""The number format is too coarse or too narrow."""

from __future__ import annotations

from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("gradient_underflow", "undersized_update")
FORMATS = {"float16": "11 digits (bits) and nothing below 6e-8", "bfloat16": "8 digits (bits)"}


def low_precision(run: Run, finding: Finding, _step: Step) -> Attribution | None:
    """The number format is too coarse or too narrow: weights and gradients are held in 16 bits.

    What it is:
        float16 ends at 6e-8 below and 65504 above; bfloat16 has float32's range and 8 binary digits, so that a weight
        moves only by steps of more than 1/512 of itself. A weight kept in 16 bits forgets smaller updates.

    How it is measured:
        The dtype of the parameters; bfloat16 is named for updates only, since it does not underflow sooner than
        float32.

    What changes it:
        Weights in float32 with autocast around the forward pass; stochastic rounding or an optimizer that keeps a
        float32 copy; bfloat16 in place of float16 for the range.

    Source:
        Micikevicius et al. 2018; Kalamkar et al. 2019.
    """
    dtype = run.header.dtype
    if dtype not in FORMATS or (dtype == "bfloat16" and finding.symptom == "gradient_underflow"):
        return None
    text = f"weights and gradients are {dtype}, which has {FORMATS[dtype]}"
    return Attribution(0, "low_precision", "condition", None, None, text)
