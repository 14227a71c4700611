"""One pass over a batch to learn what a model does: which leaf is called when, what is a gate, where branches end.

Module order says little (a list may be called in any order, and functions have no place in it); a pass says it all.
The pass leaves no trace: buffers, modes, gradients and random numbers are put back.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradwell.errors import Refused
from gradwell.probe import kinds
from gradwell.probe.graph import Graph, Key
from gradwell.probe.names import Names
from gradwell.probe.preserve import preserved
from gradwell.probe.tape import Tape, Visit
from gradwell.shelf import shelf
from gradwell.surgery.setup import TrainSetup


@dataclass
class Call:
    """One call of a leaf module, or of a functional activation inside the forward of module `name`.

    `activation`: id on the shelf, "" for others. `in_shape`: of a module's first tensor; () for a function. `number`:
    the how-manyeth call of `function` in one run of that forward (from 0). `gate`: the output is multiplied with
    another signal.
    """

    name: str
    kind: str
    role: str
    function: str = ""
    number: int = 0
    activation: str = ""
    gate: bool = False
    in_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()
    keys: list[Key] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str, int]:
        """What names the call in the model."""
        return self.name, self.function, self.number


@dataclass
class Branch:
    """A path beside a shortcut: its calls in order, and the last one, to which a scale can be tied."""

    end: Call
    calls: list[Call]


@dataclass
class Pass:
    """The calls of one forward pass in order, and the graph from its loss."""

    calls: list[Call]
    graph: Graph

    @property
    def weights(self) -> list[Call]:
        """Calls of weight layers."""
        return [call for call in self.calls if call.role == "weight"]

    @property
    def hidden_weights(self) -> list[Call]:
        """Calls of weight layers with another one between them and the loss: not the last layer of any output."""
        return [call for call in self.weights if self._weights_after(call) > 1]

    @property
    def hidden_activations(self) -> list[Call]:
        """Activations with a weight layer between them and the loss, gates left out; all where there is no such layer.

        The order of the calls would not do: of two outputs the first one's activation comes before the second's layer.
        """
        whole = not self.weights
        return [c for c in self.calls if c.activation and not c.gate and (whole or self._weights_after(c))]

    @property
    def activation(self) -> str:
        """Id of the most frequent hidden activation, "" without one."""
        found = Counter(call.activation for call in self.hidden_activations if call.activation != "identity")
        return found.most_common(1)[0][0] if found else ""

    @property
    def output_activations(self) -> list[Call]:
        """Activations with no weight layer between them and the loss; none where there is no such layer at all."""
        ends = [call for call in self.calls if self.weights and not self._weights_after(call)]
        return [call for call in ends if call.activation and call.activation != "identity"]

    def _weights_after(self, call: Call) -> int:
        """Weight layers on the longest way from a call to the loss, itself included."""
        return max(self._depth[key[0]] for key in call.keys)

    @cached_property
    def _depth(self) -> dict[int, int]:
        return self.graph.depth({key[0] for call in self.weights for key in call.keys})

    def branches(self) -> list[Branch]:
        """The paths beside shortcuts, in order: sums of a signal with something computed from it."""
        by_node: dict[int, list[Call]] = {}
        for call in self.calls:
            for key in call.keys:
                by_node.setdefault(key[0], []).append(call)
        found = []
        for seq in self.graph.order:
            keys = [key for key in self.graph.edges[seq] if key is not None]
            if self.graph.name(seq) == "AddBackward0" and len(keys) == 2 and not self._scalar(seq):
                branch = self._branch(keys[0], keys[1], by_node)
                if branch is not None:
                    found.append(branch)
        return found

    def _scalar(self, seq: int) -> bool:
        """True for a sum of two numbers: two losses, whose layers stand beside each other and not beside a shortcut."""
        return bool(math.prod(self.graph.nodes[seq]._input_metadata[0].shape) == 1)

    def _branch(self, a: Key, b: Key, by_node: dict[int, list[Call]]) -> Branch | None:
        above_a, above_b = self._ancestors(a), self._ancestors(b)
        if not any(node in by_node for node in above_a & above_b):
            return None  # two sources are added, an embedding and its positions: no shortcut
        sides = [(a, above_a - above_b), (b, above_b - above_a)]
        insides = [[call for n in sorted(nodes) for call in by_node.get(n, [])] for _, nodes in sides]
        number = 0 if _working(insides[0]) > _working(insides[1]) else 1
        calls, holds = insides[number], _working(insides[number]) > 0
        end = self._end(sides[number][0], by_node)
        if end in calls[1:] and "Dropout" in end.kind:
            end = calls[calls.index(end) - 1]  # dropout is linear, and the layer before has a name that says more
        return Branch(end, calls) if end is not None and holds and end in calls else None

    def _ancestors(self, key: Key) -> set[int]:
        """The node and all it was computed from."""
        seen: set[int] = set()
        stack = [key[0]]
        while stack:
            seq = stack.pop()
            if seq not in seen:
                seen.add(seq)
                stack += [k[0] for k in self.graph.edges[seq] if k is not None]
        return seen

    def _end(self, key: Key, by_node: dict[int, list[Call]]) -> Call | None:
        """The call whose output this is, seen through factors and views."""
        seq = key[0]
        while seq not in by_node:
            keys = [k for k in self.graph.edges[seq] if k is not None]
            if len(keys) != 1:
                return None
            seq = keys[0][0]
        return by_node[seq][-1]


def _working(calls: list[Call]) -> int:
    """Number of layers that compute something with weights."""
    return sum(call.role == "weight" or "Attention" in call.kind for call in calls)


def observe(setup: TrainSetup) -> Pass:
    """Run the loss once on the first batch and note the calls; raises `Refused` without data."""
    model = setup.model
    batch = setup.batch()
    names = Names()
    names.root(model, "")
    tape = Tape(names)
    entered: list[Entry] = []
    handles = [module.register_forward_pre_hook(_Enter(entered, tape, name)) for name, module in model.named_modules()]
    with preserved(model), torch.enable_grad():
        tape.start()
        try:
            loss = setup.loss_fn(model, batch)
        finally:
            tape.stop()
            for handle in handles:
                handle.remove()
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        raise Refused("loss_fn gave no loss with a gradient on this model, so nothing can be learned about its layers.")
    graph = Graph([loss.grad_fn])
    own = {name: name for name, _ in model.named_modules(remove_duplicate=False)} | {type(model).__name__: ""}
    return Pass(_calls(tape.visits, entered, graph, own), graph)


class Entry(NamedTuple):
    """A forward began: after how many visits, of which module, on a tensor of which shape."""

    start: int
    name: str
    shape: tuple[int, ...]


class _Enter:
    """Notes where the forward of a module began."""

    def __init__(self, entered: list[Entry], tape: Tape, name: str) -> None:
        self.entered, self.tape, self.name = entered, tape, name

    def __call__(self, _: nn.Module, args: Any) -> None:
        shape = next((tuple(arg.shape) for arg in args if isinstance(arg, Tensor)), ())
        self.entered.append(Entry(len(self.tape.visits), self.name, shape))


def _calls(visits: list[Visit], entered: list[Entry], graph: Graph, own: dict[str, str]) -> list[Call]:
    """`own`: the model's modules by the names of the tape, where the model itself goes by its class."""
    gated = _gated(graph)
    calls: list[Call] = []
    for index, visit in enumerate(visits):
        keys = [key for key, _ in visit.where_out if key[0] in graph.nodes]
        function = visit.kind if visit.name.endswith("()") else ""
        owner = own.get(visit.name.rpartition(".")[0] if function else visit.name)
        if not keys or owner is None:
            continue  # the loss does not see it, or it is no part of the model
        call = Call(owner, visit.kind, visit.role, function, keys=keys, out_shape=visit.out_shape)
        known = kinds.activation_names().get(visit.kind)
        call.activation = known[0] if known and visit.role == "activation" else ""
        begun = max((e for e in entered if e.name == call.name and e.start <= index), default=Entry(0, "", ()))
        if call.function:
            call.number = sum(v.name == visit.name for v in visits[begun.start : index])
        else:
            call.in_shape = begun.shape
        saturates = call.activation and shelf("gradwell.theory.activations")[call.activation].fact("SATURATES")
        call.gate = bool(saturates) and any(key in gated for key in keys)
        calls.append(call)
    return calls


def _gated(graph: Graph) -> set[Key]:
    """Keys that go nowhere but into a product with another computed signal."""

    def multiplies(seq: int) -> bool:
        return graph.name(seq) == "MulBackward0" and sum(key is not None for key in graph.edges[seq]) == 2

    return {key for key, edges in graph.senders.items() if all(multiplies(seq) for seq, _ in edges)}
