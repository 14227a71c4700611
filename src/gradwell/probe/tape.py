"""The forward half of a tape: which leaf was called when, with which keys in the autograd graph, and its sizes.

Global module hooks note each call of a leaf module, a TorchFunctionMode each functional activation. Nothing is kept
alive but small samples: a call remembers sequence numbers, not tensors. Full backward hooks are never used
(PITFALLS P1). What happens in the backward pass is measured by `probe.backward`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves

from gradwell.probe import kinds, sizes
from gradwell.probe.graph import Edge, Key, key_of
from gradwell.probe.names import Names, user_line
from gradwell.probe.recurrent import some_samples

MAX_CALLS = 20_000
"""Calls on one tape at most; a loop that runs a model for ever without a backward must not fill the memory."""

MOST_WAITING = 65_536
"""Elements of small outputs that wait to be measured together, at most: what stays in the processor's cache."""

Handle = tuple[Key, Key | None]
"""Where a tensor lives in the graph: its own key, and its base's where it is a view (see `handle_of`)."""


class Visit:
    """One call of a leaf: who it is, where it lies in the graph, and what was measured there."""

    call = 0
    turn = 0  # which call of an outermost module this belongs to
    thread: int | None = None  # sequence numbers are counted in each thread
    weight: Tensor | None = None
    gain: Tensor | None = None  # of a normalisation
    fan_in: int | None = None
    fan_out: int | None = None
    out_shape: tuple[int, ...] = ()
    numel = 0
    where_in: Sequence[Handle] = ()
    where_out: Sequence[Handle] = ()
    size: float | None = None  # L2 norm of the output
    fed: Tensor | None = None  # some samples of a recurrent cell's input
    nonfinite: int | None = None
    values: sizes.Sample | None = None  # sample (B, P, U) of the output
    mean: float | None = None
    zero: float | None = None
    dead: float | None = None
    spread: float | None = None
    # Filled by the backward half:
    inputs: Collection[Key] = ()
    outputs: Sequence[Key] = ()
    exits: Sequence[Edge] = ()
    delta: float | None = None  # L2 norm of dLoss/d(output)
    left: float | None = None  # L2 norm of the gradient that this call sends to its input
    passes = False  # it returns its input: nn.Identity, dropout in eval mode
    waits = False  # its dLoss/d(output) is small and is kept until the end of the backward
    arrived: Tensor | None = None
    array: sizes.Array | None = None  # its memory
    entered: sizes.Sample | None = None  # sample of dLoss/d(output)
    ratio: sizes.Sample | None = None  # sample of the gradient sent on / gradient arrived
    saturated: float | None = None
    isotropic: float | None = None  # log10 gain for a random cotangent
    flow: float | None = None

    def __init__(self, name: str, kind: str, role: str, *, root: str = "", source: str | None = None) -> None:
        self.name, self.kind, self.role, self.root, self.source = name, kind, role, root, source


class Given:
    """What one call of an outermost module was given: size and mean of its first floating tensor, recurrent inputs."""

    def __init__(self, rms: float | None = None, mean: float | None = None) -> None:
        self.rms, self.mean = rms, mean
        self.recurrent: dict[str, tuple[nn.RNNBase, tuple[Any, ...], Visit]] = {}


class _Frame:
    __slots__ = ("container", "inputs", "module", "open", "shape")

    def __init__(self, module: nn.Module, inputs: list[Handle], shape: tuple[int, ...]) -> None:
        self.module, self.inputs, self.shape = module, inputs, shape
        self.container = False
        self.open = kinds.is_open(module)


