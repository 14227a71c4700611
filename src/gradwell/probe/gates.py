"""A second pass for level deep: gates on the backward of every layer, and random gradients in place of the loss's.

The forward pass is run once more in a form whose backward can be differentiated (`differentiable`). Its graph is then
walked backward many times with hooks on nodes, so that the forward pass needs no gate of its own: nothing of it is
wrapped, no view and no in-place operation is touched (PITFALLS P33). Gradients are taken at the deepest site only, so
that no `.grad` is written and no weight gradient is computed.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradwell.errors import NotMeasurable
from gradwell.measure.attribution import Path, follow
from gradwell.probe import sizes
from gradwell.probe.backward import Backward
from gradwell.probe.graph import Graph, Key
from gradwell.probe.names import Names
from gradwell.probe.tape import Tape, Visit
from gradwell.records.numbers import log10

Grads = tuple[Tensor | None, ...]
PROBES = 4
"""Random gradients: enough that a small batch gives a gain to a tenth."""
FARTHEST = {torch.float16: 14}
"""The loss is multiplied by at most 2 to this power, so that its format holds it; 100 where nothing is said."""


@contextmanager
def differentiable() -> Iterator[None]:
    """A forward pass in here has a backward that can be differentiated: attention as plain matrix products (the fused
    kernels have no second derivative) and no checkpoints.
    """
    with sdpa_kernel(SDPBackend.MATH), _without_checkpoints():
        yield


class _NoCheckpoint:
    """Stands in for torch.utils.checkpoint.CheckpointFunction."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: Any, *args: Any) -> Any:
        return function(*args)


def _no_checkpoint(*_: Any, **__: Any) -> Iterator[None]:
    yield


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """`torch.utils.checkpoint.checkpoint`, however it was imported, only calls its function."""
    home: Any = sys.modules.get("torch.utils.checkpoint")
    stand_ins = {"CheckpointFunction": _NoCheckpoint, "_checkpoint_without_reentrant_generator": _no_checkpoint}
    before = {name: getattr(home, name) for name in stand_ins if hasattr(home, name)}
    for name in before:
        setattr(home, name, stand_ins[name])
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(home, name, original)


