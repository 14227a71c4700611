"""The backward half of a tape: hooks on the nodes that matter, the gradient at every site, and the way it takes.

The graph of the loss is walked once when a backward begins. A hook measures the gradient that arrives at a site's
output, the gradient that its call sends on, and, where the way forks, the share of each branch. The hooks return
nothing, so no gradient changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwell.measure.flow import spread_flow
from gradwell.measure.units import fork_shares, slope_statistics, unit_statistics
from gradwell.probe import kinds, sizes
from gradwell.probe.graph import Edge, Graph, Key
from gradwell.probe.recurrent import Asked, asked, asked_of_cell, lag_profile, some_samples
from gradwell.probe.tape import Handle, Tape, Visit

MOST_WAITING = 1024
"""Small gradients that wait to be measured together, at most: 64 MiB of them."""

Grads = tuple[Tensor | None, ...]
Task = Callable[[Grads], None]


class Backward:
    """Measures one backward pass over the visits of a tape.

    After `finish`: every visit has `delta`, `left`, `isotropic`, `flow`; `source` and `output` are the indices of
    the deepest site and of the model's output, None where there is no path of two weights; `beyond` holds the
    indices of sites between the output and the loss; `leaves` are the tensors whose `.grad` the backward writes,
    `parameters` those that were not inputs; `lags`
    is the lag profile of each fused recurrent layer, the reverse direction under `name:reverse`, `heard` and `links`
    what the loss asks of it, and of each cell.
    """

    def __init__(self, tape: Tape, losses: Sequence[Tensor]) -> None:
        self.graph = Graph([loss.grad_fn for loss in losses])
        self.lags: dict[str, list[float]] = {}
        self.heard: dict[str, list[float]] = {}
        self.links: dict[str, list[float]] = {}
        self.visits = tape.take(self._reaches)
        self._given = [tape.given.pop(turn) for turn in sorted({v.turn for v in self.visits}) if turn in tape.given]
        self.input_rms = self._given[0].rms if self._given else None
        self.input_mean = self._given[0].mean if self._given else None
        self.leaves = list(self.graph.parameters.values())
        asked = tape.inputs_with_gradient
        self.parameters = [p for p in self.leaves if id(p) not in asked]
        self.source: int | None = None
        self.output: int | None = None
        self.beyond: set[int] = set()
        self.weights: dict[int, tuple[float, sizes.Array | None]] = {}
        self._tape = tape
        self._path: set[int] = set()
        self._pre: dict[int, list[Task]] = {}
        self._post: dict[int, list[Task]] = {}
        self._handles: list[Any] = []
        self._telescoped: list[tuple[Visit, Visit]] = []
        self._forks: list[_Fork] = []
        self._weights: dict[Key, float] = {}
        self._kept: dict[Key, Tensor] = {}
        self._waiting: list[Visit] = []
        self._pairs: list[tuple[Visit, Visit, int]] = []  # waiting neighbours, with the gradient that goes between them
        self._plan()

    # ------------------------------------------------------------------ before

    def _plan(self) -> None:
        borders = {key for visit in self.visits for key in visit.outputs}
        owned = self._leaves(borders)
        self._add_ownerless(owned, borders)
        self._find_path()
        self._watch_sites()
        self._watch_forks()
        self._watch_time()
        nodes = self.graph.nodes
        seen: set[Visit] = set()
        for visit, below, j in self._pairs:
            if visit not in seen and below not in seen:
                ((seq, number),) = visit.outputs
                self._handles.append(nodes[seq].register_hook(_keep_both(visit, number, below, j)))
                seen |= {visit, below}
        for visit in self._waiting:
            if visit not in seen:
                ((seq, number),) = visit.outputs
                self._handles.append(nodes[seq].register_prehook(_keep_arrived(visit, number)))
        for tasks, register in ((self._pre, "register_prehook"), (self._post, "register_hook")):
            for seq, jobs in tasks.items():
                self._handles.append(getattr(nodes[seq], register)(self._tape._guarded(_hook(jobs))))

    def _reaches(self, visit: Visit) -> bool:
        """Turn handles into keys of this backward, a tensor's own or else its base's; True where there are some."""
        visit.outputs = self._reached(visit.where_out)
        visit.inputs = self._reached(visit.where_in)
        return bool(visit.outputs)

    def _reached(self, handles: Sequence[Handle]) -> list[Key]:
        nodes = self.graph.nodes
        if len(handles) == 1 and handles[0][0][0] in nodes:
            return [handles[0][0]]
        keys = [own if own[0] in nodes else base for own, base in handles]
        return list(dict.fromkeys(key for key in keys if key is not None and key[0] in nodes))

    def _leaves(self, borders: set[Key]) -> set[int]:
        """Find the edges by which the gradient leaves each visit; returns the nodes that lie inside some visit."""
        owned: set[int] = set()
        for visit in self.visits:
            visit.passes = all(key in visit.inputs for key in visit.outputs)
            if not visit.passes:
                inside, visit.exits = self.graph.inside(visit.outputs, visit.inputs, borders)
                owned |= inside
                if visit.role == "norm":
                    _read_norm(self.graph, visit, inside)
        return owned

    def _add_ownerless(self, owned: set[int], borders: set[Key]) -> None:
        """Sites for activations and weights outside every leaf: functions between calls, models without modules."""
        known = kinds.activation_names()
        found: list[Visit] = []
        for seq in self.graph.order:
            if seq in owned:
                continue
            node = self.graph.name(seq)
            if node in known and known[node][0] not in kinds.AMBIGUOUS:
                visit = Visit(f"{known[node][0]}()", known[node][0], "activation")
            elif node in kinds.WEIGHT_NODES and (parameter := self.graph.parameter_of(seq)) is not None:
                visit = Visit(self._tape.names.parameter(parameter)[0], node.removesuffix("Backward0"), "weight")
                visit.weight = parameter
            else:
                continue
            visit.outputs = [(seq, 0)]
            borders.add((seq, 0))
            found.append(visit)
        for visit in found:
            _, visit.exits = self.graph.inside(visit.outputs, set(), borders)
        if found:
            self.visits = sorted([*self.visits, *found], key=lambda v: min((k[0] for k in v.outputs), default=0))
        calls: dict[str, int] = {}
        for visit in self.visits:
            visit.call = calls.get(visit.name, 0)
            calls[visit.name] = visit.call + 1

    def _find_path(self) -> None:
        """The deepest site, the one with most weights between it and the loss, and the nodes from there to the loss."""
        heads = {
            max(key[0] for key in visit.outputs): i
            for i, visit in enumerate(self.visits)
            if visit.outputs and (visit.role in ("weight", "source") or visit.kind in _RECURRENT)
        }
        depth = self.graph.depth(set(heads))
        if heads:
            best = max(heads, key=lambda seq: (depth[seq], -seq))
            self.source = heads[best]
            self._path = self.graph.descendants(key[0] for key in self.visits[self.source].outputs)

    def _watch_sites(self) -> None:
        graph, path = self.graph, self._path
        owner: dict[Key, Visit] = {}
        for visit in self.visits:
            if len(visit.outputs) == 1 and 0 < visit.numel <= sizes.SMALL and len(self._waiting) < MOST_WAITING:
                visit.waits = True
                self._waiting.append(visit)
            for output in visit.outputs:
                owner.setdefault(output, visit)
                if not visit.waits:
                    self._pre.setdefault(output[0], []).append(_arrive(visit, output[1]))
        for visit in self.visits:
            exits = [(e, key) for e in visit.exits if (key := graph.edges[e[0]][e[1]]) is not None and key[0] in path]
            visit.exits = [edge for edge, _ in exits]
            if len(exits) == 1:
                (seq, j), target = exits[0]
                below = owner.get(target)
                if below is not None and len(graph.senders[target]) == 1 and len(below.outputs) == 1:
                    self._telescoped.append((visit, below))  # what leaves here is what arrives there
                    if visit.waits and below.waits and seq == visit.outputs[0][0]:
                        self._pairs.append((visit, below, j))
                    if visit.role == "activation" and not (visit.waits and below.waits):
                        self._post.setdefault(seq, []).append(_slope(visit, j))
                    continue
                self._post.setdefault(seq, []).append(_depart(visit, j))
            elif exits:
                parts = _Parts(visit, [key for _, key in exits])
                for (seq, j), target in exits:
                    self._post.setdefault(seq, []).append(parts.task(j, target))

    def _watch_forks(self) -> None:
        if self.source is None:
            return
        for _, edges in self.graph.forks(self._path):
            fork = _Fork(edges)
            self._forks.append(fork)
            for seq, j in edges:
                self._post.setdefault(seq, []).append(fork.task((seq, j)))
        numbers: dict[int, set[int]] = {}
        for seq, number in self.graph.senders:
            if seq in self._path:
                numbers.setdefault(seq, set()).add(number)
        for seq, several in numbers.items():
            if len(several) > 1:
                self._pre.setdefault(seq, []).append(_weigh(seq, several, self._weights))

    def _watch_time(self) -> None:
        """Keep the gradients at the outputs of recurrent layers, and at the last of a cell's."""
        fused = [visit for given in self._given for _, _, visit in given.recurrent.values()]
        for visit in [*fused, *self._last_calls().values()]:
            for key in self._reached(visit.where_out):
                self._pre.setdefault(key[0], []).append(_keep(self._kept, key))

    def _last_calls(self) -> dict[str, Visit]:
        """The last call of each recurrent cell that was called step by step."""
        return {visit.name: visit for visit in self.visits if visit.fed is not None}

    # ------------------------------------------------------------------ after

    def finish(self) -> None:
        """Take the hooks off and turn what they saw into numbers."""
        self.close()
        _finish_arrivals(self._waiting)
        for visit, below in self._telescoped:
            visit.left = below.delta
        _divide_all([(v, below) for v, below in self._telescoped if v.role == "activation" and v.ratio is None])
        for visit in self._waiting:
            visit.arrived = visit.array = None
        for visit in self.visits:
            if visit.passes:
                visit.left, visit.isotropic = visit.delta, 0.0
        _finish_units(self.visits)
        _finish_slopes(self.visits)
        self.weights = _finish_weights(self.visits)
        if self.source is not None:
            self._find_flow(self.visits[self.source])
        self._find_time()
        self._given, self._kept = [], {}
        self.graph = Graph([])

    def _find_time(self) -> None:
        for name, (module, args, visit) in {k: v for g in self._given for k, v in g.recurrent.items()}.items():
            found: dict[str, Asked] = asked(module, args[0], *self._kept_at(visit)[:2])
            for direction, profile in lag_profile(module, *args).items():
                full = name if direction == "forward" else f"{name}:{direction}"
                self.lags[full] = profile
                if direction in found:
                    self.heard[full], self.links[full] = found[direction]
        for name, last in self._last_calls().items():
            (grad, *_) = self._kept_at(last)
            fed = [visit.fed for visit in self.visits if visit.name == name and visit.fed is not None]
            if grad is not None and len(fed) > 1:
                self.links[name] = asked_of_cell(fed, some_samples(grad))

    def _kept_at(self, visit: Visit) -> list[Tensor | None]:
        """The gradients at a visit's outputs, in the order in which it returned them; None where none came."""
        keys = [self._reached([handle]) for handle in visit.where_out]
        return [self._kept.get(key[0]) if key else None for key in (*keys, [], [])]

    def keep(self, handle: Any) -> Any:
        """Take this hook off together with the others."""
        self._handles.append(handle)
        return handle

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _find_flow(self, source: Visit) -> None:
        shares = {edge: share for fork in self._forks for edge, share in fork.shares().items()}
        plain = not shares and not self._weights and all(len(visit.outputs) <= 1 for visit in self.visits)
        if plain:  # a chain, through which all of it flows
            flow = dict.fromkeys((key for visit in self.visits for key in visit.outputs if key[0] in self._path), 1.0)
        else:
            flow = spread_flow(self.graph.order, self.graph.edges, self._path, source.outputs, shares, self._weights)
        for visit in self.visits:
            visit.flow = sum(flow.get(key, 0.0) for key in visit.outputs)
        through = [
            i for i, v in enumerate(self.visits)
            if v.role == "weight" and v.delta is not None and v.outputs and v.outputs[0][0] in self._path
        ]  # fmt: skip
        trunk = [i for i in through if (self.visits[i].flow or 0.0) > 0.5]
        if not through:
            return
        self.output = trunk[-1] if trunk else max(through, key=lambda i: self.visits[i].flow or 0.0)
        last = {key[0] for key in self.visits[self.output].outputs}
        beyond = self.graph.descendants(last) - last
        self.beyond = {i for i, v in enumerate(self.visits) if any(key[0] in beyond for key in v.outputs)}


