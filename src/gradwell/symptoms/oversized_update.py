"""Steps so large that they throw away what the weights had learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.errors import NotMeasurable
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._curve import has_gained
from gradwell.symptoms._updates import largest, owners, ratios
from gradwell.symptoms._words import adaptive, judged_at

ORDER = 2
SEVERAL = 3
"""Sampled steps that must be as large, so that one spike is no finding."""
ROUNDING = 1e-12
"""Variance between samples over the mean square below which all of it may be float32's rounding."""

SICK = (
    NetConfig(depth=3, init="he", lr=5.0),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=0.1),
    NetConfig(kind="transformer", depth=2, width=32, lr=5.0),
)
HEALTHY = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=1e-3),
    NetConfig(depth=3, init="he", optimizer="Adam", lr=3e-3),
    NetConfig(depth=4, init="he", norm="batch", lr=0.15),
    NetConfig(depth=3, init="zeros"),
    NetConfig(kind="residual", depth=6, init="fixup", optimizer="Adam", lr=1e-3),
    NetConfig(kind="transformer", depth=2, width=32, optimizer="Adam", lr=1e-3),
    NetConfig(kind="lstm", depth=1, width=32, optimizer="Adam", lr=1e-3),
)


def oversized_update(
    run: Run, *, mild: float = 0.1, serious: float = 0.5, once: float = 3.0, alike: float = 1.0,
    slight: float = 0.03, constant: float = 1.5,
) -> Iterator[Finding]:  # fmt: skip
    """Steps so large that they throw away what the weights had learnt.

    What it does to training:
        Each step replaces a good part of every weight. The loss jumps, saturates units or kills them, and ends in NaN
        or at chance; what survives learns on top of the wreck.

    How it is measured:
        RMS of the update (weight after the optimizer's step minus before) over RMS of the weight, the median over the
        weights with two or more axes: about 1e-3 in healthy training, up to 0.03 in the first steps. The third largest
        of the sampled steps counts: `mild`, `serious`. With fewer than three sampled steps the smallest counts, and
        the finding is at most mild. One step that is `once` times as large as the weights is serious by itself: it
        leaves a random net of that size. Adam at 300 times its rate makes one such step and then ever smaller ones. For
        this, weights below torch's default size count as that, and those in front of a normalisation do not count.
        Smaller steps are serious where the outputs show the wreck: nothing has been gained (the loss stands above four
        fifths of its start), and the variance of the outputs between samples over their mean square is `alike` decades
        lower in two sampled steps in a row than it has been, after steps of `mild` under SGD. After steps of
        `slight`, under any optimizer, it must be `constant` decades lower, and the variance itself as well: a net that
        learns its outputs' mean first lowers only the ratio, and under Adam one whose outputs have grown may come back.

    When it is no problem:
        LBFGS: its step is the end of a search. Biases and weights that start at zero are left out: any first step is
        large for them. The outputs of adversaries (GAN) may become alike while all is well and are not looked at. Adam
        bears ten times more than SGD, since its step does not grow with the gradient: at 0.2 to 0.4 in the first steps
        most nets still learn, only later.

    What helps first:
        A lower learning rate; warmup, where only the first steps are too large; clipping, where some are.

    Source:
        Karpathy's rule of thumb of 1e-3; You et al. 2017 (LARS). Bounds: docs/calibration.md.
    """
    if run.optimizer is not None and run.optimizer.kind == "LBFGS":
        raise NotMeasurable("a step of LBFGS is many steps along a line that it has searched.")
    found = sorted(ratios(run), key=lambda pair: -pair[1])
    at_once = largest(run)
    single = at_once[1] >= once
    step, value = at_once if single else found[min(SEVERAL, len(found)) - 1]
    lost = wreck(run)
    grows = value >= mild and lost[0] >= alike and adaptive(run) is False
    wrecked = len(found) >= SEVERAL and (grows or (value >= slight and min(lost) >= constant))
    if value < mild and not wrecked:
        return
    several = len(found) >= SEVERAL and value >= serious
    severity: Severity = "serious" if single or several or wrecked else "mild"
    bound = once if single else serious if several else mild if value >= mild else slight
    large = sorted(s.step for s, ratio in found if ratio >= min(mild, bound))
    times = "" if len(found) < SEVERAL else f" in {len(large)} of {len(found)} sampled steps"
    much = f"{size(value)} times" if value >= 10 else f"{100 * value:.3g} % of"
    text = f"one step changes the weights by {much} their size (median over the weight matrices){times}; 0.1 % is usual"
    evidence = [Evidence("update / weight", value, "ratio", bound), judged_at(step)]
    if wrecked:
        text += "; the outputs have become alike for all samples"
        evidence.append(
            Evidence("variance of the outputs between samples", -lost[0], "decades", -(alike if grows else constant))
        )
    yield Finding("oversized_update", severity, owners(run, step, value), large[0], large[-1], evidence, text)


def wreck(run: Run) -> tuple[float, float]:
    """Decades by which the outputs' variance between samples is lower in the last two sampled steps than it has been:
    over their mean square, and by itself.

    (0, 0) where it was not measured, where the loss has fallen and where several optimizers take turns.
    """
    steps = [step for step in run.steps if step.output is not None and step.output == run.steps[-1].output]
    found = [both for step in steps if (both := _spread(step)) is not None]
    if len(run.header.optimizers) > 1 or len(found) < SEVERAL or has_gained(run):
        return 0.0, 0.0
    shares, whole = zip(*found, strict=True)
    return _fallen(shares), _fallen(whole)


def _spread(step: Step) -> tuple[float, float] | None:
    """Variance of the outputs between samples: over their mean square, and by itself; None where not measured."""
    assert step.output is not None
    share, rms = step.at("spread", step.output), step.at("act_rms", step.output)
    if share is None or rms is None or not (math.isfinite(share) and math.isfinite(rms)):
        return None
    share = max(share, ROUNDING)
    return share, share * rms * rms


def _fallen(values: Sequence[float]) -> float:
    now = max(values[-2:])
    return math.log10(max(values) / now) if now > 0 else math.inf
