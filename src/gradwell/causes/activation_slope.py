"""The slopes of the activations on the gradient's way."""

from __future__ import annotations

from gradwell.causes._share import PROFILES, a_layer, count, factor, kinds, on_ledger, share_of
from gradwell.records.run import Run, Step, finite
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = PROFILES


def activation_slope(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """The slopes of the activations on the gradient's way: each multiplies the gradient by phi'(h).

    What it is:
        The derivative of the sigmoid is at most 1/4, that of tanh at most 1, and less where the unit is saturated; a
        ReLU lets half of the squared gradient pass.

    How it is measured:
        For each activation on the way log10 sqrt(mean of phi'(h)^2), phi' taken as gradient out over gradient in on a
        sample of the elements, times the share of the flow that passes there; summed over the ledger.

    What changes it:
        Another activation; smaller pre-activations (init, normalisation) where units saturate; a bias that centres
        them.

    Source:
        Hochreiter 1991; Glorot and Bengio 2010; Pennington, Schoenholz and Ganguli 2017.
    """
    found = on_ledger(run, step, "activation")
    keeps = a_layer(step, found)
    if keeps is None:
        return share_of(run, step, "activation_slope", "no activation on the way")
    sites, shares = run.sites, step.all_at("saturated_frac", len(run.sites))
    text = f"{kinds(sites[i] for i in found)} passes on {factor(keeps)} of the gradient a layer"
    saturated = finite([shares[i] for i in found])
    if saturated and sum(saturated) / len(saturated) > 0.5:
        text += f", {100 * sum(saturated) / len(saturated):.0f} % of it saturated"
    return share_of(run, step, "activation_slope", f"{text}, {count(len(found), 'layer')}")