class _Gate(torch.autograd.Function):
    """A gradient times a number, and the derivative in that number, summed in float64."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(grad, factor)
        return (grad * factor).to(grad.dtype)

    @staticmethod
    def backward(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        (tangent,) = tangents
        grad, factor = ctx.saved_tensors
        slope = (_real(tangent).double() * _real(grad).double()).sum()
        return (tangent * factor).to(tangent.dtype), slope.to(factor.device)


class Gated:
    """One forward pass and its backward, to be taken again and again.

    `total` is log10 |d_source| / |d_output| as known from a first pass, `output_size` the size of d_output there:
    the loss is scaled so that both ends lie evenly around 1 and neither a gradient nor its inverse leaves float32.
    Raises `NotMeasurable` where there is no way between two sites.
    """

    def __init__(
        self, model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Tensor], names: Names, *, total: float,
        output_size: float, during: Any,
    ) -> None:  # fmt: skip
        tape = Tape(names)
        with differentiable(), during:
            tape.start()
            try:
                loss = loss_fn(model, batch)
            finally:
                tape.stop()
        backward = Backward(tape, [loss])
        try:
            self.graph: Graph = backward.graph
            if backward.source is None:
                raise NotMeasurable("there is no way from a first layer to the loss.")
            self._source = _edges(self.graph, backward.visits[backward.source].outputs)
            self._balance = _power_of_two(loss.dtype, -total / 2)
            scale = _power_of_two(loss.dtype, -total / 2 - (log10(output_size) or 0.0))
            self._loss, self._scale = loss, torch.full_like(loss, scale)
            # The engine stops at the source, before its hooks.
            with self._hooked({seq: [_refuse_nested] for visit in backward.visits for seq, _ in visit.outputs}, {}):
                backward.visits[backward.source].delta = math.sqrt(_square(self._pull()))
        finally:
            backward.close()
        backward.finish()
        if backward.output is None or backward.output == backward.source:
            raise NotMeasurable("there is no way between two layers.")
        self.visits, self.source, self.output = backward.visits, backward.source, backward.output
        path = self.graph.descendants(key[0] for key in self.visits[self.source].outputs)
        self.layers = [
            i for i, visit in enumerate(self.visits)
            if i != self.source and i not in backward.beyond and _has_gain(visit, path)
        ]  # fmt: skip
        self._generator = torch.Generator().manual_seed(0)

    @property
    def total(self) -> float:
        """ln |d_source| / |d_output| in this pass."""
        return _ln_ratio(self.visits[self.source].delta, self.visits[self.output].delta)

    def _pull(self, *, create_graph: bool = False, roots: Any = None, seeds: Any = None) -> tuple[Tensor, ...]:
        """The gradient at the source, of the scaled loss or of other roots; one tensor for each output that has one."""
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [self._loss] if roots is None else roots, self._source, [self._scale] if seeds is None else seeds,
            retain_graph=True, create_graph=create_graph, allow_unused=True,
        )  # fmt: skip
        return tuple(grad for grad in found if grad is not None)

    @contextmanager
    def _hooked(self, before: dict[int, Any], after: dict[int, Any]) -> Iterator[None]:
        """Hooks on nodes: `before` they run, and `after`."""
        nodes = self.graph.nodes
        handles = [nodes[seq].register_prehook(_all(hooks)) for seq, hooks in before.items()]
        handles += [nodes[seq].register_hook(_all(hooks)) for seq, hooks in after.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------ who shrinks it

    def attribute(self, players: Sequence[int]) -> tuple[Path, float, list[int]]:
        """The Aumann-Shapley path of some visits, the wiring in ln, and those whose gate got no gradient."""
        gains = [_ln_ratio(self.visits[i].left, self.visits[i].delta) for i in players]
        home = self._loss.device
        factors = [torch.ones((), dtype=torch.float64, device=home, requires_grad=True) for _ in players]
        silent: set[int] = set()

        def height(s: float, *, create_graph: bool = False) -> Tensor:
            with torch.no_grad():
                for factor, gain in zip(factors, gains, strict=True):
                    factor.fill_(math.exp((s - 1) * gain))
            squares = [_real(d).double().square().sum().to(home) for d in self._pull(create_graph=create_graph)]
            return 0.5 * torch.stack(squares).sum().log()

        def evaluate(s: float) -> tuple[float, list[float]]:
            here = height(s, create_graph=True)
            slopes = torch.autograd.grad(here, factors, allow_unused=True)
            silent.update(i for i, slope in zip(players, slopes, strict=True) if slope is None)
            flows = [f * (0 if slope is None else slope) for f, slope in zip(factors, slopes, strict=True)]
            return here.item(), torch.stack(flows).tolist()

        with self._hooked(self._gates(players, factors), {}):
            lowest, highest = height(0.0).item(), height(1.0).item()
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise NotMeasurable("a gradient leaves the range of its number format on the way.")
            path = follow(gains, highest - lowest, evaluate)
        return path, self.total - (highest - lowest), sorted(silent)

    def _gates(self, players: Sequence[int], factors: Sequence[Tensor]) -> dict[int, Any]:
        hooks: dict[int, Any] = {}
        for i, factor in zip(players, factors, strict=True):
            for seq, numbers in _by_node(self.visits[i].outputs).items():
                hooks.setdefault(seq, []).append(_gate(numbers, factor))
        return hooks

    # ------------------------------------------------------------------ random gradients

    def chi(self) -> dict[int, float]:
        """|J^T v|^2 / |v|^2 of each call for a fresh Gaussian v at its output; the mean over v is |J|_F^2 / n_out.

        One backward does all calls: every gradient that arrives at a site is replaced by a fresh v, so that no layer
        sees what another has made of it. A v that is sent through all layers instead turns towards the large
        directions of trained weights. A fresh u sent forward would give the same mean per element.
        """
        found: dict[int, list[float]] = {}
        for _ in range(PROBES):
            probe = _Probe(self)
            with self._hooked(probe.before, probe.after):
                self._pull()
            for i, (sent, got) in probe.sizes().items():
                found.setdefault(i, []).append(got / sent if sent else math.nan)
        return {i: math.fsum(values) / len(values) for i, values in found.items()}

    def forward_profile(self) -> dict[int, float]:
        """log10 of the RMS of J u over that of u: what a small random change u of the source's output becomes here.

        A zero w is added to the gradient at every site. What arrives at the source is then linear in all w, and the
        derivative of its product with u in w is J u of that site: one backward and its derivative do all sites.
        """
        sums = [0.0] * len(self.visits)
        given = 0.0
        for _ in range(PROBES):
            added: list[tuple[int, Tensor]] = []
            hooks: dict[int, Any] = {}
            for i, visit in enumerate(self.visits):
                for seq, numbers in _by_node(visit.outputs).items():
                    hooks.setdefault(seq, []).append(_add(numbers, i, added))
            with self._hooked(hooks, {}):
                arrived = self._pull(create_graph=True)
            changes = [self._noise(grad) * self._balance for grad in arrived]
            products = [(_real(grad) * _real(u)).sum() for grad, u in zip(arrived, changes, strict=True)]
            images = torch.autograd.grad(products, [w for _, w in added], allow_unused=True)
            given += _square(changes) / sum(u.numel() for u in changes)
            counts: dict[int, int] = defaultdict(int)
            squares: dict[int, float] = defaultdict(float)
            for (i, w), image in zip(added, images, strict=True):
                counts[i] += w.numel()
                squares[i] += 0.0 if image is None else _square([image])
            for i, count in counts.items():
                sums[i] += squares[i] / max(count, 1)
        sums[self.source] = given
        return {i: 0.5 * math.log10(square / given) for i, square in enumerate(sums) if square > 0 and given > 0}

    def random_profile(self) -> dict[int, float]:
        """log10 |v here| / |v at the output|, root mean square over some Gaussian v sent into the output."""
        keys = list(dict.fromkeys(self.visits[self.output].outputs))
        shapes = self._templates(keys)
        keys = [key for key in keys if key in shapes]
        squares = [0.0] * len(self.visits)
        hooks: dict[int, Any] = {}
        for i, visit in enumerate(self.visits):
            for seq, numbers in _by_node(visit.outputs).items():
                hooks.setdefault(seq, []).append(_weigh(numbers, squares, i))
        for _ in range(PROBES):
            seeds = [self._noise(shapes[key]) * self._balance for key in keys]
            with self._hooked(hooks, {}):
                squares[self.source] += _square(self._pull(roots=_edges(self.graph, keys), seeds=seeds))
        output = squares[self.output]
        return {i: 0.5 * math.log10(square / output) for i, square in enumerate(squares) if square > 0 and output > 0}

    def _templates(self, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """A gradient as it arrives at each key."""
        found: dict[Key, Tensor] = {}

        def note(seq: int, number: int) -> Callable[[Grads], None]:
            return lambda grads: None if grads[number] is None else found.update({(seq, number): grads[number]})  # type: ignore[dict-item]

        hooks: dict[int, Any] = {}
        for seq, number in keys:
            hooks.setdefault(seq, []).append(note(seq, number))
        with self._hooked(hooks, {}):
            self._pull()
        return found

    def _noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of a tensor's shape, the same on every device."""
        parts = torch.randn((*like.shape, 2) if like.is_complex() else like.shape, generator=self._generator)
        return (torch.view_as_complex(parts) if like.is_complex() else parts).to(like)


