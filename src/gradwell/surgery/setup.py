"""`TrainSetup`: a model and everything that trains it, in one thing that can be copied and edited.

It is the one mutable noun of the house, because surgery edits it: a remedy's `apply(setup)` changes the setup it is
given, so callers give it a copy.

>>> import torch
>>> net = torch.nn.Linear(2, 1)
>>> setup = TrainSetup(net, lambda params: torch.optim.SGD(params, lr=0.1), lambda model, x: model(x).mean(), None)
>>> twin = setup.copy()
>>> twin.model is net, torch.equal(twin.model.weight, net.weight)
(False, True)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwell.errors import Refused, UsageError
from gradwell.surgery.gradients import GradientEdit
from gradwell.surgery.optimizers import adopt
from gradwell.surgery.terms import LossTerm

MakeOptimizer = Callable[[Any], Optimizer]
LossFn = Callable[[nn.Module, Any], Tensor]
Batches = Callable[[int], Iterable[Any]]


@dataclass
class TrainSetup:
    """A model, how to make its optimizer, its loss and its data, and what its loop does between loss and step.

    `make_optimizer(params)` builds the optimizer from the parameters it is given, `loss_fn(model, batch)` returns a
    scalar tensor, `batches(seed)` the batches in the order of that seed (None: no data at hand).

    `clip_norm`: bound of the gradient's norm. `warmup_steps`: steps of a linear warm-up. `steps`: length of a training.
    `loss_scale`: start of a dynamic loss scale. `lr_scale`: factor on every learning rate. `weight_decay` and
    `clip_value`: None leaves them as they are. `gradient_edits`: what else is done to the gradients, in order, before
    `clip_norm`. `loss_terms`: what is added to the loss. `skip_nonfinite`: leave out the step after a gradient that is
    not finite, or whose norm is `skip_from` or more. `grown`: parameters that surgery has added, each with the older
    one in whose optimizer group it belongs. `applied`: remedies and their settings, in order. `pretrained`: True
    forbids what would throw weights away, False allows it, None looks at the weights.
    """

    model: nn.Module
    make_optimizer: MakeOptimizer
    loss_fn: LossFn
    batches: Batches | None
    _: KW_ONLY
    clip_norm: float | None = None
    warmup_steps: int = 0
    steps: int | None = None
    loss_scale: float | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None
    clip_value: float | None = None
    gradient_edits: list[GradientEdit] = field(default_factory=list)
    loss_terms: list[LossTerm] = field(default_factory=list)
    skip_nonfinite: bool = False
    skip_from: float | None = None
    grown: dict[str, str] = field(default_factory=dict)
    applied: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pretrained: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise UsageError(f"A TrainSetup needs a torch.nn.Module as its model, found {type(self.model).__name__}.")
        for name in ("make_optimizer", "loss_fn"):
            if not callable(getattr(self, name)):
                raise UsageError(f"{name} of a TrainSetup must be a function, found {getattr(self, name)!r}.")

    def copy(self) -> TrainSetup:
        """A setup with a model of its own; gradients are not copied, functions and data are shared.

        Raises `Refused` for a model that cannot be copied.
        """
        try:
            model = copy.deepcopy(self.model)
        except Exception as problem:
            raise Refused(
                f"The model cannot be copied ({type(problem).__name__}: {problem}); "
                "keep no computed tensors, locks or generators as its attributes."
            ) from problem
        return replace(
            self,
            model=model,
            gradient_edits=list(self.gradient_edits),
            loss_terms=list(self.loss_terms),
            grown=dict(self.grown),
            applied=list(self.applied),
        )

    def optimizer(self) -> Optimizer:
        """A fresh optimizer over the model's parameters, new ones in the group of their neighbours.

        Raises `UsageError` when `make_optimizer` builds it from other parameters than those it is given.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False))
        made = self.make_optimizer(self.model.parameters())
        if not isinstance(made, Optimizer):
            raise UsageError(f"make_optimizer must return a torch.optim.Optimizer, found {type(made).__name__}.")
        known = {id(p) for p in own.values()}
        if any(id(p) not in known for group in made.param_groups for p in group["params"]):
            raise UsageError(
                "make_optimizer built an optimizer over other parameters than those it was given; "
                "use its argument, `lambda params: SGD(params, lr=0.1)`, because every trial has a copy of the model."
            )
        for new, neighbour in self.grown.items():
            adopt(made, own[new], own[neighbour])
        if self.weight_decay is not None:
            for group in made.param_groups:
                group["weight_decay"] = self.weight_decay
        return made

    def batch(self, seed: int = 0) -> Any:
        """The first batch of a seed, random numbers put back; raises `Refused` without data."""
        if self.batches is None:
            raise Refused("This change looks at a batch, and the setup has no data; give it `batches`.")
        with forked():
            for batch in self.batches(seed):
                return batch
        raise UsageError(f"batches({seed}) gave no batch at all; it must return an iterable of batches.")


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Random numbers of torch go on from here (or from `seed`) inside, and are afterwards as before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    token = _FORKED.set(True)
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        _FORKED.reset(token)


def forked_once() -> AbstractContextManager[None]:
    """As `forked`, but inside another one of ours numbers simply go on: two remedies must not draw the same ones."""
    return nullcontext() if _FORKED.get() else forked()


_FORKED = ContextVar("_FORKED", default=False)


def scale_loss(setup: TrainSetup, init_scale: float) -> None:
    """A dynamic loss scale; refused for weights in half precision."""
    for name, p in setup.model.named_parameters():
        if p.dtype in {torch.float16, torch.bfloat16}:
            raise Refused(
                f"{name} is kept in {str(p.dtype).removeprefix('torch.')}, where the divided gradient is as small as "
                "before; keep the weights in float32 and run the forward pass under autocast."
            )
    setup.loss_scale = init_scale
