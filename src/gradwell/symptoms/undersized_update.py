"""Steps so small that the weights hardly move, or do not move at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._updates import owners, ratios
from gradwell.symptoms._words import judged_at

ORDER = 6
SEVERAL = 3
"""Sampled steps from which on small steps, and no steps at all, are believed."""
FINER = 0.9
"""Decades that float16 is finer than bfloat16: three bits."""
RESOLUTION = 7.2
"""Decades of float32: smaller steps are believed from the first one on."""
WARMUP = 1.5
"""Times that the steps have grown since the first one in a warmup."""

SICK = (
    NetConfig(depth=3, init="he", lr=1e-8),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-9),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-7, dtype="bfloat16"),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", lr=5e-4),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-5),
    NetConfig(depth=3, init="he", dtype="bfloat16"),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3, dtype="bfloat16"),
    NetConfig(depth=3, init="zeros"),
    NetConfig(kind="residual", depth=6, init="fixup"),
    NetConfig(kind="transformer", depth=2, width=32, optimizer="Adam", lr=1e-3),
)


def undersized_update(
    run: Run, *, mild: float = 6.0, serious: float = 6.5, half_mild: float = 3.7, half_serious: float = 4.7
) -> Iterator[Finding]:
    """Steps so small that the weights hardly move, or do not move at all because the update is rounded away.

    What it does to training:
        At a millionth of the weight a step, a million steps are needed to change it by its own size. Below the
        resolution of the format the sum of weight and update is the weight: nothing is learnt, for ever.

    How it is measured:
        RMS of the update (weight after the optimizer's step minus before) over RMS of the weight, the median over the
        weights with two or more axes, in decades below 1, at the sampled step where it is largest: `mild`, `serious`.
        At `serious` three million steps in the same direction are needed to change a weight by its size. It takes three
        sampled steps, of which the last is not the largest by far, as in a warmup; one is enough below what
        float32 resolves (6e-8). In bfloat16 an update is lost at 2e-3 of a weight, but some weights are small and move:
        `half_mild` (a tenth of that is seen) and `half_serious` (a hundredth); 0.9 decades more for float16.

    When it is no problem:
        At the end of a schedule and in the first steps of a warmup: the largest step counts. A learning rate of zero
        before the warmup begins is told only from three sampled steps on. Frozen weights, weights without a gradient
        and weights that start at zero are left out.

    What helps first:
        A higher learning rate; Adam where the gradient is small and sound; float32 weights (autocast) where 16 bits
        round the update away.

    Source:
        Micikevicius et al. 2018, section 3.1; Zamirai et al. 2020. Bounds: docs/calibration.md.
    """
    found = ratios(run)
    step, value = max(found, key=lambda pair: pair[1])
    below = -math.log10(value) if value > 0 else math.inf
    bounds = _bounds(run.header.dtype, (mild, serious), (half_mild, half_serious))
    lost = below >= max(bounds[1], _resolution(run))
    if below < bounds[0] or (len(found) < SEVERAL and (not lost or _idle(run))):
        return
    severity: Severity = "serious" if lost or (below >= bounds[1] and not _grows(found)) else "mild"
    limit = 10 ** -(bounds[1] if severity == "serious" else bounds[0])
    evidence = [Evidence("update / weight", value, "ratio", limit), judged_at(step)]
    if value == 0 and not run.header.optimizers:
        text = (
            "no step changes any weight, and no optimizer was seen that holds one; where there is one, it was made for "
            "other tensors: make it after the last line that makes, copies or loads the model"
        )
    elif value == 0:
        text = f"no step changes any weight: the updates are rounded away in {run.header.dtype or 'this format'}"
    else:
        more = f", the limit of what {run.header.dtype} can add" if lost and run.header.dtype else ""
        text = (
            f"a step changes the weights by at most {size(value)} of their size (median over the weight matrices){more}"
        )
    yield Finding(
        "undersized_update", severity, owners(run, step, value), found[0][0].step, found[-1][0].step, evidence, text
    )


def _bounds(dtype: str, whole: Sequence[float], half: Sequence[float]) -> Sequence[float]:
    if dtype not in ("bfloat16", "float16"):
        return whole
    return [bound + (FINER if dtype == "float16" else 0.0) for bound in half]


def _resolution(run: Run) -> float:
    """Decades below which a step is lost in the weights' own rounding; for 16 bits the bounds say it."""
    return 0.0 if run.header.dtype in ("bfloat16", "float16") else RESOLUTION


def _grows(found: Sequence[tuple[Step, float]]) -> bool:
    """True in a warmup: the last step is the largest, and larger than the first by far."""
    return found[-1][1] >= max(WARMUP * found[0][1], *(ratio for _, ratio in found[:-1]))


def _idle(run: Run) -> bool:
    """True where the optimizer's rate is zero, as before a warmup."""
    return run.optimizer is not None and run.optimizer.settings.get("lr") == 0
