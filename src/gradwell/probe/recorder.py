"""From what the tape measured to a step's record: columns over sites and parameters in a fixed order."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import torch
from torch import Tensor

from gradwell.measure.units import may_have_twins, twin_fraction
from gradwell.probe import sizes
from gradwell.probe.backward import Backward
from gradwell.probe.names import Names
from gradwell.probe.tape import Visit
from gradwell.records.numbers import log10
from gradwell.records.run import PARAM_COLUMNS, Column, Header, OptimizerInfo, Param, Site, Step

_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


class Weights:
    """Copies of the parameters, to measure an update as weight after minus weight before."""

    def __init__(self, parameters: Sequence[Tensor | None]) -> None:
        with torch.no_grad():
            self.parameters = list(parameters)
            self.before = [None if p is None else p.detach().clone() for p in parameters]

    def update_norms(self) -> list[float]:
        """L2 norm of after minus before for each parameter."""
        with torch.no_grad():
            pairs = zip(self.parameters, self.before, strict=True)
            changes = [None if a is None or b is None or a.shape != b.shape else a.detach() - b for a, b in pairs]
            return sizes.l2_all([torch.zeros(1) if change is None else change for change in changes])


class Recorder:
    """Keeps the order of sites and parameters and writes steps in it."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.sites: list[Site] = []
        self.params: list[Param] = []
        # A search over many models must not keep them all: parameters and optimizers are held weakly.
        self._tensors: list[weakref.ref[Tensor]] = []
        self._optimizers: list[tuple[weakref.ref[torch.optim.Optimizer], OptimizerInfo]] = []
        self._site_index: dict[tuple[str, int, str], int] = {}
        self._param_index: dict[int, int] = {}
        self._device = self._dtype = ""

    @property
    def tensors(self) -> list[Tensor | None]:
        """The parameters in the order of the columns, None for one that is gone."""
        return [reference() for reference in self._tensors]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that are still there."""
        return [optimizer for reference, _ in self._optimizers if (optimizer := reference()) is not None]

    @property
    def has_optimizer(self) -> bool:
        """True when the training has, or had, an optimizer: steps are its steps then."""
        return bool(self._optimizers)

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Note an optimizer; its parameters become known."""
        if not any(known is optimizer for known in self.optimizers):
            self._optimizers.append((weakref.ref(optimizer), optimizer_info(optimizer)))

    def number_of(self, optimizer: torch.optim.Optimizer) -> int:
        """The optimizer's place in the header, 0 where it is not known."""
        if len(self._optimizers) < 2:
            return 0
        return next((n for n, (reference, _) in enumerate(self._optimizers) if reference() is optimizer), 0)

    def add_parameters(self, tensors: Iterable[Tensor]) -> None:
        """Make parameters known, in the order in which they are first seen."""
        groups = {
            id(p): (f"{n}.{g}" if len(self.optimizers) > 1 else str(g))
            for n, optimizer in enumerate(self.optimizers)
            for g, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        }
        for tensor in tensors:
            key = id(tensor)
            index = self._param_index.get(key)
            if index is None or self._tensors[index]() is not tensor:
                if not self._tensors:
                    self._device, self._dtype = str(tensor.device), str(tensor.dtype).removeprefix("torch.")
                self._param_index[key] = len(self._tensors)
                self._tensors.append(weakref.ref(tensor))
                name, site = self.names.parameter(tensor)
                self.params.append(Param(name, site, list(tensor.shape), groups.get(key), not tensor.requires_grad))
            elif key in groups and self.params[index].group is None:  # its optimizer is known only now
                self.params[index] = msgspec.structs.replace(self.params[index], group=groups[key])

    def header(self, *, argv: Sequence[str], started: str, seed: int | None = None) -> Header:
        """Line 1 of the run, with what is known now."""
        return Header(
            tool=_tool(),
            torch=str(torch.__version__),
            python=platform.python_version(),
            device=self._device,
            dtype=self._dtype,
            argv=list(argv),
            started=started,
            seed=seed,
            optimizers=[info for _, info in self._optimizers],
            sites=list(self.sites),
            params=list(self.params),
        )

    def step(
        self, backward: Backward, number: int, *, loss: float | None, loss_scale: float | None = None, **scalars: Any
    ) -> Step:
        """The record of one backward pass; updates are added by `with_updates` when the optimizer has stepped.

        `loss_scale`: what the loss was multiplied with (AMP); loss and gradients are recorded without it.
        """
        scale = loss_scale or 1.0
        visits = backward.visits
        index = [self._index(i, visit) for i, visit in enumerate(visits)]
        columns = _site_columns(backward, math.sqrt(max(self._batch(backward), 1)) * scale)
        if index != list(range(len(self.sites))):
            columns = {name: _placed(values, index, len(self.sites)) for name, values in columns.items()}
        total = None
        if backward.source is not None and backward.output is not None and backward.source != backward.output:
            total = _gain(visits[backward.source].delta, visits[backward.output].delta)
        params, norm = self._param_columns(scale, backward.weights)
        return Step(
            step=number,
            loss=None if loss is None else loss / scale,
            loss_scale=loss_scale,
            grad_norm=norm,
            total=total,
            source=None if backward.source is None else index[backward.source],
            output=None if backward.output is None else index[backward.output],
            batch=self._batch(backward),
            input_rms=backward.input_rms,
            input_mean=backward.input_mean,
            lags={name: list(profile) for name, profile in backward.lags.items()},
            heard={name: list(column) for name, column in backward.heard.items()},
            links={name: list(column) for name, column in backward.links.items()},
            sites=columns,
            params=params,
            **scalars,
        )

    def with_updates(self, step: Step, norms: Sequence[float]) -> Step:
        """The same step with `update_rms` filled in, for the parameters known when the copy was taken."""
        counts = [max(math.prod(param.shape), 1) for param in self.params]
        column: list[float | None] = [n / math.sqrt(c) for n, c in zip(norms, counts, strict=False)]
        return msgspec.structs.replace(step, params={**step.params, "update_rms": column})

    def _index(self, order: int, visit: Visit) -> int:
        key = (visit.name, visit.call, visit.kind)
        if key not in self._site_index:
            self._site_index[key] = len(self.sites)
            place = (visit.name, visit.kind, visit.call, order, visit.root, visit.source)
            self.sites.append(Site(*place, visit.role, visit.fan_in, visit.fan_out))
        return self._site_index[key]

    def _batch(self, backward: Backward) -> int:
        if backward.output is None:
            return 1
        shape = backward.visits[backward.output].out_shape
        return shape[0] if len(shape) > 1 else 1

    def _param_columns(
        self, scale: float, known: Mapping[int, tuple[float, sizes.Array | None]]
    ) -> tuple[dict[str, Column], float | None]:
        columns: dict[str, Column] = {name: [None] * len(self._tensors) for name in PARAM_COLUMNS}
        weight_rms, grad_rms = columns["weight_rms"], columns["grad_rms"]
        nonfinite, underflow = columns["grad_nonfinite"], columns["grad_underflow_frac"]
        alive = [(i, tensor) for i, tensor in enumerate(self.tensors) if tensor is not None]
        rest = [tensor for _, tensor in alive if id(tensor) not in known]
        weights = {**known, **dict(zip(map(id, rest), sizes.looked_at(rest), strict=True))}
        for i, tensor in alive:
            weight_rms[i] = weights[id(tensor)][0] / math.sqrt(tensor.numel() or 1)
        with_grad = [(i, tensor, grad) for i, tensor in alive if (grad := tensor.grad) is not None]
        norms = [norm / scale for norm in sizes.l2_all([grad for _, _, grad in with_grad])]
        for (i, _, grad), norm in zip(with_grad, norms, strict=True):
            grad_rms[i] = rms = norm / math.sqrt(grad.numel() or 1)
            nonfinite[i] = sizes.nonfinite_count(grad, norm)
            underflow[i] = _underflow(grad, rms)
        for i, share in _twins([(i, p, weights[id(p)][1], grad) for i, p, grad in with_grad if _has_rows(p, grad)]):
            columns["twin_frac"][i] = share
        return columns, math.hypot(*norms) if norms else None


