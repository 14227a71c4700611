"""Level deep of a checkup: attribution on any graph, random gradients, signal to noise and rank, each by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from gradwell.errors import GradwellError, NotMeasurable
from gradwell.measure.noise import signal_to_noise
from gradwell.probe.gates import Gated, differentiable
from gradwell.probe.parts import part_gradients
from gradwell.probe.preserve import preserved
from gradwell.probe.ranks import Ranks
from gradwell.probe.recorder import Recorder
from gradwell.records.run import DEEP_PARAM_COLUMNS, DEEP_SITE_COLUMNS, Deep, Run, Step

LossFn = Callable[[Any, Any], Tensor]
OF_SECOND_PASS = ("attribution", "chi", "forward gain", "random gradient", "rank")
LN10 = math.log(10)
SAME = 0.02
"""Decades by which the gradient's total may differ from pass to pass."""
TOLERANCE = 1e-3
"""What the quadrature may leave of the total, ln."""


def deepen(run: Run, recorder: Recorder, model: nn.Module, batch: Any, loss_fn: LossFn) -> Run:
    """The run of a checkup with what level deep adds to its step; what cannot be measured is said, never raised.

    The model is run again, from the same random numbers and buffers, which are put back afterwards.
    """
    found = _Found(run)
    with preserved(model), torch.enable_grad():
        _gates(found, recorder, model, batch, loss_fn)
    with preserved(model), torch.enable_grad():
        found.attempt("signal to noise", of=lambda: _signal_to_noise(found, recorder, model, batch, loss_fn))
    return found.run_with_it()


class _Found:
    """What has been found: columns, numbers of the step, and reasons for what has not."""

    def __init__(self, run: Run) -> None:
        self.run, self.step = run, run.steps[0]
        self.sites: dict[str, list[float | None]] = {name: [None] * len(run.sites) for name in DEEP_SITE_COLUMNS}
        self.params: dict[str, list[float | None]] = {
            name: [None] * len(run.header.params) for name in DEEP_PARAM_COLUMNS
        }
        self.numbers: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.index: list[int | None] = []

    def attempt(self, *what: str, of: Callable[[], Any]) -> Any:
        """Its answer, or None and the reason: whatever goes wrong in a second look, the first one stands."""
        try:
            return of()
        except GradwellError as said:
            reason = str(said)
        except Exception as problem:
            first = (str(problem).strip().splitlines() or [""])[0]
            reason = f"this model does not allow it ({type(problem).__name__}: {first[:120]})."
        self.reasons |= dict.fromkeys(what, reason)
        return None

    def fill(self, column: str, values: dict[int, float]) -> None:
        """Values by visit into a column over the sites."""
        for i, value in values.items():
            site = self.index[i]
            if site is not None and math.isfinite(value):
                self.sites[column][site] = value

    def run_with_it(self) -> Run:
        step: Step = msgspec.structs.replace(
            self.step, deep=Deep(**self.numbers, not_measured=self.reasons),
            sites={**self.step.sites, **self.sites}, params={**self.step.params, **self.params},
        )  # fmt: skip
        header = self.run.header
        columns = [*header.columns, *DEEP_SITE_COLUMNS, *DEEP_PARAM_COLUMNS]
        return msgspec.structs.replace(
            self.run, header=msgspec.structs.replace(header, columns=columns), steps=[step, *self.run.steps[1:]]
        )


def _gates(found: _Found, recorder: Recorder, model: nn.Module, batch: Any, loss_fn: LossFn) -> None:
    gated = found.attempt(*OF_SECOND_PASS, of=lambda: _second_pass(found, recorder, model, batch, loss_fn))
    if gated is not None:
        found.attempt("attribution", of=lambda: _attribution(found, gated))
        found.attempt("chi", of=lambda: _chi(found, gated))
        found.attempt("forward gain", of=lambda: found.fill("forward_gain", gated.forward_profile()))
        found.attempt("random gradient", of=lambda: _random(found, gated))


