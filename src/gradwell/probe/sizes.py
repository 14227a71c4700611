"""Sizes of tensors that stay right from 1e-45 to 1e38, and small samples of them.

A float32 norm returns exactly 0 once the elements are near 1e-23 and inf above 1e19 (PITFALLS P30): outside the
safe range the norm is taken again in float64. Tensors in main memory are read through numpy, whose calls cost a third
of torch's on small tensors; samples from an accelerator stay there until `as_array`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Sample = Array | Tensor

SAMPLE = 2_048
"""Elements of a site that unit statistics look at, at most."""
ROWS = 256
"""Units and inputs of a weight that are compared in search of twins, at most."""
SMALL = 16_384
"""Elements of a tensor that is cheaper to keep for a while, to be measured with others, than to measure at once."""
_SEEN_BY_NUMPY = (torch.float32, torch.float64)
_SAFE_LOW, _SAFE_HIGH = 1e-12, 1e15
_FEWEST = 16  # units that a sample keeps before it thins the batch


def in_memory(tensor: Tensor) -> Array | None:
    """The tensor's own memory as an array, None for what numpy cannot see."""
    if tensor.dtype in _SEEN_BY_NUMPY and tensor.is_cpu:
        try:
            array: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        except (RuntimeError, TypeError):  # nested, sparse, subclasses, the negative bit of a conjugate's .imag
            return None
        return array
    return None


def l2(tensor: Tensor) -> float:
    """The L2 norm as a float: float32 speed where that is exact, float64 where squares under- or overflow."""
    return l2_of(tensor, in_memory(tensor))


def l2_of(tensor: Tensor, array: Array | None) -> float:
    """`l2` of a tensor whose memory has been looked at."""
    if array is not None:
        flat = array.ravel("K")
        norm = math.sqrt(np.vdot(flat, flat))  # `dot` would warn where it overflows
        if _SAFE_LOW < norm < _SAFE_HIGH:
            return norm
    return _wide_l2(tensor.detach())


def _wide_l2(tensor: Tensor) -> float:
    if tensor.is_sparse:  # P22: norms of sparse gradients are those of their values
        tensor = tensor.coalesce()._values()
    if tensor.is_nested:
        tensor = tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    norm: float = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return norm


def measured(tensors: Iterable[Tensor]) -> list[tuple[float, Array | None]]:
    """(L2 norm, memory) of each of many tensors: a third cheaper than one by one."""
    found: list[tuple[float, Array | None]] = []
    with np.errstate(all="ignore"):  # what overflows is taken again
        for tensor in tensors:
            array = in_memory(tensor)
            norm = 0.0
            if array is not None:
                flat = array.ravel("K")
                norm = math.sqrt(flat.dot(flat))
            found.append((norm if _SAFE_LOW < norm < _SAFE_HIGH else _wide_l2(tensor.detach()), array))
    return found


def looked_at(tensors: Sequence[Tensor]) -> list[tuple[float, Array | None]]:
    """`measured`; on an accelerator in one fused call and one read by the host."""
    if all(t.is_cpu or t.is_sparse for t in tensors):
        return measured(tensors)
    with torch.no_grad():
        found = torch.stack([n.to("cpu", torch.float64) for n in torch._foreach_norm(list(tensors))]).tolist()
    safe = [v if _SAFE_LOW < v < _SAFE_HIGH else _wide_l2(t.detach()) for v, t in zip(found, tensors, strict=True)]
    return [(norm, None) for norm in safe]


def l2_all(tensors: Sequence[Tensor]) -> list[float]:
    """The L2 norms of many tensors."""
    return [norm for norm, _ in looked_at(tensors)]


def nonfinite_count(tensor: Tensor, norm: float) -> int:
    """The number of NaN and infinite elements; a finite norm proves that there is none."""
    if math.isfinite(norm):
        return 0
    values = tensor.coalesce()._values() if tensor.is_sparse else tensor
    return int(values.numel() - torch.isfinite(values).sum().item())


def sample(tensor: Tensor) -> Sample:
    """A copy of at most `SAMPLE` elements with the axes (batch B, positions P, units U).

    Units are channels (axis 1) for images and volumes, the last axis otherwise. The copy is taken at once, since
    the next in-place operation would overwrite the values (PITFALLS P20).
    """
    array = in_memory(tensor)
    taken: Sample = thinned(tensor.detach()).clone() if array is None else thinned(array).copy()
    return taken