_RECURRENT = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}


def _hook(jobs: list[Task]) -> Callable[..., None]:
    """One hook for all that is to be measured at a node; the first argument holds the gradients in question."""
    if len(jobs) == 1:
        only = jobs[0]
        return lambda grads, *_: only(grads)

    def run(grads: Grads, *_: Any) -> None:
        for job in jobs:
            job(grads)

    return run


def _arrive(visit: Visit, number: int) -> Task:
    """dLoss/d(output) of a visit; several outputs add up in squares."""

    def task(grads: Grads) -> None:
        grad = grads[number]
        if grad is None:
            return
        norm = sizes.l2(grad)
        visit.delta = norm if visit.delta is None else math.hypot(visit.delta, norm)
        if visit.role == "activation":
            visit.entered = sizes.flat_sample(grad)

    return task


def _keep_arrived(visit: Visit, number: int) -> Task:
    """What arrives at a small site waits to be measured with others: the engine adds to no gradient that is held."""

    def task(grads: Grads) -> None:
        visit.arrived = grads[number]

    return task


def _keep_both(visit: Visit, number: int, below: Visit, j: int) -> Callable[[Grads, Grads], None]:
    """A hook is dear: the one behind a node of one call sees what arrives there and what arrives at the call below."""

    def task(sent: Grads, arrived: Grads) -> None:
        visit.arrived, below.arrived = arrived[number], sent[j]

    return task


