"""The modules and parameters of a model, each once, in torch's order but without the names that torch makes up."""

from __future__ import annotations

from torch import nn


def modules_of(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives."""
    found: dict[int, nn.Module] = {}
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) not in found:
            found[id(module)] = module
            if module._modules:
                stack += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found.values())


def parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """What `model.parameters()` gives, for the `modules_of` a model."""
    return list({id(p): p for module in modules for p in module._parameters.values() if p is not None}.values())
