"""What happens between the layers: additions, concatenation, products, attention."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, share_of
from gradwell.measure.profile import between
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES


def between_modules(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """What happens between the layers: additions, concatenation, means, products and attention written as functions.

    What it is:
        Where a shortcut and a branch meet, their gradients add up: with gains 1 and g the sum has
        sqrt(1 + 2 rho g + g^2), which grows with every block. A mean over T tokens divides by sqrt(T). A product with
        a number multiplies.

    How it is measured:
        The total of the profile minus what all layers did, each weighted with the share of the flow that passes it.
        On a chain of modules it is exactly what the functions between them do. At level deep it is the total of the
        same net with gain 1 in every layer, and the layers' parts are split after Aumann and Shapley: a healthy deep
        net shows some decades here, which its layers take back.

    What changes it:
        The scale of the branches; the number of blocks; a norm at the start of each branch.

    Source:
        Veit, Wilber and Belongie 2016; Hayou et al. 2021.
    """
    flow = step.all_at("flow", len(run.sites))
    forks = any(0.02 < abs(flow[i] or 0.0) < 0.98 for i in between(run.sites, step))
    text = "shortcuts and branches add up" if forks else "functions between the layers (means, products, reshapes)"
    return share_of(run, step, "between_modules", text)
