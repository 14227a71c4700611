"""A batch in equal parts, and the gradient that each of them gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradwell.errors import NotMeasurable
from gradwell.probe import sizes

PARTS = 8
"""Parts of a batch, at most."""
APART = 0.1
"""Largest difference, relative, between the batch's gradient and the mean of its parts'."""


def split(batch: Any, parts: int = PARTS) -> tuple[list[Any], Any, int]:
    """Equal parts of a batch along axis 0, the batch that they make up together, and the samples in each part.

    Every tensor with axes is cut, in tuples, lists and dicts of any depth; other values go along. Raises
    `NotMeasurable` where the tensors do not have one length.
    """
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or any(tensor.is_nested or tensor.is_sparse for tensor in tensors):
        raise NotMeasurable("the batch holds no plain tensors to cut into parts.")
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) > 1:
        raise NotMeasurable(f"the tensors of the batch have axes of different lengths ({_listed(lengths)}).")
    (length,) = lengths
    if length < 2:
        raise NotMeasurable("a batch of one sample cannot be cut into parts.")
    parts = min(parts, length)
    each = length // parts

    def cut(start: int, end: int) -> Any:
        return tree_map(lambda v: v[start:end] if isinstance(v, Tensor) and v.dim() else v, batch)

    return [cut(k * each, (k + 1) * each) for k in range(parts)], cut(0, parts * each), each


def _listed(lengths: set[int]) -> str:
    return ", ".join(map(str, sorted(lengths)[:4]))


def part_gradients(
    model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Tensor], tensors: Sequence[Tensor]
) -> tuple[list[list[float]], list[float], int]:
    """|g_k|^2 of each part for each tensor, |mean of g_k|^2 of each tensor, and the samples in a part.

    Raises `NotMeasurable` where the mean of the parts' gradients is not the batch's gradient: batch statistics, a loss
    that compares samples, an axis 0 that is no batch, random numbers that evaluation mode does not switch off.
    """
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        raise NotMeasurable("batch norm makes the gradient of a sample depend on the others.")
    parts, whole, each = split(batch)
    found = _gradients(model, parts, whole, loss_fn, tensors)
    if found is None:
        model.eval()  # `preserved` puts the modes back
        found = _gradients(model, parts, whole, loss_fn, tensors)
    if found is None:
        raise NotMeasurable(
            "the gradients of the parts of the batch do not add up to the batch's: the loss compares samples, the "
            "model draws random numbers, or axis 0 is no batch."
        )
    return (*found, each)


def _gradients(
    model: nn.Module, parts: Sequence[Any], whole: Any, loss_fn: Callable[[Any, Any], Tensor], tensors: Sequence[Tensor]
) -> tuple[list[list[float]], list[float]] | None:
    """Squares of the parts and of their mean; None where the parts do not add up to the whole."""
    squares: list[list[float]] = [[] for _ in tensors]
    sums: list[Tensor | None] = [None] * len(tensors)
    for part in parts:
        for i, grad in enumerate(_gradient(model, part, loss_fn, tensors)):
            squares[i].append(0.0 if grad is None else sizes.l2(grad) ** 2)
            if grad is not None:
                known = sums[i]
                sums[i] = grad if known is None else known + grad
    full = _gradient(model, whole, loss_fn, tensors)
    count = len(parts)
    pairs = [(a, b) for a, b in zip(sums, full, strict=True) if a is not None and b is not None]
    # The mean for a loss that is a mean over samples, the sum for one that is a sum.
    apart = min(sum(sizes.l2(a / n - b) ** 2 for a, b in pairs) for n in (count, 1))
    if not apart <= APART**2 * sum(sizes.l2(b) ** 2 for _, b in pairs):
        return None
    return squares, [0.0 if total is None else (sizes.l2(total) / count) ** 2 for total in sums]


def _gradient(
    model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Tensor], tensors: Sequence[Tensor]
) -> list[Tensor | None]:
    found = torch.autograd.grad(loss_fn(model, batch), tensors, allow_unused=True)
    return [None if grad is None else grad.to_dense() if grad.is_sparse else grad for grad in found]