@cache
def _tool() -> str:
    return f"gradwell {importlib.metadata.version('gradwell')}"


def optimizer_info(optimizer: torch.optim.Optimizer) -> OptimizerInfo:
    """Class name and the plain settings of the first group."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    settings: dict[str, float | bool | str | None] = {
        name: float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
        for name, value in group.items()
        if name != "params" and isinstance(value, (int, float, bool, str))
    }
    betas = group.get("betas")
    if betas:
        settings |= {"beta1": float(betas[0]), "beta2": float(betas[1])}
    return OptimizerInfo(type(optimizer).__name__, settings)


def _underflow(grad: Tensor, rms: float) -> float:
    """Share of the elements that are zero or below the dtype's smallest normal number; looked at only near there."""
    tiny = _TINY.get(grad.dtype, 0.0)
    if rms > 1e4 * tiny or not math.isfinite(rms) or grad.is_sparse:
        return 0.0
    return float((grad.detach().abs() < tiny).double().mean().item())


def _twins(layers: Sequence[tuple[int, Tensor, sizes.Array | None, Tensor]]) -> Iterator[tuple[int, float]]:
    """(index, share of the rows that are twins) of each (index, weight, its memory, gradient)."""
    found = [sizes.as_array(sizes.rows(p.detach() if array is None else array)) for _, p, array, _ in layers]
    may = may_have_twins([rows[:, 0] for rows in found])
    for (i, _, _, grad), rows, possible in zip(layers, found, may, strict=True):
        yield i, twin_fraction(rows, sizes.as_array(sizes.rows(grad.detach()))) if possible else 0.0