def _keep(kept: dict[Key, Tensor], key: Key) -> Task:
    def task(grads: Grads) -> None:
        grad = grads[key[1]]
        if grad is not None:
            kept[key] = grad.detach()

    return task


def _slope(visit: Visit, j: int) -> Task:
    """phi' of an activation: gradient sent on over gradient arrived, element by element of a sample."""

    def task(grads: Grads) -> None:
        grad = grads[j]
        if grad is not None:
            _divide(visit, grad)

    return task


def _divide(visit: Visit, sent: Tensor) -> None:
    arrived = visit.entered if visit.arrived is None else sizes.flat_sample(visit.arrived)
    visit.entered = None
    if arrived is None:
        return
    on = sizes.flat_sample(sent)
    if on.shape == arrived.shape:
        with np.errstate(all="ignore"):  # 0/0 is an element without a gradient
            visit.ratio = on / arrived


def _depart(visit: Visit, j: int) -> Task:
    """The gradient that a visit sends to its input."""
    slope = _slope(visit, j) if visit.role == "activation" else None

    def task(grads: Grads) -> None:
        grad = grads[j]
        if grad is not None:
            visit.left = sizes.l2(grad)
            if slope is not None:
                slope(grads)

    return task


class _Parts:
    """A gradient that leaves a visit by several edges: vectors add up where they go to the same tensor."""

    def __init__(self, visit: Visit, keys: list[Key]) -> None:
        self.visit = visit
        self.missing = len(keys)
        self.sums: dict[Key, Tensor] = {}

    def task(self, j: int, key: Key) -> Task:
        def task(grads: Grads) -> None:
            grad = grads[j]
            self.missing -= 1
            if grad is not None:
                with torch.no_grad():
                    self.sums[key] = grad.detach() if key not in self.sums else self.sums[key] + grad.detach()
            if self.missing == 0:
                self._done()

        return task

    def _done(self) -> None:
        visit = self.visit
        visit.left = math.sqrt(sum(sizes.l2(total) ** 2 for total in self.sums.values()))
        if visit.role == "activation" and len(self.sums) == 1:
            _divide(visit, next(iter(self.sums.values())))
        self.sums, visit.entered = {}, None


