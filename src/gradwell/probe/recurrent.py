"""How far back a fused RNN, LSTM or GRU carries a gradient: a random cotangent at the last output, sent to each input.

dLoss/d(output_t) says nothing about this: with a loss at the last step it is exactly 0 for every t before. Instead
the layer is run once more on the input it was given, a Gaussian cotangent v stands at the last valid step of each
sample, and |v^T dh_T/dx_t| is taken for every lag T - t. The reverse direction is measured apart, from its own last
step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


def lag_profile(module: nn.RNNBase, given: Any, state: Any = None, *, seed: int = 0) -> dict[str, list[float]]:
    """log10 of the gradient at each lag, for the `forward` and, where there is one, the `reverse` direction.

    `given`, `state`: what the module was called with (tensor or PackedSequence; hidden state or None). Entry k is the
    root mean square over the samples that are longer than k of |v^T dh_T/dx_{T-k}|, relative to lag 0; -inf where it
    is exactly zero in this dtype. Dropout between layers is off; parameters, `.grad` and random numbers are untouched.
    """
    with torch.enable_grad(), torch.random.fork_rng(devices=_devices(module)), _without_dropout(module):
        torch.manual_seed(seed)
        leaf, call = _fresh(given)
        output = type(module).forward(module, call, state)[0]  # forward itself: the user's hooks must not see this
        padded, lengths = _padded(module, output)
        directions = {"forward": 0, "reverse": 1} if module.bidirectional else {"forward": 0}
        size = padded.shape[2] // len(directions)
        found = {}
        for name, part in directions.items():
            cotangent = torch.zeros_like(padded)
            ends = lengths - 1 if part == 0 else torch.zeros_like(lengths)
            rows = torch.arange(len(lengths), device=padded.device)
            cotangent[ends, rows, part * size : (part + 1) * size] = torch.randn_like(padded[0, :, :size])
            (grad,) = torch.autograd.grad(padded, leaf, cotangent, retain_graph=True)
            squares = _squares(module, given, grad)
            found[name] = _by_lag(squares, lengths, reverse=part == 1)
    return found


def _devices(module: nn.RNNBase) -> list[int]:
    return sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})


@contextmanager
def _without_dropout(module: nn.RNNBase) -> Iterator[None]:
    before = module.dropout
    module.dropout = 0.0
    try:
        yield
    finally:
        module.dropout = before


def _fresh(given: Any) -> tuple[Tensor, Any]:
    """A leaf that wants its gradient, and the same input around it."""
    if isinstance(given, PackedSequence):
        leaf = given.data.detach().clone().requires_grad_()
        return leaf, PackedSequence(leaf, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
    leaf = given.detach().clone().requires_grad_()
    return leaf, leaf


def _padded(module: nn.RNNBase, output: Any) -> tuple[Tensor, Tensor]:
    """The output as (T, B, features) and the length of each sample."""
    if isinstance(output, PackedSequence):
        padded, lengths = pad_packed_sequence(output)
        return padded, lengths.to(padded.device)
    if output.dim() == 2:
        output = output.unsqueeze(1)
    elif module.batch_first:
        output = output.transpose(0, 1)
    return output, torch.full((output.shape[1],), output.shape[0], device=output.device)


def _squares(module: nn.RNNBase, given: Any, grad: Tensor) -> Tensor:
    """Squared norm of the gradient at each step of each sample, (T, B), in float64."""
    squares = grad.double().square().sum(-1)
    if isinstance(given, PackedSequence):
        packed = PackedSequence(squares.unsqueeze(-1), given.batch_sizes, given.sorted_indices, given.unsorted_indices)
        return pad_packed_sequence(packed)[0].squeeze(-1)
    if squares.dim() == 1:
        return squares.unsqueeze(1)
    return squares.T if module.batch_first else squares


def _by_lag(squares: Tensor, lengths: Tensor, *, reverse: bool) -> list[float]:
    steps = int(lengths.max())
    lag = torch.arange(steps, device=squares.device)[:, None]
    time = lag.expand(-1, len(lengths)) if reverse else lengths - 1 - lag
    valid = lag < lengths
    at_lag = squares.gather(0, time.clamp_min(0)) * valid
    mean = (at_lag.sum(1) / valid.sum(1)).sqrt().tolist()
    first = mean[0]
    if not (first > 0 and math.isfinite(first)):
        return [math.nan] * steps
    return [math.log10(m / first) if m > 0 else -math.inf for m in mean]