class _Probe:
    """One backward in which a fresh random gradient arrives at every site; what each site sends on is kept."""

    def __init__(self, gated: Gated) -> None:
        self.before: dict[int, Any] = {}
        self.after: dict[int, Any] = {}
        self._sent: dict[int, list[Tensor]] = {}
        self._got: dict[int, dict[Key, Tensor]] = {}
        taken: set[Key] = set()
        for i, visit in enumerate(gated.visits):
            outputs = [key for key in visit.outputs if key not in taken]
            if not visit.exits or not outputs or len(outputs) < len(visit.outputs):
                continue
            taken.update(outputs)
            for seq, numbers in _by_node(outputs).items():
                self.before.setdefault(seq, []).append(self._replace(i, numbers, gated._noise))
            for seq, j in visit.exits:
                target = gated.graph.edges[seq][j]
                if target is not None:
                    self.after.setdefault(seq, []).append(self._keep(i, j, target))

    def _replace(self, i: int, numbers: Sequence[int], noise: Callable[[Tensor], Tensor]) -> Callable[[Grads], Grads]:
        def hook(grads: Grads) -> Grads:
            changed = list(grads)
            for number in numbers:
                grad = grads[number]
                if grad is not None:
                    changed[number] = noise(grad)
                    self._sent.setdefault(i, []).append(changed[number])  # type: ignore[arg-type]
            return tuple(changed)

        return hook

    def _keep(self, i: int, j: int, target: Key) -> Callable[[Grads], None]:
        def hook(grads: Grads) -> None:
            grad = grads[j]
            if grad is not None:
                got = self._got.setdefault(i, {})
                got[target] = grad if target not in got else got[target] + grad

        return hook

    def sizes(self) -> dict[int, tuple[float, float]]:
        """|v|^2 and |J^T v|^2 of each site."""
        both = self._sent.keys() & self._got.keys()
        return {i: (_square(self._sent[i]), _square(self._got[i].values())) for i in sorted(both)}


