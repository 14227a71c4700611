"""One finding with everything known about it: what a remedy looks at before it speaks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from operator import attrgetter
from typing import TypeVar

import msgspec

from gradwell.measure.once import once_a_header
from gradwell.records.run import Header, OptimizerInfo, Run, Site, Step, finite
from gradwell.records.verdict import Attribution, Finding
from gradwell.shelf import shelf

Fact = TypeVar("Fact")

LARGE_SHARE = 0.2
"""A cause is large from this share of the total on."""

_RECURRENT = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}
_BLOCK = re.compile(r"^(.*?\d+)\.")


class Treats(msgspec.Struct, frozen=True):
    """What a remedy is for: a symptom, the id of a cause or condition ("": any), and its rank (1: tried first)."""

    symptom: str
    cause: str
    rank: int


class Case(msgspec.Struct, frozen=True, dict=True):
    """A finding, its causes, and the run and sampled step in which it shows."""

    run: Run
    step: Step
    finding: Finding
    causes: list[Attribution]

    # the causes

    @property
    def symptom(self) -> str:
        return self.finding.symptom

    @property
    def total(self) -> float | None:
        """Decades between the deepest site and the output (negative: shrinks): the sum of the shares."""
        shares = finite([a.decades for a in self.causes if a.kind == "share"])
        return sum(shares) if shares else self.step.total

    @cached_property
    def conditions(self) -> set[str]:
        """Causes that carry no decades."""
        return {a.cause for a in self.causes if a.kind == "condition"}

    @cached_property
    def large(self) -> list[str]:
        """Causes with at least a fifth of the total, in the direction of the total, largest first."""
        shares = [(a.share, a.cause) for a in self.causes if a.kind == "share" and a.share is not None]
        return [cause for share, cause in sorted(shares, reverse=True) if share >= LARGE_SHARE]

    def has(self, cause: str) -> bool:
        """True for a large cause or a condition of this case."""
        return cause in self.large or cause in self.conditions

    def decades(self, *causes: str) -> float:
        """What these causes add together, signed; 0 where nothing was measured."""
        return sum(finite([a.decades for a in self.causes if a.cause in causes]))

    def back(self, *causes: str, otherwise: str) -> str:
        """What mending these causes should change, in numbers; `otherwise` where they carry less than half a decade."""
        total, part = self.total, self.decades(*causes)
        if total is None or part * total <= 0 or abs(part) < 0.5:
            return otherwise
        part = min(abs(part), abs(total))
        verb = "give back" if total < 0 else "take away"
        return f"should {verb} about {_plain(part)} of the {_plain(abs(total))} decades"

    # the net

    @property
    def activations(self) -> list[str]:
        """Ids of the activations in the net, the most frequent first; functions that no shelf knows are left out."""
        return _activations(self.run.header)

    @property
    def activation(self) -> str:
        """The most frequent activation, "" where none is known."""
        return self.activations[0] if self.activations else ""

    @cached_property
    def weak_activation(self) -> bool:
        """True when no init but a centred one can make up for the slope: sigmoids, at most 1/4 steep."""
        return _fact(self.activation, "MAX_SLOPE", 1.0) < 0.5

    @property
    def saturating(self) -> bool:
        """True when the activation is flat on both sides."""
        return _fact(self.activation, "SATURATES", False)

    @property
    def can_die(self) -> bool:
        """True when the activation is exactly flat on a half line, so that a unit can stop learning for good."""
        return _fact(self.activation, "CAN_DIE", False)

    def torch_class(self, activation: str) -> str:
        """`nn.ReLU` for relu; "" where the net calls a function (`F.relu`) or torch has no such module."""
        kinds = {site.kind for site in self.run.sites if site.role == "activation"}
        known: tuple[str, ...] = _fact(activation, "TORCH", ())
        classes = [name for name in known if name[:1].isupper() and name in kinds]
        return f"nn.{classes[0]}" if classes else ""

    @property
    def output_activation(self) -> str:
        """Id of the activation behind the last weight layer, "" when the net ends in a weight layer."""
        return _activation_ids().get(self._behind.kind, "") if self._behind else ""

    @property
    def output_name(self) -> str:
        """Name of that activation, "" when the net ends in a weight layer."""
        return self._behind.site if self._behind else ""

    @cached_property
    def _behind(self) -> Site | None:
        order = max((site.order for site in self._named("weight")), default=0)
        return next((site for site in self._named("activation") if site.order > order), None)

    @property
    def head(self) -> str:
        """Name of the last weight layer that is called (modules may stand in any order), "" where none is known."""
        last = max(self._named("weight"), key=attrgetter("order"), default=None)
        return last.site if last else ""

    @property
    def weight_kinds(self) -> list[str]:
        """Classes of the weight layers, the most frequent first (`Linear`, `Conv2d`, ...)."""
        return _weight_kinds(self.run.header)

    @cached_property
    def layers(self) -> int:
        """Number of weight layers."""
        return sum(site.call == 0 for site in self._named("weight"))

    @property
    def blocks(self) -> int:
        """Number of repeated blocks by name (`blocks.0.`, `blocks.1.`, ...); the weight layers where none repeat."""
        names = [site.site for site in self._named("weight")]
        return len({found.group(1) for name in names if (found := _BLOCK.match(name))}) or self.layers

    @property
    def block_names(self) -> list[str]:
        """Names of the repeated blocks, those that hold more than one weight layer: `blocks.0`, `blocks.1`, ..."""
        names = [found.group(1) for site in self._named("weight") if (found := _BLOCK.match(site.site))]
        return _unique(name for name in names if names.count(name) > 1)

    @property
    def middle(self) -> str:
        """Name of the module half-way through the weight layers, "" where functions hide it."""
        return _middle(self.run.header)

    @cached_property
    def grouped(self) -> bool:
        """True where a convolution may be one of groups: its weights see fewer channels than come in."""
        kernels = [p for p in self.run.header.params if len(p.shape) > 2]
        channels = {site.site: site.fan_in for site in self._named("weight")} if kernels else {}
        known = [(p.shape, channels[p.site]) for p in kernels if p.site in channels]
        return any(len(shape) == 3 or shape[1] != seen for shape, seen in known)  # (M, N, k): N is not recorded

    @property
    def branch_ends(self) -> list[str]:
        """Last layer of each branch beside a shortcut, by name: attention, and the last weight or norm of a block."""
        ends: dict[str, None] = {}
        for block in self.block_names:
            inside = [site for site in self.run.sites if site.site.startswith(f"{block}.") and site.call == 0]
            ends |= {site.site: None for site in inside if "Attention" in site.kind}
            last = max(i for i, site in enumerate(inside) if site.role == "weight")
            normed = last + 1 < len(inside) and inside[last + 1].role == "norm"
            ends[inside[last + normed].site] = None
        return list(ends)

    @property
    def normalised(self) -> bool:
        """True when the net has norm layers."""
        return bool(self._named("norm"))

    @property
    def batch_normalised(self) -> bool:
        """True when one of the norms is a batch norm."""
        return any("BatchNorm" in site.kind for site in self._named("norm"))

    @property
    def shortcut(self) -> bool:
        """True when the causes show sums between the modules: a residual net."""
        between = abs(self.decades("between_modules")) > 0.3
        return "depth_without_shortcut" not in self.conditions and (between or "shortcut_growth" in self.conditions)

    @cached_property
    def tokens(self) -> bool:
        """True when the net has attention: its layers see (B, T, N), which batch norm does not take."""
        kinds = _kinds(self.run.header)
        return any("Attention" in kind or kind == "scaled_dot_product_attention" for kind in kinds)

    @cached_property
    def recurrent(self) -> str:
        """Class of the recurrent layer (`RNN`, `LSTM`, `GRU` or their cells), "" without one."""
        return next((kind for kind in _kinds(self.run.header) if kind in _RECURRENT), "")

    # the training

    @property
    def optimizer(self) -> OptimizerInfo | None:
        return self.run.optimizer

    @property
    def lr(self) -> float | None:
        """Learning rate of the first optimizer's first group."""
        value = self.optimizer.settings.get("lr") if self.optimizer else None
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def adaptive(self) -> bool:
        """True when the optimizer rescales each parameter's step, as Adam does."""
        return self.optimizer is not None and self.optimizer.adaptive

    @property
    def groups(self) -> int:
        """Number of parameter groups that the optimizers have, as far as the sites tell."""
        return len({p.group for p in self.run.header.params if p.group is not None})

    @property
    def usual_grad_norm(self) -> float | None:
        """Median gradient norm of the sampled steps, None where none is finite."""
        norms = sorted(finite([step.grad_norm for step in self.run.steps]))
        return norms[len(norms) // 2] if norms else None

    def excess(self) -> float | None:
        """How far the first piece of evidence is beyond its bound, as a ratio; None where it has none."""
        for item in self.finding.evidence:
            if item.value and item.bound:
                return item.value / item.bound
        return None

    # the code

    def lines(self, *roles: str) -> list[str]:
        """Where the layers of these roles are built, `train.py:42`; the finding's own places where no role is given."""
        if not roles:
            return _unique(place.source for place in self.finding.where)
        return _unique(site.source for site in self._named(*roles))

    def _named(self, *roles: str) -> list[Site]:
        found = _by_role(self.run.header)
        return found.get(roles[0], []) if len(roles) == 1 else [s for s in self.run.sites if s.role in roles]


# What is the same for all cases of a run.


@once_a_header
def _by_role(header: Header) -> dict[str, list[Site]]:
    """The sites of each role."""
    found: dict[str, list[Site]] = {}
    for site in header.sites:
        found.setdefault(site.role, []).append(site)
    return found


@once_a_header
def _kinds(header: Header) -> list[str]:
    """The kinds of the sites, each once."""
    return list(dict.fromkeys(site.kind for site in header.sites))


@once_a_header
def _activations(header: Header) -> list[str]:
    ids = _activation_ids()
    return _frequent(ids[site.kind] for site in _by_role(header).get("activation", ()) if site.kind in ids)


@once_a_header
def _weight_kinds(header: Header) -> list[str]:
    return _frequent(site.kind for site in _by_role(header).get("weight", ()))


@once_a_header
def _middle(header: Header) -> str:
    return middle([(site.site, site.role) for site in header.sites if not site.site.endswith("()")])


def middle(sites: Sequence[tuple[str, str]]) -> str:
    """Of (name, role) in the order of the calls, what ends the lower half of the weight layers.

    A whole block where the layers stand in repeated ones, else the activation behind a layer, else the layer.
    """
    weights = [i for i, (_, role) in enumerate(sites) if role == "weight"]
    if len(weights) < 3:
        return ""
    at, until = weights[len(weights) // 2 - 1], weights[len(weights) // 2]
    block = _BLOCK.match(sites[at][0])
    if block and sum(sites[i][0].startswith(f"{block.group(1)}.") for i in weights) > 1:
        return block.group(1)
    behind = [name for name, role in sites[at + 1 : until] if role == "activation"]
    return behind[-1] if behind else sites[at][0]


def _frequent(names: Iterable[str]) -> list[str]:
    known = list(names)
    return sorted(dict.fromkeys(known), key=known.count, reverse=True)


def _unique(sources: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(source for source in sources if source))


def _plain(decades: float) -> str:
    return f"{decades:.1f}" if decades < 10 else f"{decades:.0f}"


@cache
def _activation_ids() -> dict[str, str]:
    """Torch class, function and autograd names to ids."""
    entries = shelf("gradwell.theory.activations").values()
    return {name: e.id for fact in ("AUTOGRAD", "TORCH") for e in entries for name in e.fact(fact, ())}


def _fact(activation: str, name: str, default: Fact) -> Fact:
    entries = shelf("gradwell.theory.activations")
    value: Fact = entries[activation].fact(name, default) if activation in entries else default
    return value
