"""The autograd graph of one backward as plain lists: who feeds whom, which forks, what lies where.

Words: a *key* is one output of one autograd node, (sequence number, output number); the sequence number grows
with the forward order and names a node without holding it alive. An *edge* (node, j) is the j-th gradient that
a node sends back. A key with several edges into it is a *fork* of the forward pass (a skip connection, say).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

Key = tuple[int, int]
Edge = tuple[int, int]  # (sequence number of the sending node, index among its next_functions)


def key_of(tensor: Any) -> Key | None:
    """The key of a tensor, None for a leaf or a constant.

    `grad_fn` is evaluated first: a stale view has no valid node before that (PITFALLS P3).
    """
    node = tensor.grad_fn
    return None if node is None else (node._sequence_nr(), tensor.output_nr)


_AccumulateGrad = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # torch leaves it out


class Graph:
    """All nodes that a backward will visit, in forward order (ascending sequence number).

    `nodes`: node by sequence number; `edges[seq]`: keys that the node sends gradients to, None for what leads
    nowhere; `senders[key]`: edges into a key; `leaves[seq]`: the tensors that the node accumulates into or reaches
    through transposes and views only.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.nodes: dict[int, Any] = {}
        self.edges: dict[int, list[Key | None]] = {}
        self.senders: dict[Key, list[Edge]] = {}
        self.parameters: dict[int, Any] = {}
        self.leaves: dict[int, list[tuple[int, Any]]] = {}
        self.roots = [root for root in roots if root is not None]
        self.late = False
        """True where a node has a lower number than one it sends to: a stale view gets its node when first used."""
        self._walk()
        self.order = self._topological() if self.late else sorted(self.nodes)

    def _walk(self) -> None:
        stack = list(self.roots)
        nodes, all_edges, senders = self.nodes, self.edges, self.senders
        while stack:
            node = stack.pop()
            seq = node._sequence_nr()
            if seq in nodes:
                continue
            nodes[seq] = node
            keys: list[Key | None] = []
            all_edges[seq] = keys
            for j, (target, number) in enumerate(node.next_functions):
                if target is None:
                    keys.append(None)
                elif type(target) is _AccumulateGrad:  # a parameter, or another leaf that wants its gradient
                    variable = target.variable
                    self.parameters[id(variable)] = variable
                    self.leaves.setdefault(seq, []).append((j, variable))
                    keys.append(None)
                else:
                    below = target._sequence_nr()
                    key = (below, number)
                    keys.append(key)
                    if below > seq:
                        self.late = True
                    if key in senders:
                        senders[key].append((seq, j))
                    else:
                        senders[key] = [(seq, j)]
                    if below not in nodes:
                        stack.append(target)

    def _topological(self) -> list[int]:
        """Receivers before senders, and by number wherever that is the same."""
        order: list[int] = []
        done: set[int] = set()
        for first in sorted(self.nodes):
            stack = [first]
            while stack:
                seq = stack[-1]
                missing = [key[0] for key in self.edges[seq] if key is not None and key[0] not in done]
                if seq not in done and missing:
                    stack += missing
                    continue
                stack.pop()
                if seq not in done:
                    done.add(seq)
                    order.append(seq)
        return order

    def descendants(self, seqs: Iterable[int]) -> set[int]:
        """The nodes that lie between the given nodes and the loss, themselves included."""
        found = {seq for seq in seqs if seq in self.nodes}
        if not found:
            return found
        start = -1 if self.late else min(found)
        for seq in self.order:
            if seq > start and seq not in found:
                for key in self.edges[seq]:
                    if key is not None and key[0] in found:
                        found.add(seq)
                        break
        return found

    def depth(self, weights: set[int]) -> dict[int, int]:
        """For each node the largest number of `weights` nodes on a path from it to the loss, itself included."""
        depth: dict[int, int] = {}
        for seq in reversed(self.order):
            here = depth.get(seq, 0) + (seq in weights)
            depth[seq] = here
            for key in self.edges[seq]:
                if key is not None and depth.get(key[0], 0) < here:
                    depth[key[0]] = here
        return depth

    def inside(self, outputs: Iterable[Key], inputs: Collection[Key], borders: set[Key]) -> tuple[set[int], list[Edge]]:
        """The nodes of a leaf and the edges by which the gradient leaves it.

        The walk starts at the leaf's output keys and stops at its input keys and at the output keys of other
        leaves (`borders`): the latter matter where inputs came as keyword arguments, which hooks cannot see.
        """
        own = set(outputs)
        if len(own) == 1:
            near = self._near(next(iter(own)), inputs, borders)
            if near is not None:
                return near
        stack = [key[0] for key in own]
        seen: set[int] = set()
        exits: list[Edge] = []
        while stack:
            seq = stack.pop()
            if seq in seen:
                continue
            seen.add(seq)
            for j, key in enumerate(self.edges[seq]):
                if key is None or key in own:
                    continue
                if key in inputs or key in borders:
                    exits.append((seq, j))
                else:
                    stack.append(key[0])
        return seen, exits

    def _near(self, output: Key, inputs: Collection[Key], borders: set[Key]) -> tuple[set[int], list[Edge]] | None:
        """`inside` for a leaf of one node and such that lead to parameters only, as most are; None for any other."""
        seq = output[0]
        seen, exits = {seq}, []
        for j, key in enumerate(self.edges[seq]):
            if key is None or key == output:
                continue
            if key in inputs or key in borders:
                exits.append((seq, j))
            elif any(self.edges[key[0]]):
                return None
            else:
                seen.add(key[0])
        return seen, exits

    def name(self, seq: int) -> str:
        """The class of a node, `AddmmBackward0`."""
        return type(self.nodes[seq]).__name__

    def parameter_of(self, seq: int) -> Any:
        """The leaf tensor that a node multiplies with, directly or through a transpose, view or cast."""
        for _, variable in self.leaves.get(seq, []):
            if variable.dim() >= 2:
                return variable
        for key in self.edges[seq]:
            if key is not None and self.name(key[0]) in _LOOK_THROUGH and key[0] in self.leaves:
                return self.leaves[key[0]][0][1]
        return None

    def forks(self, within: set[int]) -> Iterator[tuple[Key, list[Edge]]]:
        """Keys inside a set of nodes whose gradient is the sum of several edges from that set."""
        for key, edges in self.senders.items():
            if len(edges) > 1 and key[0] in within:
                inner = [edge for edge in edges if edge[0] in within]
                if len(inner) > 1:
                    yield key, inner


_LOOK_THROUGH = {"TBackward0", "TransposeBackward0", "ViewBackward0", "PermuteBackward0", "ToCopyBackward0"}