class _Fork:
    """The gradients that come together at one tensor. Share of a branch k: <d_k, d> / |d|^2 with d = sum_k d_k.

    Taken on a sample of the elements; the shares add up to 1, a negative one is destructive interference.
    """

    def __init__(self, edges: list[Edge]) -> None:
        self.edges = edges
        self.parts: dict[Edge, sizes.Sample] = {}

    def task(self, edge: Edge) -> Task:
        def task(grads: Grads) -> None:
            grad = grads[edge[1]]
            if grad is not None and grad.numel():
                self.parts[edge] = sizes.flat_sample(grad)

        return task

    def shares(self) -> dict[Edge, float]:
        if not self.parts:
            return dict.fromkeys(self.edges, 1 / len(self.edges))
        if len(self.parts) == 1:
            return {edge: float(edge in self.parts) for edge in self.edges}
        found = fork_shares([sizes.as_array(part) for part in self.parts.values()])
        if found is None:
            return {edge: float(edge in self.parts) / len(self.parts) for edge in self.edges}
        return dict.fromkeys(self.edges, 0.0) | dict(zip(self.parts, found, strict=True))


def _weigh(seq: int, numbers: set[int], weights: dict[Key, float]) -> Task:
    """A node with several outputs (split, unbind): its flow goes to them by the squares of their gradients."""

    def task(grads: Grads) -> None:
        squares = {n: sizes.l2(g) ** 2 for n in numbers if (g := grads[n]) is not None}
        total = sum(squares.values())
        for n in numbers:
            weights[(seq, n)] = squares.get(n, 0.0) / total if total > 0 else 1 / len(numbers)

    return task