def _has_rows(weight: Tensor, grad: Tensor) -> bool:
    """Whether there are rows to compare."""
    shape = weight.shape
    if len(shape) < 2 or shape[0] < 2 or not weight.numel() or not weight.is_floating_point():
        return False
    plain = type(weight) in (Tensor, torch.nn.Parameter) and type(grad) is Tensor and not grad.is_sparse
    return plain and grad.shape == shape


def _site_columns(backward: Backward, root_batch: float) -> dict[str, Column]:
    """The columns over the visits of one backward, in their order."""
    visits, source, beyond = backward.visits, backward.source, backward.beyond
    gains = [
        _gain(v.left, v.delta) if source is not None and i != source and i not in beyond else None
        for i, v in enumerate(visits)
    ]
    return {
        "act_rms": [None if v.size is None else v.size / math.sqrt(max(v.numel, 1)) for v in visits],
        "act_mean": [v.mean for v in visits],
        "delta_norm": [None if v.delta is None else v.delta / root_batch for v in visits],
        "zero_frac": [v.zero for v in visits],
        "dead_frac": [v.dead for v in visits],
        "saturated_frac": [v.saturated for v in visits],
        "nonfinite": [None if v.nonfinite is None else float(v.nonfinite) for v in visits],
        "spread": [v.spread for v in visits],
        "leaf_gain": gains,
        "isotropic": [None if gain is None else v.isotropic for v, gain in zip(visits, gains, strict=True)],
        "flow": [v.flow for v in visits],
    }


def _placed(values: Column, index: Sequence[int], length: int) -> Column:
    """A column in the run's order of sites."""
    column: Column = [None] * length
    for i, value in zip(index, values, strict=True):
        column[i] = value
    return column


def _gain(left: float | None, arrived: float | None) -> float | None:
    """log10 of a ratio of two sizes; None where one was not measured."""
    above, below = log10(left), log10(arrived)
    if above is None or below is None:
        return None
    return above - below if math.isfinite(below) else math.nan
