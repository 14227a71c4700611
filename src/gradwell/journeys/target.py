"""`file.py:function` or `package.module:function`: what `check` and `treat` are pointed at, from the user's code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import torch
from torch import nn

from gradwell.errors import UnreadableInput, UsageError
from gradwell.surgery.setup import TrainSetup


class UsersException(Exception):
    """An exception in the user's code; `__cause__` is theirs and is shown as theirs."""


class Target(msgspec.Struct, frozen=True):
    """What a target function returned."""

    model: Any
    batch: Any
    loss_fn: Any
    optimizer: Any = None


def load_target(text: str) -> Target:
    """Import the module and call the function.

    The module's folder (for `package.module` the working directory) becomes `sys.path[0]`, as python does for a
    script, and stays there: the function may import more. Raises `UsageError` or `UnreadableInput` with one sentence
    when the target cannot be found or returns something else, `UsersException` when the user's own code raises.
    """
    return _unpack(_called(text), text)


def load_setup(text: str) -> TrainSetup:
    """Import the module and call the function that returns a `TrainSetup`; raises as `load_target` does."""
    if text.endswith(".py"):
        raise UsageError(
            f"treat cannot run a script yet, found {text!r}; name a function of it that returns a TrainSetup, "
            f"{text}:function."
        )
    value = _called(text)
    if isinstance(value, TrainSetup):
        return value
    raise UsageError(
        f"{text} must return a TrainSetup to be treated, found {_kind(value)}; "
        "return gw.TrainSetup(model, make_optimizer, loss_fn, batches)."
    )


def _called(text: str) -> Any:
    """What the user's function returns."""
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UsageError(
            f"A target reads file.py:function or package.module:function, found {text!r}; "
            "name the function that returns (model, batch, loss_fn)."
        )
    module = _module(where)
    function = getattr(module, name, None)
    if not callable(function):
        offered = ", ".join(key for key, value in vars(module).items() if _is_own_function(value, module))
        raise UnreadableInput(f"{where} has no function {name!r}; it has {offered or 'none'}.")
    _require_no_arguments(function, text)
    try:
        return function()
    except Exception as problem:
        raise UsersException from problem


def _is_own_function(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def _require_no_arguments(function: Any, text: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind()
    except TypeError as problem:
        raise UsageError(f"{text} is called without arguments: {problem}; write a function that needs none.") from None


def _unpack(value: Any, text: str) -> Target:
    if isinstance(value, TrainSetup):
        return Target(value.model, value.batch(), value.loss_fn, value.optimizer())
    if (
        isinstance(value, (tuple, list))
        and len(value) in (3, 4)
        and isinstance(value[0], nn.Module)
        and callable(value[2])
    ):
        target = Target(*value)
        if target.optimizer is None or isinstance(target.optimizer, torch.optim.Optimizer):
            return target
    raise UsageError(
        f"{text} must return (model, batch, loss_fn) or (model, batch, loss_fn, optimizer), found {_kind(value)}; "
        "loss_fn takes (model, batch) and returns a scalar tensor."
    )


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type(v).__name__ for v in value)})"
    return type(value).__name__


def _module(where: str) -> ModuleType:
    if where.endswith(".py") or "/" in where:
        return _module_of_file(Path(where))
    if not all(part.isidentifier() for part in where.split(".")):
        raise UsageError(f"{where!r} names neither a file that ends in .py nor a module; write file.py:function.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as problem:
        if problem.name is not None and f"{where}.".startswith(f"{problem.name}."):
            raise UnreadableInput(
                f"No module named {where!r} from here; name a file as path/to/file.py:function."
            ) from None
        raise UsersException from problem
    except Exception as problem:
        raise UsersException from problem


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnreadableInput(f"No file {path}; name the file that holds the function.")
    spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
    if spec is None or spec.loader is None:
        raise UnreadableInput(f"{path} is no Python file; name a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise UsersException from problem
    return module
