"""Leave no trace: what a trial pass may change is put back as it was."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradwell.probe.modules import modules_of, parameters_of


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Inside, `.grad` is None everywhere; afterwards `.grad`, buffers, modes and random numbers are as before.

    The gradients are set aside by reference, buffers are copied. Random numbers: torch (CPU and every GPU that is
    in use), Python's `random` and, when it is loaded, numpy's global generator.
    """
    modules = modules_of(model)
    modes = [module.training for module in modules]
    parameters = parameters_of(modules)
    before = [(p, p.grad, p.requires_grad) for p in parameters]
    buffers = [(m, n, b, b.detach().clone()) for m in modules for n, b in m._buffers.items() if b is not None]
    hooks = [(h, dict(h)) for p in parameters if (h := p._post_accumulate_grad_hooks)]
    python_state = random.getstate()
    devices = sorted({p.device.index or 0 for p in parameters if p.is_cuda})
    with _numpy_restored(), torch.random.fork_rng(devices=devices):
        for p in parameters:
            p.grad = None
        for held, _ in hooks:  # an optimizer inside the backward would step
            held.clear()
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                if module.training is not mode:  # setting an attribute of a module is slow
                    module.training = mode
            for p, grad, flag in before:
                p.grad = grad
                if p.requires_grad is not flag:
                    p.requires_grad_(flag)
            _put_back(buffers)
            for held, content in hooks:
                held.update(content)
            random.setstate(python_state)


def _put_back(buffers: Sequence[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> None:
    if buffers:
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer
                if not _overlaps(buffer):
                    buffer.copy_(copy)


@contextmanager
def _numpy_restored() -> Iterator[None]:
    """Afterwards numpy's global generator is as before.

    To set its state is slow, so that it is done only where the generator has moved: each draw changes its memory, but
    for a normal number that was drawn in advance (`has_gauss`).
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        yield
        return
    generator = numpy.random.mtrand._rand
    state = generator.get_state(legacy=False)
    before = _memory(generator)
    try:
        yield
    finally:
        if before is None or state["has_gauss"] or _memory(generator) != before:
            generator.set_state(state)


def _memory(generator: Any) -> bytes | None:
    """The raw state of a Mersenne twister: 624 words and a position; None for another generator."""
    bits = generator._bit_generator
    if type(bits).__name__ != "MT19937":
        return None
    return ctypes.string_at(bits.ctypes.state_address, 625 * 4)


def _overlaps(tensor: torch.Tensor) -> bool:
    """True for an expanded tensor: nobody can write to it in place, nor can we."""
    strided = tensor.layout is torch.strided
    return strided and any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


@contextmanager
def set_aside(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside, `.grad` of these tensors is None; afterwards as before. For leaves that the model does not own."""
    grads = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = grad