class Tape:
    """Records the calls between `start` and `stop`; `take` hands them over and begins a new tape."""

    def __init__(self, names: Names, *, on_failure: Callable[[Exception], None] | None = None) -> None:
        self.names = names
        self.visits: list[Visit] = []
        self.given: dict[int, Given] = {}
        self.inputs_with_gradient: set[int] = set()
        self._turn = 0
        self._last_turn = 0
        self._on_failure = on_failure
        self._stack: list[_Frame] = []
        self._thread: int | None = None
        self._hidden = 0  # parametrisations that are being computed
        self._problem: Exception | None = None
        self._handles: list[Any] = []
        self._functions = _Functions(self)
        self._waiting: list[tuple[Visit, Tensor, int]] = []  # with the version of the output
        self._elements = 0

    @property
    def running(self) -> bool:
        """True while the hooks are on."""
        return bool(self._handles)

    def start(self) -> None:
        """Put the global module hooks on."""
        if not self._handles:
            self._handles = [
                register_module_forward_pre_hook(self._guarded(self._enter)),
                register_module_forward_hook(self._guarded(self._leave), always_call=True),
            ]

    def stop(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.measure()
        self.reset_stack()

    def reset_stack(self) -> None:
        """Forget the calls in flight: torch calls no hook when an interrupt passes, and a script may survive one."""
        self._stack, self._hidden = [], 0
        self._functions.take_out()

    def take(self, reached: Callable[[Visit], bool]) -> list[Visit]:
        """The visits of every outermost call that a backward reaches; the others stay for a later backward.

        So a generator's forward pass waits for its own backward while the judge's goes first, and an evaluation with
        gradients on does not count as a call.
        """
        here = get_ident()
        own = [visit for visit in self.visits if visit.thread == here]
        turns = {visit.turn for visit in own or self.visits if reached(visit)}
        taken = [visit for visit in self.visits if visit.turn in turns]
        self.visits = [visit for visit in self.visits if visit.turn not in turns]
        return taken

    def turn_over(self) -> None:
        """Begin a new step: forget the calls that were left before the last one."""
        self.visits = [visit for visit in self.visits if visit.turn > self._last_turn]
        self.given = {turn: given for turn, given in self.given.items() if turn > self._last_turn}
        self.inputs_with_gradient = set()
        self._last_turn = self._turn

    def clear(self) -> None:
        """Forget all calls."""
        self.visits, self.given = [], {}

    def measure(self) -> None:
        """Measure the small outputs that wait: many at once cost half. What was overwritten meanwhile stays unknown."""
        waiting, self._waiting, self._elements = self._waiting, [], 0
        ready = [(visit, output) for visit, output, version in waiting if output._version == version]
        found = sizes.measured([output for _, output in ready])
        for (visit, output), (size, array) in zip(ready, found, strict=True):
            _measure(visit, output, size, array)

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The instrument never harms the patient: an exception of ours ends the recording, not the training."""

        def guarded(*args: Any) -> None:
            if _level() is not None or _is_compiling():
                return
            try:
                if self._problem is not None:
                    self._tell()
                with _without_modes():  # our own mode must not see our own work
                    hook(*args)
            except Exception as problem:
                self.stop()
                if self._on_failure is None:
                    raise
                self._on_failure(problem)

        return guarded

    def _tell(self) -> None:
        """Raise what went wrong in the function mode since the last hook."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        stack = self._stack
        if not stack:
            self._thread = get_ident()  # other threads may call models meanwhile; modes and graphs are per thread
        elif self._thread != get_ident():
            return
        elif stack[0].module is module and not _is_within_itself(module):
            self.reset_stack()
            stack = self._stack
        if self._hidden or isinstance(module, ParametrizationList):
            self._hidden += 1  # how a layer's weight is made is the layer's own business
            return
        if stack:
            stack[-1].container = True
        else:
            self.names.root(module)
            self._turn += 1
        if self._waiting and module.__dict__.get("inplace"):
            self.measure()
        inputs: list[Handle] = []
        shape: tuple[int, ...] = ()
        for value in args if len(args) == 1 and isinstance(args[0], Tensor) else tree_leaves(args):
            if isinstance(value, Tensor):
                if not stack:
                    self._look_at_input(value)
                shape = shape or tuple(value.shape)
                if value.requires_grad:
                    inputs += handle_of(value)
        frame = _Frame(module, inputs, shape)
        stack.append(frame)
        if frame.open is not self._functions.open:
            self._functions.set(on=frame.open)

    def _look_at_input(self, value: Tensor) -> None:
        """The first floating tensor that an outermost module is given; leaves among the inputs are no parameters."""
        if value.requires_grad and value.is_leaf and not isinstance(value, nn.Parameter):
            self.inputs_with_gradient.add(id(value))
        if self._turn not in self.given and value.is_floating_point() and value.numel():
            value = value.detach()
            mean = float(sizes.as_array(sizes.flat_sample(value)).mean(dtype="float64"))
            self.given[self._turn] = Given(sizes.l2(value) / value.numel() ** 0.5, mean)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._thread != get_ident():
            return
        if self._hidden:
            self._hidden -= 1
            return
        frame = None
        stack = self._stack
        while stack:  # an exception may have skipped the hooks of inner modules
            frame = stack.pop()
            if frame.module is module:
                break
        on = bool(stack) and stack[-1].open
        if on is not self._functions.open:
            self._functions.set(on=on)
        if not stack:
            self.measure()
        if frame is None or frame.module is not module or frame.container:
            return
        tensors = _with_gradient(output)
        if not tensors or self._unwanted():
            return
        name, root, source = self.names.place(module)
        kind, role = kinds.part_of(module)
        visit = Visit(name, kind, role, root=root, source=source)
        if role == "weight":
            visit.weight = kinds.weight_of(module)
        elif role == "norm":
            visit.gain = module._parameters.get("weight")
        self._note(visit, frame.inputs, tensors, frame.shape)
        if role == "other" and args:
            self._note_recurrent(visit, module, args)

    def _note_recurrent(self, visit: Visit, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.RNNBase):
            if not type(module).forward.__module__.startswith(("torch.", "gradwell.")):
                return  # a forward of the user's own takes and gives what it likes
            self.given.setdefault(self._turn, Given()).recurrent.setdefault(visit.name, (module, args, visit))
        elif isinstance(module, nn.RNNCellBase):
            visit.fed = some_samples(args[0])

    def function(self, name: str, source: Tensor, inputs: list[Handle], output: Any) -> None:
        """A functional activation, seen by the mode while a module runs."""
        frame = self._stack[-1] if self._stack else None
        if frame is None or not frame.open:  # another mode on top of ours has kept it on inside a leaf
            return
        tensors = _with_gradient(output)
        if not tensors or self._unwanted():
            return
        frame.container = True
        parent, root = self.names.module(frame.module)
        site = f"{name}()" if len(self._stack) == 1 and parent == type(frame.module).__name__ else f"{parent}.{name}()"
        visit = Visit(site, name, "activation", root=root, source=user_line(3))
        self._note(visit, inputs, tensors, tuple(source.shape))

    def _unwanted(self) -> bool:
        """True when the tape is full, and inside the recomputation of a checkpoint (PITFALLS P9)."""
        return len(self.visits) >= MAX_CALLS or torch._C._current_graph_task_id() != -1

    def _note(self, visit: Visit, inputs: list[Handle], tensors: list[Tensor], in_shape: tuple[int, ...]) -> None:
        visit.turn, visit.thread = self._turn, self._thread
        output = tensors[0].detach()
        if output.is_nested:
            output = output.values()
        visit.out_shape = shape = tuple(output.shape)
        visit.numel = output.numel()
        if not shape:
            visit.role = "loss"
        elif in_shape:
            axis = 1 if len(in_shape) >= 4 else -1
            visit.fan_in, visit.fan_out = in_shape[axis], shape[axis if len(shape) >= 4 else -1]
        visit.where_in = inputs
        visit.where_out = handle_of(tensors[0]) if len(tensors) == 1 else [h for t in tensors for h in handle_of(t)]
        self.visits.append(visit)
        if not visit.numel:
            return
        if not self._stack or visit.numel > sizes.SMALL:
            array = sizes.in_memory(output)
            _measure(visit, output, sizes.l2_of(output, array), array)
            return
        # Inside an outermost call what overwrites it is seen before it does.
        self._waiting.append((visit, output, output._version))
        self._elements += visit.numel
        if self._elements > MOST_WAITING:
            self.measure()


def _measure(visit: Visit, output: Tensor, size: float, array: sizes.Array | None) -> None:
    """What the size and the memory of an output tell, and a sample of it."""
    visit.size = size
    visit.nonfinite = sizes.nonfinite_count(output, size)
    if visit.role == "activation" and visit.out_shape and kinds.can_die(visit.kind):
        visit.dead = sizes.dead_fraction(output, size, array)
    visit.values = sizes.thinned(output).clone() if array is None else sizes.thinned(array).copy()


_without_modes = torch._C.DisableTorchFunction
_level = torch._C._functorch.maybe_current_level
_is_compiling = torch.compiler.is_compiling


def _first_of_ours() -> int:
    """Where the modes of tapes begin that lie on top of the stack without a stranger between them."""
    height: int = torch._C._len_torch_function_stack()
    while height and isinstance(torch._C._get_function_stack_at(height - 1), _Functions):
        height -= 1
    return height


def _is_within_itself(module: nn.Module) -> bool:
    """Whether a module that is being called runs already, further up the stack of this thread."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and calls < 2:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls > 1


class _Functions(TorchFunctionMode):
    """Sees the functional activations while a module's own forward runs.

    Pushed and popped by the module hooks; off inside torch's own leaves, where the module is the site. It is popped
    only while it lies on top, or below those of other tapes: a mode that the user's forward has pushed since
    (`torch.device`) is left alone.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape
        self._known = kinds.functional_activations()
        self.open = False

    def set(self, *, on: bool) -> None:
        """Push or pop, where that is a change."""
        if on == self.open:
            return
        if on:
            super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.open = True
        elif (height := torch._C._len_torch_function_stack()) and torch._C._get_function_stack_at(height - 1) is self:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.open = False
        elif any(torch._C._get_function_stack_at(i) is self for i in range(_first_of_ours(), height)):
            self.take_out()

    def take_out(self) -> None:
        """Leave the stack for good, also from below a mode that the user's forward has pushed since."""
        self.open = False
        above: list[Any] = []
        while torch._C._len_torch_function_stack():
            mode = _pop_mode()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if mode is self:
                break
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tape._waiting and _overwrites(func, args, kwargs):
            with _without_modes():
                self._tape.measure()
        name = self._known.get(func)
        if name is None:
            return func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor) or self._tape._problem is not None or _is_transformed():
            return func(*args, **kwargs)
        with _without_modes():  # the user's own modes must not see our own work
            inputs = handle_of(source) if source.requires_grad else []
        output = func(*args, **kwargs)
        try:
            with _without_modes():
                self._tape.function(name, source, inputs, output)
        except Exception as problem:  # torch has taken this mode off the stack meanwhile: the next hook tells it
            self._tape._problem = problem
        return output


