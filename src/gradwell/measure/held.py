"""What optimizers hold, and which of it the loss reaches; pure functions of a run's records."""

from __future__ import annotations

from gradwell.records.run import Param, Run


def unreached(run: Run) -> set[int]:
    """The parameters that got no gradient in any sampled step and that no optimizer has moved.

    With several backward passes a step only the first is sampled; optimizers leave what has no gradient where it is.
    """
    left = set(range(len(run.header.params)))
    for step in run.steps:
        grads, updates = (step.all_of(name, len(run.header.params)) for name in ("grad_rms", "update_rms"))
        left = {i for i in left if grads[i] is None and not updates[i]}
        if not left:
            break
    return left


def held(run: Run) -> list[int]:
    """The parameters that an optimizer holds and that are not frozen."""
    return [i for i, param in enumerate(run.header.params) if param.group is not None and not param.frozen]


def astray(run: Run, without: set[int]) -> list[int]:
    """The parameters that get a gradient and that no optimizer holds, where nothing that one holds is reached.

    `without`: the `unreached` ones. Empty where an optimizer has anything to step on, as in a frozen net with a head.
    """
    own = held(run)
    if not own or not without.issuperset(own):
        return []
    return [i for i, param in enumerate(run.header.params) if param.group is None and i not in without]


def owner(param: Param) -> str | None:
    """The optimizer of a group that is written OPTIMIZER.GROUP, None where there is one optimizer only."""
    name, dot, _ = (param.group or "").partition(".")
    return name if dot else None


def took_sampled_steps(run: Run) -> set[str]:
    """The optimizers that took one of the sampled steps, by their place in the header; empty where it is not known."""
    by_step: dict[int, int] = {}
    for event in run.events:
        if event.event == "losses":
            numbers = event.detail.get("optimizers", [0] * len(event.detail["values"]))
            by_step.update(enumerate(numbers, start=event.step))
    return {str(by_step[step.step]) for step in run.steps if step.step in by_step}
