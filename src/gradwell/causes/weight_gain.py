"""The size of the weights on the gradient's way."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, a_layer, count, factor, kinds, on_ledger, share_of
from gradwell.records.run import Run, Site, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES


def weight_gain(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """The size of the weights on the gradient's way: each layer multiplies a random gradient by |W|_F / sqrt(fan_out).

    What it is:
        A weight matrix keeps the size of a random gradient when sigma_w^2 = fan_in Var W is 1. PyTorch's default for
        Linear and Conv layers has 1/3, a factor 0.58 a layer; He has 2, to make up for the ReLU's 1/2.

    How it is measured:
        For each weight layer on the way log10(|W|_F / sqrt(n_out)), n_out units or channels, times the share of the
        flow that passes there; summed over the ledger.

    What changes it:
        The initialisation and its gain; weight decay, which shrinks it with time; a normalisation after the layer,
        which makes the scale of W cancel.

    Source:
        Glorot and Bengio 2010; He et al. 2015; Poole et al. 2016.
    """
    found = on_ledger(run, step, "weight")
    keeps = a_layer(step, found)
    if keeps is None:
        return share_of(run, step, "weight_gain", "no weight on the way")
    sites = run.sites
    typical = _typical([sites[i] for i in found])
    text = f"|W| of {typical} passes on {factor(keeps)} of the gradient a layer where 1.0 keeps it"
    return share_of(run, step, "weight_gain", f"{text}, {count(len(found), 'layer')}")


def _typical(sites: list[Site]) -> str:
    """The kinds, and the shape where most layers have the same."""
    shapes = [(s.fan_in, s.fan_out) for s in sites if s.fan_in and s.fan_out]
    common = max(dict.fromkeys(shapes), key=shapes.count, default=None)
    if common is None or 2 * shapes.count(common) < len(sites):
        return kinds(sites)
    return f"{kinds(sites)} ({common[0]} -> {common[1]})"