def thinned(view: Any) -> Any:
    """What `sample` takes from an array or a tensor, as a view where that is possible."""
    if view.ndim < 2:
        view = view.reshape(-1, 1)
    slices = _slices(tuple(view.shape))
    if slices is not None:
        view = view[slices]
    if view.ndim == 2:
        view = view[:, None, :]
    elif view.ndim == 3:
        pass
    else:
        view = view.reshape(*view.shape[:2], -1).swapaxes(1, 2)
    return view


@lru_cache(maxsize=4096)
def _slices(shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """Thin positions first, then units down to a few, then the batch, then what is left."""
    steps = [1] * len(shape)
    size = math.prod(shape)
    units = 1 if len(shape) >= 4 else len(shape) - 1
    positions = [axis for axis in range(1, len(shape)) if axis != units]
    for axis, least in (*((p, 1) for p in positions), (units, _FEWEST), (0, _FEWEST), (units, 1), (0, 1)):
        if size <= SAMPLE:
            break
        have = -(-shape[axis] // steps[axis])
        keep = max(min(have, least), have * SAMPLE // size)
        steps[axis] = max(steps[axis], -(-shape[axis] // max(keep, 1)))
        size = math.prod(-(-n // s) for n, s in zip(shape, steps, strict=True))
    return tuple(slice(None, None, step) for step in steps) if max(steps) > 1 else None


def dead_fraction(tensor: Tensor, norm: float, array: Array | None) -> float:
    """Share of the units that are exactly 0 for every sample and position; all elements are looked at.

    A sample would not do: of a layer with 90 % dead units one in five samples of 16 units shows none alive. `array` is
    the tensor's memory where numpy can see it.
    """
    if array is not None and norm < _SAFE_HIGH and 2 <= array.ndim <= 3 and array.size:
        # A sum with random weights is 0 for zeros only; weights from 1 on lose no element however small.
        rows = array.reshape(-1, array.shape[-1])
        return 1 - int(np.count_nonzero(_random_weights(len(rows), rows.dtype) @ rows)) / rows.shape[1]
    units = 1 if tensor.dim() >= 4 else tensor.dim() - 1
    others = [axis for axis in range(tensor.dim()) if axis != units]
    values = tensor.detach()
    if not others or not values.numel():
        return 1 - int(values.count_nonzero()) / max(values.numel(), 1)
    off = values.amax(others) == 0  # ReLU and its kin are never negative, hardswish is
    if not off.any():
        return 0.0
    return int((off & (values.amin(others) == 0)).count_nonzero()) / off.numel()


@lru_cache(maxsize=64)
def _random_weights(length: int, dtype: Any) -> Array:
    return np.random.default_rng(0).uniform(1, 2, length).astype(dtype)


def flat_sample(tensor: Tensor) -> Sample:
    """A copy of at most `SAMPLE` elements in a fixed stride: two tensors of one shape give matching elements."""
    array = in_memory(tensor)
    if array is not None:
        copied: Array = thinned_flat(array).copy()
        return copied
    step = max(-(-tensor.numel() // SAMPLE), 1)
    flat = tensor.detach().values() if tensor.is_nested else tensor.detach()
    return flat.reshape(-1)[::step].clone()


def thinned_flat(array: Array) -> Array:
    """What `flat_sample` takes from an array, not always copied."""
    step = max(-(-array.size // SAMPLE), 1)
    thin: Array = array.reshape(-1)[::step] if array.flags.c_contiguous else array.flat[::step]
    return thin


def rows(weight: Sample) -> Sample:
    """At most `ROWS` x `ROWS` elements of a weight as (units M, inputs N), evenly spaced; a view where that is free."""
    flat = weight.reshape(len(weight), -1)
    units, inputs = flat.shape
    thin: Sample = flat[:: -(-units // ROWS) or 1, :: -(-inputs // ROWS) or 1]
    return thin


def as_array(values: Sample) -> Array:
    """A sample in main memory, as float32 or float64."""
    if isinstance(values, np.ndarray):
        return values
    if values.is_complex():
        values = values.abs()  # statistics of a complex site are those of its moduli
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    array: Array = wide.cpu().numpy()
    return array
