"""Many layers in a row with no way round."""

from __future__ import annotations

from gradwell.measure.profile import chain
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("vanishing_gradient", "exploding_gradient", "rank_collapse")
FEWEST = 5
"""Layers in a row from which on depth is named; shorter chains can lose that much by one bad layer only."""


def depth_without_shortcut(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """Many layers in a row with no way round: whatever each layer does is raised to the power of the depth.

    What it is:
        On a chain the gains of all layers are multiplied. 0.58 a layer is harmless over 3 layers and 5 decades over
        20. A shortcut x + F(x) puts a 1 beside each gain.

    How it is measured:
        The longest row of weight layers on the way that each carry at least 95 % of the gradient's flow.

    What changes it:
        Shortcuts round every layer or two; fewer layers; gains of exactly 1 (a critical initialisation).

    Source:
        Srivastava, Greff and Schmidhuber 2015; He et al. 2016.
    """
    row = chain(run.sites, step)
    if len(row) < FEWEST:
        return None
    first, last = run.sites[row[0]].site, run.sites[row[-1]].site
    text = f"{len(row)} layers in a row without a shortcut, {first} to {last}"
    return Attribution(0, "depth_without_shortcut", "condition", None, None, text)