def _overwrites(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """True for a call that may write to one of its arguments: `x.add_(y)`, `x += y`, `x[0] = y`, `inplace=True`."""
    return _is_in_place(func) or any(a is True for a in args) or "out" in kwargs or bool(kwargs.get("inplace"))


@cache
def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _is_transformed() -> bool:
    return _level() is not None or _is_compiling()


def handle_of(tensor: Tensor) -> list[Handle]:
    """The handle of a tensor, as a list that is empty for a leaf of the graph.

    A view that is overwritten in place later loses its node; its base's node of now stays in the graph
    (PITFALLS P2), so both are noted.
    """
    own = key_of(tensor)
    if own is None:
        return []
    base = tensor._base if tensor._is_view() else None
    return [(own, key_of(base) if base is not None and base.numel() == tensor.numel() else None)]


def _with_gradient(output: Any) -> list[Tensor]:
    """The floating tensors of an output of any shape (dict, dataclass, nested tuple) that take part in a graph."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad and output.grad_fn is not None else []
    tensors = [leaf for leaf in _leaves(output) if isinstance(leaf, Tensor)]
    if not tensors and hasattr(output, "__dict__"):
        tensors = [leaf for leaf in tree_leaves(vars(output)) if isinstance(leaf, Tensor)]
    return [t for t in tensors if t.requires_grad and t.grad_fn is not None]


def _leaves(output: Any) -> Iterator[Any]:
    """The leaves of an output; dataclasses, which pytree does not know, are looked into."""
    for leaf in tree_leaves(output):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)])
        else:
            yield leaf