def _refuse_nested(grads: Grads) -> None:
    """Torch never frees the graph of their second derivative."""
    if any(grad is not None and grad.is_nested for grad in grads):
        raise NotMeasurable("the model computes with nested tensors.")


def _gated(grad: Tensor, factor: Tensor) -> Tensor:
    answer: Tensor = _Gate.apply(grad, factor)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return answer


def _gate(numbers: Sequence[int], factor: Tensor) -> Callable[[Grads], Grads]:
    def hook(grads: Grads) -> Grads:
        return tuple(
            _gated(grad, factor) if n in numbers and grad is not None else grad for n, grad in enumerate(grads)
        )

    return hook


def _add(numbers: Sequence[int], i: int, added: list[tuple[int, Tensor]]) -> Callable[[Grads], Grads]:
    def hook(grads: Grads) -> Grads:
        changed = list(grads)
        for n in numbers:
            grad = grads[n]
            if grad is not None:
                added.append((i, torch.zeros_like(grad, requires_grad=True)))
                changed[n] = grad + added[-1][1]
        return tuple(changed)

    return hook


def _weigh(numbers: Sequence[int], squares: list[float], i: int) -> Callable[[Grads], None]:
    def hook(grads: Grads) -> None:
        squares[i] += sum(sizes.l2(grad) ** 2 for n in numbers if (grad := grads[n]) is not None)

    return hook


def _all(hooks: Sequence[Callable[[Grads], Grads | None]]) -> Callable[..., Grads | None]:
    """One hook for several; what one returns the next one sees."""

    def hook(grads: Grads, *_: Any) -> Grads | None:
        changed: Grads | None = None
        for each in hooks:
            answer = each(grads if changed is None else changed)
            changed = changed if answer is None else answer
        return changed

    return hook


def _by_node(keys: Sequence[Key]) -> dict[int, list[int]]:
    nodes: dict[int, list[int]] = {}
    for seq, number in dict.fromkeys(keys):
        nodes.setdefault(seq, []).append(number)
    return nodes


def _edges(graph: Graph, keys: Sequence[Key]) -> list[GradientEdge]:
    return [GradientEdge(graph.nodes[seq], number) for seq, number in dict.fromkeys(keys)]


def _has_gain(visit: Visit, path: set[int]) -> bool:
    """A site on the way that the gradient enters and leaves with a size."""
    passes = not set(visit.outputs) <= set(visit.inputs) and any(key[0] in path for key in visit.outputs)
    return passes and math.isfinite(_ln_ratio(visit.left, visit.delta))


def _ln_ratio(above: float | None, below: float | None) -> float:
    """ln of a ratio of two sizes, nan where one is 0, not finite or not measured."""
    if not above or not below or not (math.isfinite(above) and math.isfinite(below)):
        return math.nan
    return math.log(above) - math.log(below)


def _power_of_two(dtype: torch.dtype, decades: float) -> float:
    """10^decades as a power of two that a format holds; 1 for nan."""
    farthest = FARTHEST.get(dtype, 100)
    return 1.0 if math.isnan(decades) else 2.0 ** round(max(-farthest, min(farthest, decades / math.log10(2))))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _square(tensors: Any) -> float:
    return sum(sizes.l2(tensor.detach()) ** 2 for tensor in tensors)
