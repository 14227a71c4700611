"""Layers that are no weight, activation or norm."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, book_of, kinds, share_of
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES


def other_layers(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """Layers that are no weight, activation or norm: pooling, dropout, embeddings, attention and recurrent modules.

    What it is:
        Average pooling over P positions divides the gradient by sqrt(P) (harmless: weight gradients add up over the
        positions); dropout in training multiplies it by 1 / sqrt(keep probability); a recurrent or attention module
        counts as one layer.

    How it is measured:
        log10 of |gradient sent to the input| / |gradient at the output| of each such layer on the way, times the share
        of the flow that passes there; summed over the ledger.

    What changes it:
        For a recurrent module: gates, orthogonal weights, a forget bias of 1, shorter sequences.

    Source:
        Pretorius et al. 2018 for dropout.
    """
    book = book_of(run, step)
    if book is None:
        return None
    named = ("activation", "weight", "norm")
    found = [(i, part) for i, part in book.by_site if run.sites[i].role not in named]
    large = sorted((pair for pair in found if abs(pair[1]) >= 0.05), key=lambda pair: -abs(pair[1]))
    text = kinds(run.sites[i] for i, _ in large) or "pooling, dropout and the like"
    return share_of(run, step, "other_layers", text)