def _second_pass(found: _Found, recorder: Recorder, model: nn.Module, batch: Any, loss_fn: LossFn) -> Gated:
    step, sites = found.step, found.run.sites
    if any(type(module).__name__ == "OptimizedModule" for module in model.modules()):
        raise NotMeasurable("the model is compiled: a compiled backward cannot be differentiated.")
    if step.total is None or step.output is None:
        raise NotMeasurable("there is no way between two layers.")
    ranks = Ranks(recorder.names, {site.site for site in sites}, sites[step.output].site)
    size = (step.at("delta_norm", step.output) or 0.0) * math.sqrt(step.batch or 1)
    gated = Gated(model, batch, loss_fn, recorder.names, total=step.total, output_size=size, during=ranks)
    known = {(site.site, site.call, site.kind): i for i, site in enumerate(sites)}
    found.index = [known.get((visit.name, visit.call, visit.kind)) for visit in gated.visits]
    found.attempt("rank", of=lambda: _rank(found, ranks))
    return gated


def _rank(found: _Found, ranks: Ranks) -> None:
    if ranks.problem is not None:
        raise ranks.problem
    calls = Counter(site.site for site in found.run.sites)
    for i, site in enumerate(found.run.sites):
        measured = ranks.rank.get(site.site, [])
        if len(measured) == calls[site.site]:  # else a call outside the graph would shift the others
            found.sites["rank"][i] = measured[site.call]
    if ranks.hidden is not None:
        found.numbers["hidden_rank"], found.numbers["hidden_rank_most"] = ranks.hidden


def _attribution(found: _Found, gated: Gated) -> None:
    total = found.step.total
    if total is None or not math.isfinite(total):
        raise NotMeasurable("the gradient is exactly 0 or not finite on the way.")
    if not abs(gated.total / LN10 - total) < SAME:
        raise NotMeasurable("the model gives another gradient when it is run again.")
    # Layers that only this pass sees, inside a reentrant checkpoint, stay part of the wiring.
    players = [i for i in gated.layers if found.index[i] is not None]
    if not players:
        raise NotMeasurable("no layer on the way has a gain.")
    path, wiring, silent = gated.attribute(players)
    found.fill("path_flow", dict(zip(players, path.flows, strict=True)))
    found.numbers |= {"wiring": wiring / LN10, "rest": path.rest / LN10, "nodes": path.nodes}
    if silent:
        names = ", ".join(gated.visits[i].name for i in silent[:4]) + (" and others" if len(silent) > 4 else "")
        found.reasons["attribution"] = (
            f"no derivative comes through {names}: a function there can be differentiated once only; "
            "its part counts as unexplained."
        )
    elif abs(path.rest) >= TOLERANCE:
        found.reasons["attribution"] = (
            f"{abs(path.rest) / LN10:.2g} decades are left after {path.nodes} nodes and count as unexplained."
        )


def _chi(found: _Found, gated: Gated) -> None:
    chi = gated.chi()
    if not chi:
        raise NotMeasurable("no site on the way passes a gradient on.")
    found.fill("chi", chi)


def _random(found: _Found, gated: Gated) -> None:
    profile = gated.random_profile()
    found.fill("random_gain", profile)
    total = profile.get(gated.source, math.nan)
    if not math.isfinite(total):
        raise NotMeasurable("a random gradient is exactly 0 or not finite at the first layer.")
    found.numbers["random_total"] = total
    if math.isfinite(gated.total):
        found.numbers["alignment"] = gated.total / LN10 - total


def _signal_to_noise(found: _Found, recorder: Recorder, model: nn.Module, batch: Any, loss_fn: LossFn) -> None:
    wanted = [(i, p) for i, p in enumerate(recorder.tensors) if p is not None and p.requires_grad]
    with differentiable():
        squares, means, each = part_gradients(model, batch, loss_fn, [p for _, p in wanted])
    for (i, _), parts, mean in zip(wanted, squares, means, strict=True):
        found.params["gsnr"][i] = signal_to_noise(parts, mean, each)
