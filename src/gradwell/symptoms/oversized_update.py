"""Steps so large that they throw away what the weights had learnt."""

from __future__ import annotations

from collections.abc import Iterator

from gradwell.errors import NotMeasurable
from gradwell.records.net import NetConfig
from gradwell.records.numbers import size
from gradwell.records.run import Run
from gradwell.records.verdict import Evidence, Finding, Severity
from gradwell.symptoms._updates import largest, owners, ratios
from gradwell.symptoms._words import judged_at

ORDER = 2
SEVERAL = 3
"""Sampled steps that must be as large, so that one spike is no finding."""

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


def oversized_update(run: Run, *, mild: float = 0.1, serious: float = 0.5, once: float = 3.0) -> Iterator[Finding]:
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

    When it is no problem:
        LBFGS: its step is the end of a search. Biases and weights that start at zero are left out: any first step is
        large for them. Adam bears ten times more than SGD, since its step does not grow with the gradient: at 0.2 to
        0.4 in the first steps most nets still learn, only later.

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
    if value < mild:
        return
    several = value >= serious and len(found) >= SEVERAL
    severity: Severity = "serious" if single or several else "mild"
    large = sorted(s.step for s, ratio in found if ratio >= mild)
    bound = once if single else serious if several else mild
    times = "" if len(found) < SEVERAL else f" in {len(large)} of {len(found)} sampled steps"
    much = f"{size(value)} times" if value >= 10 else f"{100 * value:.3g} % of"
    text = f"one step changes the weights by {much} their size (median over the weight matrices){times}; 0.1 % is usual"
    evidence = [Evidence("update / weight", value, "ratio", bound), judged_at(step)]
    yield Finding("oversized_update", severity, owners(run, step, value), large[0], large[-1], evidence, text)
