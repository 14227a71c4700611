"""Synthetic diagnoses, one builder for each state that a page has to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from gradwell.records.run import Header, OptimizerInfo
from gradwell.records.verdict import (
    Attribution,
    Diagnosis,
    Evidence,
    Finding,
    NotChecked,
    Overhead,
    Prescription,
    ProfileRow,
    Remedy,
    Where,
)

SCRIPT = "digits_sigmoid.py"
HEADER = Header(
    tool="gradwell 0.1.0", torch="2.13.0", python="3.11", device="cpu", dtype="float32", argv=[SCRIPT, "--epochs", "3"],
    started="2026-11-02T23:58:01", seed=0, optimizers=[OptimizerInfo("SGD", {"lr": 0.1})],
)  # fmt: skip
NO_TIME = "the model has no recurrent layer"


def profile(gains: Sequence[float | None], *, kind: str = "Sigmoid", rms: float = 0.5) -> list[ProfileRow]:
    """A linear and an activation site for each hidden layer, from log10 gains at the linear ones; then a head."""
    rows = []
    for i, gain in enumerate(gains):
        rows.append(_row(f"hidden.{2 * i}", "Linear", len(rows), gain, f"{SCRIPT}:21", rms=1.2 * rms))
        after = None if gain is None else gain * (1 - 0.4 / len(gains))
        rows.append(_row(f"hidden.{2 * i + 1}", kind, len(rows), after, f"{SCRIPT}:22", rms=rms))
    return [*rows, _row("head", "Linear", len(rows), 0.0, f"{SCRIPT}:23", rms=rms)]


def _row(site: str, kind: str, order: int, gain: float | None, source: str, *, rms: float) -> ProfileRow:
    finite = gain is not None and math.isfinite(gain)
    weight = kind == "Linear"
    return ProfileRow(
        root="model", site=site, kind=kind, call=0, order=order, step=340, act_rms=rms,
        delta_norm=None if gain is None else 2e-3 * 10**gain if finite else 0.0 if gain == -math.inf else gain,
        log10_gain=gain, zero_frac=0.0, nonfinite=0.0, role="weight" if weight else "activation", source=source,
        update_ratio=1e-3 * 10**gain if weight and finite else None,
    )  # fmt: skip


def vanishing(layers: int = 20, lost: float = 13.6) -> Diagnosis:
    """A deep sigmoid net: every layer loses the same number of decades."""
    per_layer = lost / layers
    summary = (
        f"from the output to hidden.0 ({SCRIPT}:21) the gradient shrinks by {lost:.1f} decades (40 million million "
        f"times)."
    )
    scale = lost / 13.6
    return Diagnosis(
        HEADER,
        "fatal",
        findings=[
            Finding("vanishing_gradient", "fatal", [Where("hidden.0", "Linear", f"{SCRIPT}:21")], 0, 340,
                    [Evidence("log10_gain", -lost, "decades", -3.0)], summary),
            Finding("undersized_update", "mild", [Where("hidden.0", "Linear"), Where("hidden.2", "Linear")], 0, 340,
                    [Evidence("update_ratio", 4e-17, "", 6e-8)], "2 layers move by less than float32 can tell."),
        ],
        attributions=[
            Attribution(0, "activation_slope", "share", -10.4 * scale, 0.76,
                        "20 Sigmoid have a mean slope of 0.23; the largest possible is 0.25."),
            Attribution(0, "weight_gain", "share", -4.1 * scale, 0.30, "weights of variance 1/(3 fan_in)."),
            Attribution(0, "normalization_gain", "share", -0.0, 0.0, ""),
            Attribution(0, "between_modules", "share", 0.94 * scale, -0.07, ""),
            Attribution(0, "unexplained", "share", -0.04 * scale, 0.003, ""),
            Attribution(0, "depth_without_shortcut", "condition", None, None,
                        f"{layers} layers stand in a row without a shortcut."),
        ],
        prescriptions=[
            Prescription([Remedy("swap_activation", {"to": "relu"}), Remedy("reinit", {"init": "he", "gain": 1.0})],
                         "the gradient reaches hidden.0 within 0.5 decades",
                         f"# {SCRIPT}:21\nfor layer in hidden:\n    nn.init.kaiming_normal_(layer.weight)\n"),
            Prescription([Remedy("add_norm", {"kind": "layer"})], "about 11 of the 13.6 decades come back", ""),
            Prescription([Remedy("add_shortcut")], "", ""),
        ],
        not_checked=[
            NotChecked("vanishing_through_time", NO_TIME),
            NotChecked("gradient_underflow", "no mixed precision"),
            NotChecked("exploding_through_time", NO_TIME),
        ],
        notes=["2 functional activations were seen; their gains are counted between the modules."],
        profile=profile([-per_layer * (layers - i) for i in range(layers)]),
        overhead=Overhead(0.0081, 12, 340),
    )  # fmt: skip


def healthy(layers: int = 10) -> Diagnosis:
    """Gains within 0.8 decades, nothing found."""
    gains = [0.4 * math.sin(i) - 0.4 for i in range(layers)]
    return Diagnosis(
        HEADER, "healthy", not_checked=[NotChecked("vanishing_through_time", NO_TIME)],
        profile=profile(gains, kind="ReLU"), overhead=Overhead(None, 12, 340),
    )  # fmt: skip


def exploding(layers: int = 8, grown: float = 7.2) -> Diagnosis:
    """Large weights: the gradient grows towards the input."""
    return Diagnosis(
        HEADER,
        "serious",
        findings=[Finding("exploding_gradient", "serious", [Where("hidden.0", "Linear", f"{SCRIPT}:21")], 0, 340, [],
                          f"from the output to hidden.0 ({SCRIPT}:21) the gradient grows by {grown} decades")],
        attributions=[
            Attribution(0, "weight_gain", "share", grown + 1.1, 1.15, "Weight gain: 8 layers of sigma_w^2 = 64."),
            Attribution(0, "activation_slope", "share", -1.1, -0.15, ""),
            Attribution(0, "unexplained", "share", 0.0, 0.0, ""),
        ],
        prescriptions=[Prescription([Remedy("reinit", {"init": "critical"})], "", "")],
        profile=profile([grown * (layers - i) / layers for i in range(layers)], kind="Tanh"),
    )  # fmt: skip


def nonfinite() -> Diagnosis:
    """NaN from the fourth hidden layer on."""
    rows = profile([math.nan if i < 3 else -0.1 * (8 - i) for i in range(8)])
    where = [Where("hidden.6", "Linear", f"{SCRIPT}:21")]
    return Diagnosis(
        HEADER, "fatal",
        findings=[Finding("nonfinite_value", "fatal", where, 17, 17, [],
                          "the gradient of hidden.6 is nan at step 17, born in the backward pass.")],
        attributions=[Attribution(0, "learning_rate", "condition", None, None, "the learning rate is 3.")],
        profile=rows,
    )  # fmt: skip


def underflow(layers: int = 64, zero_below: int = 20) -> Diagnosis:
    """64 layers; the gradient is exactly 0 in the first ones."""
    gains = [-math.inf if i < zero_below else -0.95 * (layers - i) for i in range(layers)]
    return Diagnosis(
        HEADER, "fatal",
        findings=[Finding("vanishing_gradient", "fatal", [Where("hidden.0", "Linear", f"{SCRIPT}:21")], 0, 340, [],
                          "the gradient reaches 0 in float32 at hidden.38.")],
        attributions=[Attribution(0, "activation_slope", "share", -42.0, 1.0, ""),
                      Attribution(0, "unexplained", "share", -0.1, 0.0, "")],
        profile=profile(gains),
    )  # fmt: skip


def unseen() -> Diagnosis:
    """No backward pass was seen."""
    checks = [NotChecked(s, "no backward pass was seen") for s in ("vanishing_gradient", "exploding_gradient")]
    return Diagnosis(Header(tool="gradwell 0.1.0"), "undecided", not_checked=checks)


def unmeasured() -> Diagnosis:
    """Sites without a gradient."""
    return Diagnosis(HEADER, "undecided", profile=profile([None, None])[:-1])


def all_zero() -> Diagnosis:
    """Every gradient is exactly zero."""
    rows = profile([-math.inf] * 3)[:-1]
    return Diagnosis(HEADER, "undecided", profile=rows, notes=["The loss does not depend on the model."])


def one_layer() -> Diagnosis:
    """A linear model."""
    return Diagnosis(HEADER, "healthy", profile=profile([]))


def many_layers() -> Diagnosis:
    """401 sites, more than a page shows."""
    return vanishing(layers=200, lost=20.0)


def hostile() -> Diagnosis:
    """Names that attack a terminal and a page, wide letters, long names and a branch off the trunk."""
    bad = '<img src=x onerror=alert(1)>\x1b[31m"&\n层层层层层层层层层层层层层层'
    rows = [
        ProfileRow("a", bad, "<b>", 0, 0, 1, 0.0, 0.0, -2.0, None, 0.0, source="</script>.py:1", flow=0.2),
        ProfileRow("b", "encoder.layers.11.attention.self.query.projection.lora_adapter", "Linear", 3, 1, 1, math.inf,
                   1.0, -1.0, 1.0, 5.0, update_ratio=math.nan),
        ProfileRow("b", "", "", 0, 2, 1, None, None, None, None, None),
    ]  # fmt: skip
    return Diagnosis(
        Header(tool="gradwell <0>", argv=[bad, "\ud800"], dtype="bfloat16"),
        "mild",
        findings=[Finding("dead_units", "mild", [Where(bad)], 0, 1, [], f"{bad} is dead → σ ≤ 1")],
        attributions=[
            Attribution(0, "weight_gain", "share", -0.3, None, bad),
            Attribution(0, "weight_gain", "share", math.nan, math.nan, ""),
        ],
        prescriptions=[Prescription([Remedy("x" * 120, {"<a>": bad})], bad, f"print('{bad}')\n\tx")],
        not_checked=[NotChecked("slow_loss", bad)],
        notes=[bad, "·" * 300],
        profile=rows,
        overhead=Overhead(0.5, 1, 1),
    )


CASES: dict[str, Callable[[], Diagnosis]] = {
    build.__name__: build
    for build in (
        vanishing,
        healthy,
        exploding,
        nonfinite,
        underflow,
        unseen,
        unmeasured,
        all_zero,
        one_layer,
        many_layers,
        hostile,
    )
}


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> Diagnosis:
    """Each state in turn."""
    return CASES[request.param]()


@pytest.fixture(scope="session")
def build() -> Callable[..., Diagnosis]:
    """A diagnosis by the name of its builder."""
    return lambda name, **options: CASES[name](**options)