_SAVED_RSTD = {
    "NativeLayerNormBackward0": "_saved_result2",
    "NativeBatchNormBackward0": "_saved_result2",
    "CudnnBatchNormBackward0": "_saved_result2",
    "NativeGroupNormBackward0": "_saved_result2",
    "FusedRmsNormBackward0": "_saved_result1",
}


def saved(node: Any, name: str | None) -> Any:
    """What a node has saved; None where that is packed by hooks, since reading it would run the user's own code:
    checkpointing computes its segment once more, running statistics and random numbers included.
    """
    raw = None if name is None else getattr(node, f"_raw{name}", None)
    if raw is None or getattr(raw, "unpack_hook", None) is not None:
        return None
    return getattr(node, name or "")


def _read_norm(graph: Graph, visit: Visit, inside: set[int]) -> None:
    """Isotropic gain of a normalisation from the 1/s that its node saved: 1/2 log10( mean g^2 (n-2)/n mean 1/s^2 )."""
    for seq in inside:
        name = graph.name(seq)
        rstd = saved(graph.nodes[seq], _SAVED_RSTD.get(name))
        if not isinstance(rstd, Tensor) or rstd.numel() == 0:
            continue
        gain = 1.0 if visit.gain is None else visit.gain.detach().double().square().mean().item()
        count, lost = visit.numel // rstd.numel(), 1 if "Rms" in name else 2
        mean_square = rstd.detach().double().square().mean().item()
        square = mean_square * gain * (count - lost) / max(count, 1)
        if square > 0 and math.isfinite(square):
            visit.isotropic = 0.5 * math.log10(square)


def _finish_arrivals(waiting: list[Visit]) -> None:
    """The sizes of the gradients that were kept."""
    came = [(visit, visit.arrived) for visit in waiting if visit.arrived is not None]
    for (visit, _), (size, array) in zip(came, sizes.measured([arrived for _, arrived in came]), strict=True):
        visit.delta, visit.array = size, array


def _divide_all(pairs: list[tuple[Visit, Visit]]) -> None:
    """Gradient sent on / gradient arrived of activations, each with the site that gets what it sends."""
    with np.errstate(all="ignore"):  # 0/0 is an element without a gradient
        for visit, below in pairs:
            if visit.array is None or below.array is None:
                if below.arrived is not None:
                    _divide(visit, below.arrived)
                continue
            on, arrived = sizes.thinned_flat(below.array), sizes.thinned_flat(visit.array)
            if on.shape == arrived.shape:
                visit.ratio = on / arrived


def _finish_units(visits: list[Visit]) -> None:
    sampled = [visit for visit in visits if visit.values is not None]
    rows = unit_statistics([sizes.as_array(v.values) for v in sampled if v.values is not None])
    for visit, row in zip(sampled, rows, strict=True):
        visit.mean, visit.zero, visit.spread = row
        visit.values = None


def _finish_slopes(visits: list[Visit]) -> None:
    for visit in visits:
        if visit.ratio is not None:
            ceiling = kinds.largest_slope(visit.kind)
            square, visit.saturated = slope_statistics(sizes.as_array(visit.ratio), ceiling)
            visit.ratio = None
            if square > 0:
                visit.isotropic = 0.5 * math.log10(square)


def _finish_weights(visits: list[Visit]) -> dict[int, tuple[float, sizes.Array | None]]:
    """Isotropic gains of the weights; returns their norms and memory by `id` of the tensor."""
    heavy = [(visit, visit.weight) for visit in visits if visit.weight is not None]
    each = list({id(weight): weight for _, weight in heavy}.values())
    found = dict(zip(map(id, each), sizes.looked_at(each), strict=True))
    for visit, weight in heavy:
        visit.isotropic = kinds.isotropic_weight(weight, found[id(weight)][0], visit.kind, visit.out_shape)
        visit.weight = None
    return found
