"""How far back a recurrent layer carries a gradient, at which steps the loss asks it, and about which inputs.

How far: dLoss/d(output_t) says nothing about this: with a loss at the last step it is exactly 0 for every t before.
Instead a fused layer is run once more on the input it was given, a Gaussian cotangent v stands at the last valid step
of each sample, and |v^T dh_T/dx_t| is taken for every lag T - t. The reverse direction is measured apart, from its own
last step.

When: the size of dLoss/d(output_t) itself, step by step.

What about: the samples of a batch differ in what the loss wants of an output, and they differ in each input. Where
both differ alike the input matters, whether or not the recurrence has carried anything so far. So the lag that the
loss needs shows before training; products of inputs (the adding problem) do not show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

SAMPLES = 48
"""Samples of a batch that are compared with each other at most."""
LONGEST = 1024
"""Time steps up to which inputs are compared; beyond it costs more than it tells."""
CHANCE = 6.0
"""Standard deviations of chance from which on a link counts: one of a hundred lags may reach 4.5 by luck."""
_LISTENERS = 16


class Asked(NamedTuple):
    """What the loss asks of one direction of a layer, both by steps before the end.

    `heard`: log10 of |dLoss/d(output)| relative to the largest, -inf where it is exactly zero. `links`: by lag, how
    alike the samples' gradients at the outputs and their inputs that many steps before are (0: by chance at most, 1:
    the input says it all).
    """

    heard: list[float]
    links: list[float]


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


def asked(module: nn.RNNBase, given: Any, output: Tensor | None, state: Tensor | None) -> dict[str, Asked]:
    """What the loss asks of the `forward` and, where there is one, the `reverse` direction of a fused layer.

    `output`, `state`: dLoss/d(output) and dLoss/d(h_n), None where the loss does not look there. Both None (or all
    zero): an empty dict.
    """
    with torch.no_grad():
        inputs, lengths = _padded(module, given)
        directions = {"forward": 0, "reverse": 1} if module.bidirectional else {"forward": 0}
        size = module.proj_size or module.hidden_size
        kind = torch.promote_types(inputs.dtype, torch.float32)
        grads = inputs.new_zeros(*inputs.shape[:2], size * len(directions), dtype=kind)
        if output is not None:
            arrived = _padded(module, given._replace(data=output) if isinstance(given, PackedSequence) else output)[0]
            grads += arrived if arrived.shape == grads.shape else 0  # an output that was overwritten in place
        found = {}
        for name, part in directions.items():
            grad = grads[..., part * size : (part + 1) * size]
            time, valid = _from_the_end(lengths, reverse=part == 1)
            if state is not None:
                last = state[part - len(directions)].reshape(-1, size).to(kind)
                grad[time[0], torch.arange(len(lengths), device=grad.device)] += last
            column = time[..., None]
            aligned = [v.gather(0, column.expand(*time.shape, v.shape[2])) for v in (inputs, grad)]
            heard = _relative(_mean(aligned[1].double().square().sum(-1), valid))
            if heard is not None:
                found[name] = Asked(heard, links(aligned[0], aligned[1], valid))
    return found


def asked_of_cell(inputs: list[Tensor], grad: Tensor) -> list[float]:
    """The links of a cell that is called step by step: its inputs (B, N), first call first, and the gradient (B, H)
    at its last output; `some_samples` of each. Empty where the batch changes on the way.
    """
    if len({x.shape for x in inputs}) > 1 or inputs[0].dim() != 2 or grad.shape[:1] != inputs[0].shape[:1]:
        return []
    grads = grad.new_zeros(len(inputs), *grad.shape)
    grads[0] = grad
    valid = torch.ones(grads.shape[:2], dtype=torch.bool, device=grad.device)
    return links(torch.stack(inputs[::-1]), grads, valid)


def some_samples(values: Tensor) -> Tensor:
    """A copy of at most `SAMPLES` rows, evenly spread."""
    rows = torch.linspace(0, max(len(values) - 1, 0), min(len(values), SAMPLES), device=values.device).round().long()
    return values.detach()[rows]


def links(inputs: Tensor, grads: Tensor, valid: Tensor) -> list[float]:
    """How alike inputs and gradients differ between the samples, by lag; see `Asked`.

    `inputs` (T, B, N), `grads` (T, B, H), `valid` (T, B): by steps before the end. With the centred Gram matrices X
    of the inputs and G of the gradients, diagonals left out, the link is <G, X> / (|G| |X|) over the pairs of samples
    and the steps at which the loss listens; by chance it is 0 with variance 2 sum G^2 X^2 / (|G|^2 |X|^2) (HSIC with
    linear kernels; Gretton et al. 2005).
    """
    steps, batch = valid.shape
    if steps > LONGEST or batch < 2:
        return [0.0] * steps
    rows = torch.linspace(0, batch - 1, min(batch, SAMPLES), device=valid.device).round().long()
    alike_x, alike_g = (_gram(part[:, rows].double(), valid[:, rows]) for part in (inputs, grads))
    listening = alike_g.square().sum((1, 2)).nonzero().flatten()
    chosen = listening[torch.linspace(0, len(listening) - 1, min(len(listening), _LISTENERS)).round().long()]
    found = []
    for lag in range(steps):
        now = chosen[chosen + lag < steps]
        g, x = alike_g[now], alike_x[now + lag]
        together, chance = float((g * x).sum()), float(2 * (g * x).square().sum())
        size = float(g.square().sum() * x.square().sum())
        sure = math.isfinite(size) and size > 0 and together > CHANCE * math.sqrt(chance)
        found.append(together / math.sqrt(size) if sure else 0.0)
    return found


def _gram(values: Tensor, valid: Tensor) -> Tensor:
    """<v_b, v_c> for each two samples (T, B, B), centred, scaled, zero on the diagonal and where one is missing."""
    there = valid[..., None].double()
    count = there.sum(1, keepdim=True).clamp_min(1)
    centred = (values - (values * there).sum(1, keepdim=True) / count) * there
    centred = centred / centred.abs().amax().clamp_min(1e-300)
    pairs = there @ there.transpose(1, 2)
    pairs.diagonal(dim1=1, dim2=2).zero_()
    alike = centred @ centred.transpose(1, 2) * pairs
    return (alike - (alike.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1))[:, None, None]) * pairs


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
    """log10 of the size at each lag, relative to lag 0."""
    time, valid = _from_the_end(lengths, reverse=reverse)
    mean = _mean(squares.gather(0, time), valid)
    first = mean[0]
    if not (first > 0 and math.isfinite(first)):
        return [math.nan] * len(mean)
    return [math.log10(m / first) if m > 0 else -math.inf for m in mean]


def _from_the_end(lengths: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """The time at each number of steps before a direction's end, (T, B), and whether the sample has it."""
    before = torch.arange(int(lengths.max()), device=lengths.device)[:, None]
    time = before.expand(-1, len(lengths)) if reverse else lengths - 1 - before
    return time.clamp_min(0), before < lengths


def _mean(squares: Tensor, valid: Tensor) -> list[float]:
    sizes: list[float] = ((squares * valid).sum(1) / valid.sum(1)).sqrt().tolist()
    return sizes


def _relative(sizes: list[float]) -> list[float] | None:
    """log10 of sizes against the largest; None where that is zero or not finite."""
    most = max(sizes)
    if not (most > 0 and all(map(math.isfinite, sizes))):
        return None
    return [math.log10(size / most) if size > 0 else -math.inf for size in sizes]
