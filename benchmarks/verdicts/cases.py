"""The trainings as data: families, optimizers, settings, what is wrong with them, and what should be said.

`HEALTHY` have nothing wrong. `SICK` have one fault each: in the network ("structure"), in the rate ("rate"), or
one that comes at a step (`nan_batch`, `bad_batch`, `rate_jump`). How bad a fault is in each run, outcomes say
(`labels.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

Knobs = dict[str, Any]


class Case(NamedTuple):
    """A training. `cured`: knobs (or "family") of the twin without the fault; `names` and `causes`: symptoms and causes
    that are right, any of them; `at`: the step from which the fault is there; `clip`: norm to which gradients are cut.
    """

    id: str
    family: str
    optimizer: str
    lr: float
    steps: int
    knobs: Knobs = {}  # noqa: RUF012 (never written to)
    fault: str = ""
    cured: Knobs = {}  # noqa: RUF012
    names: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    at: int = 0
    size: float = 0.0
    clip: float = 0.0


USUAL: dict[str, dict[str, tuple[float, int]]] = {
    "mlp": {"sgd": (0.3, 220), "momentum": (0.1, 150), "adam": (3e-3, 120), "lbfgs": (0.5, 25)},
    "cnn": {"sgd": (0.3, 160), "momentum": (0.05, 140), "adam": (3e-3, 120), "lbfgs": (0.3, 25)},
    "residual": {"sgd": (0.1, 120), "momentum": (0.03, 100), "adam": (2e-3, 100), "lbfgs": (0.3, 20)},
    "densenet": {"sgd": (0.2, 120), "momentum": (0.05, 100), "adam": (3e-3, 110), "lbfgs": (0.5, 18)},
    "unet": {"sgd": (0.5, 100), "momentum": (0.1, 80), "adam": (3e-3, 80), "lbfgs": (0.3, 10)},
    "rnn": {"sgd": (0.1, 300), "momentum": (0.03, 200), "adam": (3e-3, 120)},
    "lstm": {"rmsprop": (3e-3, 100), "adam": (1e-2, 100)},
    "gru": {"sgd": (1.0, 220), "momentum": (0.3, 120), "adam": (1e-2, 80)},
    "pre_ln": {"sgd": (0.2, 220), "momentum": (0.05, 160), "adam": (3e-3, 130)},
    "post_ln": {"sgd": (0.2, 260), "momentum": (0.05, 200), "adam": (3e-3, 150)},
    "gan": {"adam": (3e-3, 260), "rmsprop": (3e-3, 260)},
    "autoencoder": {"sgd": (0.3, 150), "momentum": (0.1, 100), "adam": (3e-3, 130), "lbfgs": (0.5, 22)},
    "mixture": {"sgd": (0.3, 200), "momentum": (0.1, 130), "adam": (5e-3, 120), "lbfgs": (0.5, 25)},
}
"""Learning rate and steps of a training without a fault, by family and optimizer."""
WHOLE = {"lbfgs": {"batch": 512}}
"""LBFGS takes one large batch at a time."""


def usual(family: str, optimizer: str, label: str = "", /, *, steps: float = 1, lr: float = 1, **knobs: Any) -> Case:
    """A training of a family with its usual rate; `steps` and `lr` multiply what is usual."""
    rate, count = USUAL[family][optimizer]
    clip = knobs.pop("clip", 0.0)
    name = " ".join(part for part in (family, label, optimizer) if part)
    return Case(
        name, family, optimizer, rate * lr, round(count * steps), {**WHOLE.get(optimizer, {}), **knobs}, clip=clip
    )


def healthy() -> Iterator[Case]:  # noqa: PLR0915 (a list, not a program)
    for family, optimizers in USUAL.items():
        for optimizer in optimizers:
            yield usual(family, optimizer)
    yield usual("mlp", "momentum", "He 12", depth=12, init="he", lr=0.2)
    yield usual("mlp", "adam", "He 12", depth=12, init="he", lr=0.5)
    yield usual("mlp", "adam", "GELU", act="gelu")
    yield usual("mlp", "adam", "SiLU", act="silu")
    yield usual("mlp", "momentum", "ELU", act="elu")
    yield usual("mlp", "momentum", "tanh LeCun 10", depth=10, act="tanh", init="lecun", lr=0.2)
    yield usual("mlp", "adam", "tanh", act="tanh")
    yield usual("mlp", "adam", "sigmoid 1", depth=1, act="sigmoid", lr=3)
    yield usual("mlp", "momentum", "batch norm 6", depth=6, norm="batch")
    yield usual("mlp", "adam", "layer norm 6", depth=6, norm="layer")
    yield usual("mlp", "adam", "dropout", dropout=0.2, steps=1.5)
    yield usual("mlp", "momentum", "wide", width=128)
    yield usual("mlp", "sgd", "batch 16", batch=16, init="he", lr=0.2)
    yield usual("mlp", "momentum", "clipped", init="he", clip=1.0)
    yield usual("mlp", "sgd", "clipped", init="he", clip=1.0)
    yield usual("mlp", "adam", "squared error", out="sigmoid", init="he", steps=1.5)
    yield usual("cnn", "momentum", "batch norm", norm="batch")
    yield usual("cnn", "adam", "He 6", depth=6, init="he", lr=0.5)
    yield usual("cnn", "adam", "tanh", act="tanh")
    yield usual("residual", "adam", "16 blocks", depth=16, lr=0.5)
    yield usual("residual", "momentum", "batch norm 10", depth=10, norm="batch", lr=0.5)
    yield usual("residual", "momentum", "scaled 12", depth=12, norm="", init="he", scale=0.25, lr=0.3)
    yield usual("densenet", "adam", "8 layers", depth=8)
    yield usual("densenet", "momentum", "no norm", norm="", init="he", lr=0.5)
    yield usual("unet", "adam", "batch norm", norm="batch", lr=2, steps=2)
    yield usual("unet", "adam", "GELU", act="gelu")
    yield usual("rnn", "adam", "orthogonal", orthogonal=True)
    yield usual("rnn", "momentum", "clipped", clip=1.0)
    yield usual("lstm", "adam", "forget bias 1", forget_bias=1.0)
    yield usual("lstm", "adam", "2 layers", depth=2)
    yield usual("gru", "adam", "clipped", clip=1.0)
    yield usual("pre_ln", "adam", "4 blocks", depth=4)
    yield usual("post_ln", "adam", "1 block", depth=1)
    yield usual("autoencoder", "adam", "He 2", depth=2, act="relu", init="he", width=64, steps=2)
    yield usual("autoencoder", "adam", "sigmoid output", out="sigmoid", lr=3)
    yield usual("mixture", "adam", "idle expert", idle=1)
    yield usual("mixture", "momentum", "idle expert", idle=1)
    yield usual("mlp", "momentum", "leaky", act="leaky", batch=128)
    yield usual("mlp", "adam", "standardized input", input_scale=2.7, input_shift=-0.8)
    yield usual("mlp", "momentum", "float16 He", init="he", half=True, lr=0.2)
    yield usual("cnn", "momentum", "batch norm 8", depth=8, norm="batch", width=8)
    yield usual("cnn", "adam", "GELU", act="gelu")
    yield usual("residual", "momentum", "24 blocks", depth=24, lr=0.5)
    yield usual("residual", "adam", "GELU", act="gelu")
    yield usual("densenet", "sgd", "6 layers", depth=6)
    yield usual("densenet", "adam", "tanh", act="tanh")
    yield usual("unet", "momentum", "leaky", act="leaky")
    yield usual("unet", "adam", "clipped", clip=1.0)
    yield usual("rnn", "adam", "2 layers", depth=2)
    yield usual("rnn", "adam", "wide", width=64)
    yield usual("gru", "adam", "2 layers", depth=2)
    yield usual("pre_ln", "adam", "SiLU", act="silu")
    yield usual("pre_ln", "momentum", "clipped", clip=1.0, steps=1.3)
    yield usual("post_ln", "adam", "clipped", clip=1.0)
    yield usual("autoencoder", "adam", "tanh", act="tanh")
    yield usual("autoencoder", "momentum", "ELU 2", depth=2, steps=1.5)
    yield usual("mixture", "adam", "tanh", act="tanh")


VANISHING = ("vanishing_gradient",)
EXPLODING = ("exploding_gradient", "nonfinite_value")
SYMMETRIC = ("symmetric_units",)
DEAD = ("dead_units",)
UNREACHED = ("unreached_parameter",)
OVERSIZED = ("oversized_update", "diverging_loss", "oscillating_loss", "nonfinite_value", "loss_spike")
UNDERSIZED = ("undersized_update", "slow_loss", "loss_plateau")
BIG_INPUT = ("rank_collapse", "saturated_units", "dead_units", "nonfinite_value", "diverging_loss", "oversized_update")
LATE = 40
"""The step at which a fault comes that was not there from the start."""


def structure(case: Case, names: Sequence[str], causes: Sequence[str] = (), /, **cured: Any) -> Case:
    """A fault in the network; `cured`: the knobs of its twin."""
    return case._replace(fault="structure", names=tuple(names), causes=tuple(causes), cured=cured)


def sick_structures() -> Iterator[Case]:  # noqa: PLR0915
    he, tanh = {"init": "he"}, {"init": "lecun"}
    for optimizer, depth in (("momentum", 6), ("momentum", 10), ("adam", 10)):
        case = usual("mlp", optimizer, f"sigmoid {depth}", act="sigmoid", depth=depth)
        yield structure(case, VANISHING, act="relu", **he)
    yield structure(usual("mlp", "momentum", "default 20", depth=20, lr=0.1), VANISHING, **he)
    yield structure(usual("mlp", "sgd", "default 10", depth=10), VANISHING, **he)
    yield structure(usual("mlp", "adam", "GELU default 16", depth=16, act="gelu"), VANISHING, **he)
    yield structure(usual("mlp", "momentum", "tanh default 20", depth=20, act="tanh"), VANISHING, **tanh)
    yield structure(usual("mlp", "momentum", "He x 0.3", depth=8, gain=0.3, **he), VANISHING, gain=1.0)
    yield structure(usual("mlp", "momentum", "He x 3", depth=12, gain=3.0, lr=0.2, **he), EXPLODING, gain=1.0)
    yield structure(usual("mlp", "adam", "He x 4", depth=12, gain=4.0, **he), EXPLODING, gain=1.0)
    deep = {"depth": 40, "norm": "batch", "width": 24}
    twin = {"family": "residual", "norm": "layer", "init": "default", "depth": 20}
    yield structure(usual("mlp", "momentum", "batch norm 40", **deep, **he), EXPLODING, **twin)
    for optimizer in ("momentum", "adam"):
        zeros = usual("mlp", optimizer, "zeros", init="zeros")
        yield structure(zeros, SYMMETRIC, ("symmetric_init",), init="default")
        dead = usual("mlp", optimizer, "dead", bias=-10.0, **he)
        yield structure(dead, DEAD, bias=0.0)
    bug = usual("mlp", "momentum", "norm bug", norm_bug=True)
    yield structure(bug, ("nonfinite_value",), norm_bug=False)
    constant = usual("mlp", "adam", "constant", init="constant")
    yield structure(constant, SYMMETRIC, ("symmetric_init",), init="default")
    for optimizer, act in (("momentum", "tanh"), ("adam", "relu")):
        loud = usual("mlp", optimizer, "input x 1000", input_scale=1000.0, act=act)
        yield structure(loud, BIG_INPUT, ("input_scale",), input_scale=1.0)
    shifted = usual("mlp", "momentum", "input + 100", input_shift=100.0)
    yield structure(shifted, BIG_INPUT, ("input_scale",), input_shift=0.0)
    shut = usual("mlp", "momentum", "shut output", out="sigmoid", head_bias=14.0, **he)
    yield structure(shut, ("saturated_output",), head_bias=0.0)
    yield structure(usual("mlp", "adam", "cut", cut=3, width=12), UNREACHED, ("detached_graph",), cut=0)
    half = usual("mlp", "momentum", "float16 sigmoid 6", act="sigmoid", depth=6, half=True)
    names = ("gradient_underflow", *VANISHING)
    yield structure(half, names, act="relu", half=False, **he)
    yield structure(usual("mlp", "momentum", "tanh x 12", act="tanh", init="lecun", gain=12.0, depth=6),
                    ("saturated_units", *EXPLODING, "oversized_update"), gain=1.0)  # fmt: skip

    yield structure(usual("cnn", "momentum", "default 14", depth=14, width=8), VANISHING, **he)
    yield structure(usual("cnn", "adam", "sigmoid 8", depth=8, act="sigmoid", width=8), VANISHING, act="relu", **he)
    yield structure(usual("cnn", "momentum", "He x 4", depth=10, gain=4.0, width=8, **he), EXPLODING, gain=1.0)
    yield structure(usual("cnn", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    yield structure(usual("cnn", "momentum", "dead", bias=-10.0, **he), DEAD, bias=0.0)

    for optimizer in ("momentum", "adam"):
        sums = usual("residual", optimizer, "unscaled 30", depth=30, norm="", **he)
        growth = ("shortcut_growth", "between_modules", "weight_gain")
        yield structure(sums, (*EXPLODING, "saturated_output"), growth, scale=30**-0.5)
    zeros = usual("residual", "adam", "zeros", init="zeros")
    yield structure(zeros, SYMMETRIC, ("symmetric_init",), init="default")

    yield structure(usual("densenet", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    plain = {"norm": "", "init": "he"}
    yield structure(usual("densenet", "momentum", "dead", bias=-10.0, **plain), DEAD, bias=0.0)
    yield structure(usual("densenet", "momentum", "He x 6", depth=8, gain=6.0, **plain), EXPLODING, gain=1.0)
    loud = usual("densenet", "momentum", "input x 1000", input_scale=1000.0, **plain)
    yield structure(loud, BIG_INPUT, ("input_scale",), input_scale=1.0)

    yield structure(usual("unet", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    yield structure(usual("unet", "momentum", "dead", bias=-10.0, **he), DEAD, bias=0.0)

    lag = ("vanishing_through_time",)
    yield structure(usual("rnn", "momentum", "lag 40", length=40), lag, ("long_unroll",), length=6)
    yield structure(usual("rnn", "adam", "lag 60", length=60), lag, ("long_unroll",), length=6)
    loud = usual("rnn", "momentum", "recurrent x 6", recurrent_gain=6.0, length=12)
    yield structure(loud, ("exploding_through_time", "saturated_units", *EXPLODING), recurrent_gain=1.0)
    yield structure(usual("lstm", "rmsprop", "lag 60", length=60), lag, ("long_unroll",), length=6)
    yield structure(usual("lstm", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    yield structure(usual("gru", "momentum", "lag 60", length=60), lag, ("long_unroll",), length=6)
    yield structure(usual("gru", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")

    yield structure(usual("pre_ln", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    yield structure(usual("gan", "adam", "dead", act="relu", init="he", bias=-10.0), DEAD, bias=0.0)

    coder = {"act": "sigmoid", "depth": 4}
    yield structure(usual("autoencoder", "adam", "sigmoid 10", **coder), VANISHING, act="relu", **he)
    yield structure(usual("autoencoder", "adam", "sigmoid 14", **{**coder, "depth": 6}), VANISHING, act="relu", **he)
    yield structure(
        usual("autoencoder", "adam", "cut", cut=True, code=3), UNREACHED, ("detached_graph",), cut=False, code=12
    )
    yield structure(usual("autoencoder", "adam", "dead", act="relu", bias=-10.0, **he), DEAD, bias=0.0)
    yield structure(usual("autoencoder", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")

    yield structure(usual("mixture", "adam", "zeros", init="zeros"), SYMMETRIC, ("symmetric_init",), init="default")
    yield structure(usual("mixture", "momentum", "dead", bias=-10.0, **he), DEAD, bias=0.0)
    loud = usual("mixture", "adam", "input x 1000", input_scale=1000.0)
    yield structure(loud, BIG_INPUT, ("input_scale",), input_scale=1.0)


def sick_rates() -> Iterator[Case]:
    """Rates far too high and far too low."""
    high = {"sgd": 100.0, "momentum": 100.0, "adam": 300.0}
    low = {"sgd": 1e-7, "momentum": 1e-7, "adam": 1e-6}
    pairs = (
        ("mlp", "momentum"), ("mlp", "adam"), ("cnn", "momentum"), ("residual", "adam"), ("densenet", "momentum"),
        ("unet", "adam"), ("rnn", "momentum"), ("lstm", "adam"), ("gru", "adam"), ("pre_ln", "adam"),
        ("post_ln", "adam"), ("gan", "adam"), ("autoencoder", "momentum"), ("mixture", "adam"),
    )  # fmt: skip
    cause = ("learning_rate",)
    for family, optimizer in pairs:
        fast = usual(family, optimizer, "rate too high", lr=high[optimizer])
        yield fast._replace(fault="rate", names=(*OVERSIZED, "dead_units"), causes=cause)
    hot = usual("post_ln", "adam", "10 blocks, no warmup", depth=10, lr=3)
    names = (*OVERSIZED, "rank_collapse", "loss_plateau")
    yield hot._replace(fault="rate", names=names, causes=cause, cured={"depth": 2})
    for family, optimizer in pairs[1::2] + pairs[:1]:
        slow = usual(family, optimizer, "rate too low", lr=low[optimizer])
        yield slow._replace(fault="rate", names=UNDERSIZED, causes=cause)


def sick_events() -> Iterator[Case]:
    """Faults that come at a step."""
    for family, optimizer in (
        ("mlp", "adam"), ("cnn", "momentum"), ("residual", "adam"), ("densenet", "adam"), ("unet", "momentum"),
        ("gru", "adam"), ("pre_ln", "adam"), ("gan", "adam"), ("autoencoder", "momentum"), ("mixture", "adam"),
    ):  # fmt: skip
        case = usual(family, optimizer, "NaN in a batch")
        yield case._replace(fault="nan_batch", at=LATE, names=("nonfinite_value",), causes=("bad_batch",))
    for family, optimizer in (
        ("mlp", "momentum"), ("cnn", "momentum"), ("residual", "momentum"), ("unet", "momentum"), ("rnn", "momentum"),
        ("pre_ln", "adam"), ("autoencoder", "momentum"), ("mixture", "momentum"),
    ):  # fmt: skip
        case = usual(family, optimizer, "rate jumps")
        names = (*OVERSIZED, "dead_units", "loss_plateau")
        yield case._replace(fault="rate_jump", at=LATE, size=300.0, names=names, causes=("learning_rate",))
    for family, optimizer in (("mlp", "momentum"), ("cnn", "adam"), ("densenet", "adam"), ("autoencoder", "adam")):
        case = usual(family, optimizer, "bad batch")
        names = ("loss_spike", *OVERSIZED, "dead_units")
        yield case._replace(fault="bad_batch", at=LATE, size=1000.0, names=names, causes=("bad_batch",))


HEALTHY = list(healthy())
SICK = [*sick_structures(), *sick_rates(), *sick_events()]
CASES = {case.id: case for case in [*HEALTHY, *SICK]}
SEEDS = (0, 1, 2)


def mark(case: Case) -> str:
    """A short hash of what a case trains: a label made for another training does not hold for it."""
    told: Mapping[str, Any] = {**case._asdict(), "names": None, "causes": None}
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]
