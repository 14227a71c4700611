"""Parameters that are to be trained and never get a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradwell.errors import NotMeasurable
from gradwell.measure.held import astray, held, owner, took_sampled_steps, unreached
from gradwell.records.net import NetConfig
from gradwell.records.run import Param, Run
from gradwell.records.verdict import Evidence, Finding, Severity, Where
from gradwell.symptoms._words import judged_at, needs_steps, where

ORDER = 1
NAMED = 3
"""Parameters that a summary names, at most."""

SICK = (
    NetConfig(depth=4, init="he", detach=3),
    NetConfig(depth=4, init="he", detach=1),
    NetConfig(depth=4, activation="tanh", init="lecun", detach=4, optimizer="Adam", lr=1e-3),
)
HEALTHY = (
    NetConfig(depth=4),
    NetConfig(kind="residual", depth=12, norm="layer"),
    NetConfig(kind="residual", depth=6, init="fixup"),
    NetConfig(kind="lstm", depth=2, width=16),
    NetConfig(kind="transformer", depth=2, width=16, optimizer="Adam", lr=1e-3),
)


def unreached_parameter(run: Run, *, mild: float = 0.0, serious: float = 0.5) -> Iterator[Finding]:
    """Parameters that are to be trained and never get a gradient, because no path leads from them to the loss.

    What it does to training:
        They keep their initial values for ever, and no optimizer can help: what they compute is a random feature, or
        is not used at all. The loss goes down all the same, by what the reached ones can do.

    How it is measured:
        A parameter that an optimizer holds (without an optimizer: one that requires a gradient) whose gradient is None
        and that does not move in any sampled step. An exact zero is a gradient. Measured is the share of the elements
        of all parameters to be trained: any finding is `mild` (from a share above it). More than half is `serious`
        where their modules were called: what they computed was cut off from the loss. Modules that no sampled step has
        called are not counted for that: experts that a gate never takes leave training as it is without them. Serious,
        too, is one of several optimizers that takes sampled steps without a single gradient. Fatal is a training whose
        optimizers hold nothing that the loss reaches, while other parameters get gradients: the model was copied,
        loaded or built anew after the optimizer was made.

    When it is no problem:
        Frozen parameters (requires_grad=False) do not count. An expert or a head that is idle in one batch and gets a
        gradient in another sampled step does not count either. With several optimizers, one that took none of the
        sampled steps is not judged. A branch that is really unused costs memory only.

    What helps first:
        Look between the last module that gets a gradient and the first that does not for .detach(), torch.no_grad(),
        .item(), .numpy(), argmax, or a module that is built and never called; take out what is not used. Make the
        optimizer after the last line that makes, copies or loads the model.

    Source:
        PyTorch, "Autograd mechanics"; DistributedDataParallel stops with an error on such parameters
        (find_unused_parameters).
    """
    needs_steps(run)
    without = unreached(run)
    lost = astray(run, without)
    trained = held(run) if lost else _to_train(run, without)
    if not trained:
        raise NotMeasurable("no parameter is known that is to be trained.")
    missed = [i for i in trained if i in without]
    if not missed:
        return
    share = _elements(run, missed) / max(_elements(run, trained), 1)
    if share <= mild:
        return
    idle = _never_called(run, missed)
    cut = _elements(run, missed) - _elements(run, idle)
    part = cut / max(_elements(run, trained) - _elements(run, idle), 1)
    severity: Severity = "fatal" if lost else "serious" if part > serious or _void(run, trained, missed) else "mild"
    evidence = [
        Evidence("elements without a gradient", share, "share", mild if severity == "mild" else serious),
        Evidence("parameters without a gradient", len(missed), "parameters"),
        judged_at(run.steps[-1]),
    ]
    params = run.header.params
    if lost:
        text = (
            f"no optimizer holds what the loss reaches: {named([params[i] for i in lost])} get a gradient and never "
            f"move, and the {len(missed)} tensors that are held get none"
        )
    else:
        text = (
            f"{named([params[i] for i in missed])} never get{'s' if len(missed) == 1 else ''} a gradient: "
            f"{len(missed)} of {len(trained)} parameters, {100 * share:.3g} % of the elements to be trained"
            f"{'; no sampled loss uses what their modules give' if idle == missed else ''}"
        )
    first, last = run.steps[0].step, run.steps[-1].step
    yield Finding("unreached_parameter", severity, _places(run, lost or missed), first, last, evidence, text)


def _to_train(run: Run, without: set[int]) -> list[int]:
    """Indices of the parameters that are meant to learn, without those of an optimizer whose turn was not sampled."""
    params = run.header.params
    if not run.header.optimizers:
        return [i for i, param in enumerate(params) if not param.frozen]
    own = held(run)
    if not without:
        return own
    awake = {owner(params[i]) for i in own if i not in without} | took_sampled_steps(run)
    return [i for i in own if owner(params[i]) is None or owner(params[i]) in awake]


def _void(run: Run, trained: Sequence[int], missed: Sequence[int]) -> bool:
    """Whether one of several optimizers takes its steps with nothing at all to step on."""
    reached = {owner(run.header.params[i]) for i in set(trained) - set(missed)}
    return any(name is not None and name not in reached for name in {owner(run.header.params[i]) for i in missed})


def _never_called(run: Run, missed: Sequence[int]) -> list[int]:
    """Those whose module gave no output in any sampled step; none where no output was seen at all."""
    called = {site.site for i, site in enumerate(run.sites) if any(s.at("act_rms", i) is not None for s in run.steps)}
    return [i for i in missed if called and run.header.params[i].site not in called]


def named(params: Sequence[Param]) -> str:
    """The first names, and how many there are more."""
    names = [param.name for param in params[:NAMED]]
    more = len(params) - len(names)
    if more:
        return f"{', '.join(names)} and {more} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _elements(run: Run, indices: Sequence[int]) -> int:
    return sum(math.prod(run.header.params[i].shape) for i in indices)


def _places(run: Run, missed: Sequence[int]) -> list[Where]:
    """The modules that own them, each once; one that the tape has not seen has a name only."""
    seen = {site.site: where(site) for site in reversed(run.sites)}
    owners = dict.fromkeys(run.header.params[i].site for i in missed)
    return [seen.get(owner, Where(owner, "", None)) for owner in owners]
