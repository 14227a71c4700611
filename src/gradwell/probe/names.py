"""What to call a module, and the line of the user's own file where it was built.

A root is the outermost module called; it only gives names (PITFALLS P32): the name comes from the variable, list
or attribute that holds it where it was called, so that layers in a list read `layers[3]`.
"""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
import textwrap
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from gradwell.probe.kinds import weak_cache

_OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple(
    {_OURS, str(Path(torch.__file__).parent), *(sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib"))}
)


@lru_cache(maxsize=4096)
def _is_users(filename: str) -> bool:
    return not filename.startswith(_LIBRARIES) and not filename.startswith("<")


@lru_cache(maxsize=4096)
def _short(filename: str) -> str:
    try:
        return str(Path(filename).resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return Path(filename).name


def user_frame(depth: int = 1) -> FrameType | None:
    """The innermost frame on the stack that runs the user's own code."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def user_line(depth: int = 1) -> str | None:
    """`file:line` of the innermost user frame, relative to the working directory where it lies below it."""
    frame = user_frame(depth + 1)
    return None if frame is None else f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


class Construction:
    """Notes the line where each module is built while it is on; `lines` forgets modules that are gone.

    `nn.Module.__init__` is replaced by one that notes the line and calls the original.
    """

    def __init__(self) -> None:
        self._lines: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._original: Callable[..., None] | None = None

    def on(self) -> Construction:
        """Start noting."""
        original = nn.Module.__init__
        lines = self._lines

        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (stands in for it)
            line = user_line(2)
            if line is not None:
                key = id(module)
                lines[key] = (weakref.ref(module, lambda _: lines.pop(key, None)), line)
            original(module, *args, **kwargs)

        self._original = original
        nn.Module.__init__ = __init__  # type: ignore[method-assign,assignment]  # stands in for it
        return self

    def off(self) -> None:
        """Put the original back."""
        if self._original is not None:
            nn.Module.__init__ = self._original  # type: ignore[method-assign]
            self._original = None

    def line(self, module: nn.Module) -> str | None:
        """Where a module was built, None when it was built before or copied."""
        known = self._lines.get(id(module))
        return known[1] if known is not None and known[0]() is module else None


class _Known:
    """What is known of a module: its name, its root's, and the attribute by which a parent holds it."""

    __slots__ = ("attribute", "name", "parent", "reference", "root", "source")

    def __init__(self, module: nn.Module, name: str, root: str, parent: _Known | None, attribute: str) -> None:
        self.reference = weakref.ref(module)
        self.name, self.root, self.parent, self.attribute = name, root, parent, attribute
        self.source: str | None = ""  # "" until it is asked for


class Names:
    """Names and source lines of modules and parameters, worked out once for each root."""

    def __init__(self, construction: Construction | None = None) -> None:
        self.construction = construction
        self._modules: dict[int, _Known] = {}
        self._parameters: dict[int, tuple[Any, str, str]] = {}
        self._roots: list[tuple[weakref.ref[nn.Module], str]] = []
        self._strangers: dict[int, tuple[weakref.ref[nn.Module], int]] = {}

    def root(self, module: nn.Module, name: str | None = None, frame: FrameType | None = None) -> None:
        """Learn the names below a root; `name` None: the variable that holds it in the calling user frame."""
        if self._known(module) is not None:
            return
        owner, prefix = module, name
        if prefix is None:
            owner, prefix = _holder(module, frame)
        self._roots.append((weakref.ref(owner), prefix))
        self._learn(owner, prefix)

    def _learn_newcomers(self) -> None:
        """Layers and parameters that known models have got since."""
        for reference, prefix in self._roots:
            owner = reference()
            if owner is not None:
                self._learn(owner, prefix)

    def _look_for(self, module: nn.Module) -> _Known | None:
        """A module that no root had so far: looked for at its first, second, fourth, eighth ... call, since a walk over
        all roots is long and what stands in a plain list stays a stranger.
        """
        reference, asked = self._strangers.get(id(module), (None, 0))
        if reference is None or reference() is not module:
            reference, asked = weakref.ref(module), 0
        self._strangers[id(module)] = reference, asked + 1
        if asked & (asked + 1):
            return None
        self._learn_newcomers()
        return self._known(module)

    def _learn(self, owner: nn.Module, prefix: str) -> None:
        title = type(owner).__name__ if prefix == "" else prefix
        modules, parameters = self._modules, self._parameters
        seen: set[int] = set()
        stack: list[tuple[nn.Module, str, _Known | None, str]] = [(owner, prefix, None, "")]
        while stack:
            child, path, parent, attribute = stack.pop()
            key = id(child)
            if key in seen:
                continue
            seen.add(key)
            known = modules.get(key)
            if known is None or known.reference() is not child:
                known = modules[key] = _Known(child, path or type(child).__name__, title, parent, attribute)
            elif known.parent is None and parent is not None:  # a layer that was called by itself before
                known.parent, known.attribute, known.source = parent, attribute, ""
            dot = f"{path}." if path else ""
            for own, parameter in child._parameters.items():
                if parameter is None:
                    continue
                of_that_number = parameters.get(id(parameter))
                if of_that_number is None or of_that_number[0]() is not parameter:  # it may be one that is gone
                    parameters[id(parameter)] = (weakref.ref(parameter), dot + own, path)
            if child._modules:
                for own, grandchild in reversed(child._modules.items()):
                    if grandchild is not None:
                        stack.append((grandchild, dot + own, known, own))

    def _known(self, module: nn.Module) -> _Known | None:
        known = self._modules.get(id(module))
        return known if known is not None and known.reference() is module else None

    def module(self, module: nn.Module) -> tuple[str, str]:
        """The name of a module and of its root; its class where no root holds it."""
        return self.place(module)[:2]

    def place(self, module: nn.Module) -> tuple[str, str, str | None]:
        """Name, root and source of a module."""
        known = self._modules.get(id(module))
        if known is None or known.reference() is not module:
            known = self._look_for(module) if module._parameters else None
        if known is None:
            return type(module).__name__, "", None if self.construction is None else self.construction.line(module)
        if known.source == "":
            line = None if self.construction is None else self.construction.line(module)
            known.source = _assigned(known) if line is None else line
        return known.name, known.root, known.source

    def parameter(self, tensor: Any) -> tuple[str, str]:
        """The name of a parameter and of the site that owns it; a bare tensor is looked up in the user's frames."""
        known = self._parameters.get(id(tensor))
        if known is None and isinstance(tensor, nn.Parameter):
            self._learn_newcomers()
            known = self._parameters.get(id(tensor))
        if known is None or known[0]() is not tensor:
            name = _variable_of(tensor) or f"tensor{tuple(tensor.shape)}".replace(" ", "")
            known = (weakref.ref(tensor), name, name)
            self._parameters[id(tensor)] = known
        return known[1], known[2]

    def parameters(self) -> Iterator[Any]:
        """The parameters of all roots seen so far, in the order of their modules."""
        for reference, _, _ in self._parameters.values():
            tensor = reference()
            if tensor is not None:
                yield tensor

    def source(self, module: nn.Module) -> str | None:
        """`file:line` of the user's own code that built the module.

        Noted at construction where that was watched; else the line of the assignment in the parent's class, when
        that class stands in the user's own file.
        """
        return self.place(module)[2]


def _assigned(known: _Known) -> str | None:
    """The line where an ancestor's class assigns the attribute that leads to a module."""
    for _ in range(32):
        parent = None if known.parent is None else known.parent.reference()
        if known.parent is None or parent is None:
            break
        line = _assignment_line(type(parent), known.attribute)
        if line is not None:
            return line
        known = known.parent
    return None


@weak_cache
def _lines_of(owner: Any) -> dict[str, str | None] | None:
    """Lines by attribute, filled when asked for; None for a class that does not stand in the user's own file."""
    try:
        filename = inspect.getsourcefile(owner)
    except (OSError, TypeError):
        return None
    return {} if filename is not None and _is_users(filename) else None


def _assignment_line(owner: Any, attribute: str) -> str | None:
    """`file:line` of `self.attribute = ...` in a class of the user's own file, None where there is none."""
    known: dict[str, str | None] | None = _lines_of(owner)
    if known is None:
        return None
    if attribute not in known:
        known[attribute] = _find_assignment(owner, attribute)
    return known[attribute]


def _find_assignment(owner: Any, attribute: str) -> str | None:
    try:
        filename = inspect.getsourcefile(owner) or ""
        lines, first = inspect.getsourcelines(owner)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr == attribute for t in targets):
                return f"{_short(filename)}:{first + node.lineno - 1}"
    return None


def _variables(frame: FrameType) -> dict[str, Any]:
    """The variables of a frame. Before Python 3.13 a function's `f_locals` is a copy that stays with the frame and
    keeps the user's tensors alive after their `del`: it is emptied again, unless somebody else holds it too.
    """
    held = frame.f_locals
    variables = dict(held)
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(held) <= 3:
        held.clear()
    return variables


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    frame = frame or user_frame(2)
    for _ in range(12):
        if frame is None:
            return
        if _is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _holder(module: nn.Module, frame: FrameType | None) -> tuple[nn.Module, str]:
    """The outermost module that owns `module` among the variables in sight, and the name to put in front.

    A model called by its variable gets no prefix when it is the only thing called (`model(x)` reads `hidden.0`),
    an element of a list reads `layers[3]`, a child of an object that is itself a module reads `net.0`.
    """
    for candidate in _frames(frame):
        for name, value in _variables(candidate).items():
            if value is module:
                continue
            if isinstance(value, nn.Module) and any(child is module for child in value.modules()):
                return value, ""
            label = _inside(module, value)
            if label is not None:
                return module, f"{name}{label}"
            owned = getattr(value, "__dict__", None)
            if owned and not isinstance(value, (type, nn.Module)) and any(v is module for v in owned.values()):
                return module, next(k for k, v in owned.items() if v is module)
    for candidate in _frames(frame):
        for name, value in _variables(candidate).items():
            if value is module and name not in _PLAIN_NAMES:
                return module, name
    return module, ""


_PLAIN_NAMES = {"model", "net", "network", "module", "self", "m", "fn", "f"}


def _inside(item: Any, container: Any) -> str | None:
    if isinstance(container, (list, tuple)) and len(container) < 4096:
        return next((f"[{i}]" for i, value in enumerate(container) if value is item), None)
    if isinstance(container, dict) and len(container) < 4096:
        return next((f"[{k!r}]" for k, value in list(container.items()) if value is item), None)
    return None


def _variable_of(tensor: Any) -> str | None:
    for candidate in _frames(user_frame(3)):
        for name, value in _variables(candidate).items():
            if value is tensor:
                return name
            label = _inside(tensor, value)
            if label is not None:
                return f"{name}{label}"
    return None
