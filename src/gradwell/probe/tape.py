"""The forward half of a tape: which leaf was called when, with which keys in the autograd graph, and its sizes.

Global module hooks note each call of a leaf module, a TorchFunctionMode each functional activation. Nothing is kept
alive but small samples: a call remembers sequence numbers, not tensors. Full backward hooks are never used
(PITFALLS P1). What happens in the backward pass is measured by `probe.backward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from threading import get_ident
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

MAX_CALLS = 20_000
"""Calls on one tape at most; a loop that runs a model for ever without a backward must not fill the memory."""

Handle = tuple[Key, Key | None]
"""Where a tensor lives in the graph: its own key, and its base's where it is a view (see `handle_of`)."""


class Visit:
    """One call of a leaf: who it is, where it lies in the graph, and what was measured there."""

    call = 0
    turn = 0  # which call of an outermost module this belongs to
    weight: Tensor | None = None
    gain: Tensor | None = None  # of a normalisation
    fan_in: int | None = None
    fan_out: int | None = None
    out_shape: tuple[int, ...] = ()
    numel = 0
    size: float | None = None  # L2 norm of the output
    nonfinite: int | None = None
    values: sizes.Sample | None = None  # sample (B, P, U) of the output
    # Filled by the backward half:
    delta: float | None = None  # L2 norm of dLoss/d(output)
    left: float | None = None  # L2 norm of the gradient that this call sends to its input
    entered: sizes.Sample | None = None  # sample of dLoss/d(output)
    ratio: sizes.Sample | None = None  # sample of the gradient sent on / gradient arrived
    isotropic: float | None = None  # log10 gain for a random cotangent
    flow: float | None = None

    def __init__(self, name: str, kind: str, role: str, *, root: str = "", source: str | None = None) -> None:
        self.name, self.kind, self.role, self.root, self.source = name, kind, role, root, source
        self.where_in: list[Handle] = []
        self.where_out: list[Handle] = []
        self.inputs: set[Key] = set()
        self.outputs: list[Key] = []
        self.exits: list[Edge] = []
        self.stats: dict[str, float] = {}


class Given:
    """What one call of an outermost module was given: size and mean of its first floating tensor, recurrent inputs."""

    def __init__(self, rms: float | None = None, mean: float | None = None) -> None:
        self.rms, self.mean = rms, mean
        self.recurrent: dict[str, tuple[nn.RNNBase, tuple[Any, ...]]] = {}


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
        self._stack, self._hidden = [], 0
        self._functions.take_out()

    def take(self, reached: Callable[[Visit], bool]) -> list[Visit]:
        """The visits of every outermost call that a backward reaches; the others stay for a later backward.

        So a generator's forward pass waits for its own backward while the judge's goes first, and an evaluation with
        gradients on does not count as a call.
        """
        turns = {visit.turn for visit in self.visits if reached(visit)}
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

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The instrument never harms the patient: an exception of ours ends the recording, not the training."""

        def guarded(*args: Any) -> None:
            if _is_transformed():
                return
            try:
                self._tell()
                with torch._C.DisableTorchFunction():  # our own mode must not see our own work
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
        if not self._stack:
            self._thread = get_ident()  # other threads may call models meanwhile; modes and graphs are per thread
        elif self._thread != get_ident():
            return
        if self._hidden or isinstance(module, ParametrizationList):
            self._hidden += 1  # how a layer's weight is made is the layer's own business
            return
        if self._stack:
            self._stack[-1].container = True
        else:
            self.names.root(module)
            self._turn += 1
        inputs: list[Handle] = []
        shape: tuple[int, ...] = ()
        for value in args if all(isinstance(a, Tensor) for a in args) else tree_leaves(args):
            if isinstance(value, Tensor):
                if not self._stack:
                    self._look_at_input(value)
                shape = shape or tuple(value.shape)
                if value.requires_grad:
                    inputs += handle_of(value)
        self._stack.append(_Frame(module, inputs, shape))
        self._functions.set(on=self._stack[-1].open)

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
        while self._stack:  # an exception may have skipped the hooks of inner modules
            frame = self._stack.pop()
            if frame.module is module:
                break
        self._functions.set(on=bool(self._stack) and self._stack[-1].open)
        if frame is None or frame.module is not module or frame.container:
            return
        tensors = _with_gradient(output)
        if not tensors or self._unwanted():
            return
        name, root = self.names.module(module)
        visit = Visit(name, kinds.kind_of(module), kinds.role_of(module), root=root, source=self.names.source(module))
        if visit.role == "weight":
            visit.weight = next((p for p in module._parameters.values() if p is not None and p.dim() >= 2), None)
        elif visit.role == "norm":
            visit.gain = module._parameters.get("weight")
        self._note(visit, frame.inputs, tensors, frame.shape)
        if isinstance(module, nn.RNNBase) and args:
            self.given.setdefault(self._turn, Given()).recurrent.setdefault(name, (module, args))

    def function(self, name: str, source: Tensor, inputs: list[Handle], output: Any) -> None:
        """A functional activation, seen by the mode while a module runs."""
        frame = self._stack[-1] if self._stack else None
        if frame is None:
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
        visit.turn = self._turn
        output = tensors[0].detach()
        if output.is_nested:
            output = output.values()
        visit.out_shape = tuple(output.shape)
        visit.numel = output.numel()
        if in_shape and visit.out_shape:
            axis = 1 if len(in_shape) >= 4 else -1
            visit.fan_in, visit.fan_out = in_shape[axis], visit.out_shape[axis if len(visit.out_shape) >= 4 else -1]
        if output.dim() == 0:
            visit.role = "loss"
        visit.where_in = inputs
        visit.where_out = [handle for tensor in tensors for handle in handle_of(tensor)]
        if visit.numel:
            visit.size, visit.values = sizes.l2_and_sample(output)
            visit.nonfinite = sizes.nonfinite_count(output, visit.size)
            if visit.role == "activation" and output.dim() > 0 and kinds.can_die(visit.kind):
                visit.stats["dead"] = sizes.dead_fraction(output)
        self.visits.append(visit)


class _Functions(TorchFunctionMode):
    """Sees the functional activations while a module's own forward runs.

    Pushed and popped by the module hooks; off inside torch's own leaves, where the module is the site. It is popped
    only while it lies on top: a mode that the user's forward has pushed since (`torch.device`) is left alone.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape
        self._known = kinds.functional_activations()
        self._open = False

    def set(self, *, on: bool) -> None:
        """Push or pop, where that is a change."""
        if on == self._open:
            return
        if on:
            super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._open = True
        elif (height := torch._C._len_torch_function_stack()) and torch._C._get_function_stack_at(height - 1) is self:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._open = False

    def take_out(self) -> None:
        """Leave the stack for good, also from below a mode that the user's forward has pushed since."""
        self._open = False
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
        name = self._known.get(func)
        if name is None:
            return func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor) or self._tape._problem is not None or _is_transformed():
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # the user's own modes must not see our own work
            inputs = handle_of(source) if source.requires_grad else []
        output = func(*args, **kwargs)
        try:
            with torch._C.DisableTorchFunction():
                self._tape.function(name, source, inputs, output)
        except Exception as problem:  # torch has taken this mode off the stack meanwhile: the next hook tells it
            self._tape._problem = problem
        return output


def _is_transformed() -> bool:
    return bool(torch.compiler.is_compiling()) or torch._C._functorch.maybe_current_level() is not None


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
