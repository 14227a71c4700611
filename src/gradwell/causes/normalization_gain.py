"""What the normalisation layers do to the gradient."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, a_layer, count, factor, kinds, on_ledger, share_of
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES


def normalization_gain(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """What the normalisation layers do to the gradient: each divides by the size s of what it normalises.

    What it is:
        A norm multiplies a random gradient by g / s, g its own scale, s the standard deviation that it divides by.
        Small activations are blown up, and so is their gradient: a norm undoes the size of the weights before it,
        so read both together. Batch norm between ReLU layers adds a factor 1.2 a layer on top of what keeps the size.

    How it is measured:
        For each norm on the way 1/2 log10(mean g^2 (n - 2)/n mean 1/s^2), from the 1/s that the layer saved (RMS norm:
        n - 1), times the share of the flow that passes there; summed over the ledger.

    What changes it:
        Shortcuts past the normalised layers; layer norm instead of batch norm for ReLU nets; larger batches.

    Source:
        Ioffe and Szegedy 2015; Ba, Kiros and Hinton 2016; Yang et al. 2019.
    """
    found = on_ledger(run, step, "norm")
    keeps = a_layer(step, found)
    if keeps is None:
        return share_of(run, step, "normalization_gain", "no normalisation on the way")
    text = f"{kinds(run.sites[i] for i in found)} multiplies the gradient by {factor(keeps)} a layer"
    return share_of(run, step, "normalization_gain", f"{text}, {count(len(found), 'layer')}")
