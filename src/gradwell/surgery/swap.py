"""Another activation in place of an old one, whether it is a module or a function in somebody's forward."""

from __future__ import annotations

from collections.abc import Sequence

from gradwell.errors import Refused
from gradwell.surgery.activations import elementwise
from gradwell.surgery.attach import add_part, functions_of, grow
from gradwell.surgery.observe import Call, observe
from gradwell.surgery.replace import become, like
from gradwell.surgery.setup import TrainSetup


def swap_hidden(setup: TrainSetup, to: str) -> None:
    """Swap every hidden activation of the most frequent kind; refused where there is none, or it is the new one."""
    elementwise(to)
    seen = observe(setup)
    old = seen.activation
    if not old:
        raise Refused("No activation stands before the last layer as a module or function, so there is none to swap.")
    if old == to:
        raise Refused(f"The hidden activation is {to} already; there is nothing to change.")
    keep = {call.place for call in seen.calls if call.gate} | {call.place for call in seen.output_activations}
    calls = [call for call in seen.hidden_activations if call.activation == old]
    shared = next((call for call in calls if call.place in keep), None)
    if shared is not None:
        raise Refused(
            f"{shared.name or shared.function!r} serves hidden layers and the output or a gate alike; "
            "give them activations of their own first."
        )
    swap_calls(setup, calls, to)


TAKES_LOGITS = {"LogSoftmaxBackward0", "BinaryCrossEntropyWithLogitsBackward0"}
"""Autograd nodes of losses that contain the squashing."""


def swap_output(setup: TrainSetup, to: str) -> None:
    """Swap what stands behind the last weight layer, where the loss takes logits; else refused."""
    seen = observe(setup)
    calls = seen.output_activations
    if not calls:
        raise Refused("No activation stands behind the last layer; the loss gets logits already.")
    behind = {seen.graph.name(seq) for seq in seen.graph.descendants(key[0] for key in calls[-1].keys)}
    if not behind & TAKES_LOGITS:
        raise Refused(
            f"The loss wants what {calls[0].activation} gives; take it off together with a change of the loss "
            "(cross_entropy or BCEWithLogitsLoss, which contain it)."
        )
    swap_calls(setup, calls, to)


def swap_calls(setup: TrainSetup, calls: Sequence[Call], to: str) -> None:
    """A new activation at each of these calls, one of its own for each module and each functional call."""
    done: set[tuple[str, str, int]] = set()
    for call in calls:
        if call.place in done:
            continue
        done.add(call.place)
        owner = setup.model.get_submodule(call.name)
        if call.function:
            name = add_part(setup, owner, "activation", elementwise(to))
            functions_of(owner).swap(call.function, call.number, name)
            grow(setup, owner.get_submodule(name).parameters())
        else:
            become(owner, like(elementwise(to), setup.model))
            grow(setup, owner.parameters())
