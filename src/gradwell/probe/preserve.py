"""Leave no trace: what a trial pass may change is put back as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Inside, `.grad` is None everywhere; afterwards `.grad`, buffers, modes and random numbers are as before.

    The gradients are set aside by reference, buffers are copied. Random numbers: torch (CPU and every GPU that is
    in use), Python's `random` and, when it is loaded, numpy's global generator.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    parameters = list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())
    grads = [p.grad for p in parameters]
    flags = [p.requires_grad for p in parameters]
    buffers = [(m, n, b, b.detach().clone()) for m in modules for n, b in m._buffers.items() if b is not None]
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    python_state = random.getstate()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        for p in parameters:
            p.grad = None
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for p, grad, flag in zip(parameters, grads, flags, strict=True):
                p.grad = grad
                p.requires_grad_(flag)
            with torch.no_grad():
                for module, name, buffer, copy in buffers:
                    module._buffers[name] = buffer
                    buffer.copy_(copy)
            random.setstate(python_state)
            if numpy is not None and numpy_state is not None:
                numpy.random.set_state(numpy_state)
