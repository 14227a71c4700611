"""Sizes of tensors that stay right from 1e-45 to 1e38, and small samples of them for unit statistics.

A float32 norm returns exactly 0 once the elements are near 1e-23 and inf above 1e19 (PITFALLS P30): outside the
safe range the norm is taken again in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SAMPLE = 4_096
"""Elements of a site that unit statistics look at, at most."""
_SAFE_LOW, _SAFE_HIGH = 1e-12, 1e15
_WIDE = torch.float64


def l2(tensor: Tensor) -> float:
    """The L2 norm as a float: float32 speed where that is exact, float64 where squares under- or overflow."""
    if tensor.is_sparse:  # P22: norms of sparse gradients are those of their values
        tensor = tensor.coalesce()._values()
    if tensor.dtype is torch.float32:
        norm: float = torch.linalg.vector_norm(tensor).item()
        if _SAFE_LOW < norm < _SAFE_HIGH:
            return norm
    elif tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    wide: float = torch.linalg.vector_norm(tensor, dtype=_WIDE).item()
    return wide


def l2_all(tensors: list[Tensor]) -> list[float]:
    """The L2 norms of many dense tensors in one fused call and one host read; doubtful ones again in float64."""
    if not tensors:
        return []
    with torch.no_grad():
        dense = [t for t in tensors if not t.is_sparse]
        norms = torch.stack([n.to("cpu", _WIDE) for n in torch._foreach_norm(dense)]).tolist() if dense else []
        found = iter(norms)
        values = [l2(t) if t.is_sparse else next(found) for t in tensors]
        return [v if _SAFE_LOW < v < _SAFE_HIGH else l2(t) for v, t in zip(values, tensors, strict=True)]


def nonfinite_count(tensor: Tensor, norm: float) -> int:
    """The number of NaN and infinite elements; a finite norm proves that there is none."""
    if math.isfinite(norm):
        return 0
    return int(tensor.numel() - torch.isfinite(tensor).sum().item())


def sample(tensor: Tensor) -> Tensor:
    """A copy of at most `SAMPLE` elements with the axes (batch B, positions P, units U).

    Units are channels (axis 1) for images and volumes, the last axis otherwise. The copy is taken at once, since
    the next in-place operation would overwrite the values (PITFALLS P20).
    """
    tensor = tensor.detach()
    dim = tensor.dim()
    if dim >= 4:
        tensor = tensor.movedim(1, -1)
    elif dim < 2:
        tensor = tensor.reshape(-1, 1)
        dim = 2
    if tensor.numel() > SAMPLE:
        tensor = _thin(tensor)
    if dim == 2:
        return tensor.unsqueeze(1).clone()
    return tensor.flatten(1, -2).clone() if dim > 3 else tensor.clone()


def _thin(tensor: Tensor) -> Tensor:
    """Strided along positions first, then units, then the batch."""
    for axis in (*range(1, tensor.dim() - 1), tensor.dim() - 1, 0):
        excess = -(-tensor.numel() // SAMPLE)
        if excess <= 1:
            break
        keep = max(tensor.shape[axis] // excess, min(tensor.shape[axis], 32 if axis in (0, tensor.dim() - 1) else 1))
        step = max(tensor.shape[axis] // keep, 1)
        tensor = tensor[(slice(None),) * axis + (slice(None, None, step),)]
    return tensor


def flat_sample(tensor: Tensor) -> Tensor:
    """At most `SAMPLE` elements in a fixed stride: two tensors of one shape give matching elements."""
    flat = tensor.detach().reshape(-1)
    step = -(-flat.numel() // SAMPLE)
    return flat[::step] if step > 1 else flat


def unit_statistics(samples: list[Tensor]) -> list[dict[str, float]]:
    """Mean, share of zeros, share of dead units and spread of each sample; equal shapes are done in one stack.

    `dead`: share of the units that are exactly 0 for the whole batch. `spread`: variance between the samples of
    the batch over the mean square, averaged over positions and units; nan for a batch of one.
    """
    answers: list[dict[str, float]] = [{} for _ in samples]
    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(samples):
        groups.setdefault((tuple(tensor.shape), tensor.dtype, tensor.device), []).append(i)
    for (shape, _, _), members in groups.items():
        if 0 in shape:
            continue
        for start in range(0, len(members), 256):  # 256 samples of 4k float32 are 4 MB
            part = members[start : start + 256]
            for i, row in zip(part, _statistics(torch.stack([samples[i] for i in part])), strict=True):
                answers[i] = row
    return answers


def _statistics(x: Tensor) -> list[dict[str, float]]:
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    count = x[0].numel()  # (S, B, P, U)
    units = x.abs().amax((1, 2))
    columns = [x.mean((1, 2, 3)), 1 - torch.linalg.vector_norm(x, 0, (1, 2, 3)) / count, (units == 0).float().mean(1)]
    if x.shape[1] > 1:
        # Differences from the first sample keep the digits that subtracting mean squares would lose.
        apart = x - x[:, :1]
        square = torch.linalg.vector_norm(x, 2, (1, 2, 3)).square()
        spread = torch.linalg.vector_norm(apart, 2, (1, 2, 3)).square() / x.shape[1]
        spread -= torch.linalg.vector_norm(apart.mean(1), 2, (1, 2)).square()
        columns.append(spread.clamp_min(0) * x.shape[1] / square)  # 0/0 is nan: an all-zero layer has no spread
    else:
        columns.append(torch.full_like(columns[0], math.nan))
    rows = torch.stack([c.double() for c in columns], 1).tolist()
    return [dict(zip(("mean", "zero", "dead", "spread"), row, strict=True)) for row in rows]


def slope_statistics(ratios: list[Tensor], ceilings: list[float]) -> list[tuple[float, float]]:
    """Mean square slope and share of saturated elements from samples of grad_in / grad_out.

    Elements that got no gradient give 0/0 and do not count. Saturated: |slope| below 1/20 of the activation's largest.
    """
    answers = [(math.nan, math.nan)] * len(ratios)
    groups: dict[int, list[int]] = {}
    for i, ratio in enumerate(ratios):
        groups.setdefault(ratio.numel(), []).append(i)
    for members in groups.values():
        stacked = torch.stack([ratios[i].double() for i in members])
        known = torch.isfinite(stacked)
        slope = torch.where(known, stacked, 0.0)
        count = known.sum(1)
        bound = torch.tensor([ceilings[i] / 20 for i in members], dtype=_WIDE, device=stacked.device)
        low = ((slope.abs() < bound[:, None]) & known).sum(1) / count
        square = (slope * slope).sum(1) / count
        for i, s, f in zip(members, square.tolist(), low.tolist(), strict=True):
            answers[i] = (s, f)
    return answers
