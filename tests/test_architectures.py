"""What the corpus of docs/architectures.md has taught, on small hand-made models; a handful of real ones."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradwell

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

corpus = importlib.import_module("benchmarks.transformers_corpus")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Block(nn.Module):
    """A pre-norm block, its weights drawn as transformers draws them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        weights = torch.softmax(y @ y.mT / math.sqrt(y.shape[-1]), -1)
        x = x + self.out(weights @ self.value(y))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A class token that starts at zero, read out after a last norm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Linear(12, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-12), nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def case(model: nn.Module, x: Tensor) -> Any:
    return corpus.Case("", "", model, {"x": x, "classes": torch.arange(len(x)) % 10}, corpus.read_out_loss, "", "")


def bad(diagnosis: Any) -> dict[str, str]:
    return {f.symptom: f.severity for f in diagnosis.findings if f.severity != "mild"}


def check(model: nn.Module, x: Tensor) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return gradwell.check(model, (x, torch.arange(len(x)) % 10), loss_fn, optimizer)


# ------------------------------------------------------------------ what the corpus taught


def test_a_class_token_at_zero_in_front_of_a_norm_is_no_explosion() -> None:
    model, x = ViT(), torch.randn(8, 16, 12)
    diagnosis = check(model, x)
    gains = {row.site: row.log10_gain for row in diagnosis.profile}
    assert gains["dropout"] > 3  # the gradient is that large: the size is told, not hidden
    exact = corpus.site_gradients(case(model, x), {"dropout", "head"})
    assert gains["dropout"] == pytest.approx(math.log10(exact["dropout", 0] / exact["head", 0]), abs=1e-3)
    assert not bad(diagnosis)
    tried = corpus.trial(case(model, x))
    assert tried["as built"] < corpus.SOONER["serious"] * tried["twin"]


def chain(depth: int, gain: float, norm: type[nn.Module]) -> nn.Sequential:
    """A normalised first layer, then He layers times `gain`, with the norm of choice."""
    rows: list[nn.Module] = [nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU()]
    for _ in range(depth):
        layer = nn.Linear(32, 32)
        nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / 32))
        rows += [layer, norm(32), nn.ReLU()]
    return nn.Sequential(*rows, nn.Linear(32, 10))


@pytest.mark.parametrize(("depth", "gain", "norm"), [(10, 3.0, nn.Identity), (50, 1.0, nn.BatchNorm1d)])
def test_an_explosion_behind_norms_and_one_of_norms_are_still_told(depth: int, gain: float, norm: Any) -> None:
    assert bad(check(chain(depth, gain, norm), torch.randn(64, 12))).get("exploding_gradient")
    assert not bad(check(chain(10, 1.0, norm), torch.randn(64, 12)))


class Separable(nn.Module):
    """Depthwise separable convolutions with ReLU6, as in MobileNets; `scale` is the gain of the norms."""

    def __init__(self, depth: int, scale: float) -> None:
        super().__init__()
        rows = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6()]
        for _ in range(depth):
            rows += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU6()]
        self.body, self.head = nn.Sequential(*rows), nn.Linear(16, 10)
        for module in self.body:
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_zeros_of_relu6_are_not_saturated_but_its_ceiling_is() -> None:
    x = torch.randn(8, 3, 12, 12)
    assert "saturated_units" not in bad(check(Separable(10, 1.0), x))
    assert bad(check(Separable(10, 100.0), x)).get("saturated_units")


class Experts(nn.Module):
    """Eight experts; the router's weights are zero, so that ties choose the first two for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(12, 16), nn.Linear(16, 8, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.head = nn.Linear(16, 10)
        nn.init.zeros_(self.router.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        scores, chosen = torch.topk(torch.sigmoid(self.router(x)), 2, dim=-1)
        made = torch.stack([expert(x) for expert in self.experts], 1)
        picked = made.gather(1, chosen[..., None].expand(-1, -1, 16))
        return self.head(torch.relu(x + (scores[..., None] * picked).sum(1)))


def test_experts_that_were_not_chosen_are_idle_and_no_copies() -> None:
    model, x = Experts(), torch.randn(16, 12)
    assert "symmetric_units" not in bad(check(model, x))
    nn.init.constant_(model.embed.weight, 0.1)
    nn.init.constant_(model.embed.bias, 0.1)
    nn.init.constant_(model.head.weight, 0.1)
    for expert in model.experts:
        nn.init.constant_(expert.weight, 0.1)
    assert bad(check(model, x)).get("symmetric_units")


class Masked(nn.Module):
    """A deep branch for a second input that this batch does not have."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.rare = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(12, 12), nn.Tanh())])
        self.embed, self.norm, self.hidden, self.head = (
            nn.Linear(12, 16), nn.LayerNorm(28), nn.Linear(28, 16), nn.Linear(16, 10)
        )  # fmt: skip
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        rare = self.rare(x) * self.slope
        return self.head(torch.relu(self.hidden(self.norm(torch.cat([self.embed(x), rare], -1)))))


def test_a_branch_that_a_mask_switches_off_is_no_underflow() -> None:
    x = torch.randn(8, 12)
    found = check(Masked(0.0), x)
    assert any(row.log10_gain == -math.inf for row in found.profile)
    assert "vanishing_gradient" not in bad(found)


# ------------------------------------------------------------------ a handful of real ones


@pytest.mark.filterwarnings("ignore")
def net(*layers: nn.Module) -> nn.Module:
    """Twelve numbers in, ten classes out."""
    return nn.Sequential(nn.Linear(12, 32), *layers, nn.Linear(32, 10))


def record_of(model: nn.Module) -> dict[str, Any]:
    """A record as `examine` makes it, of one level."""
    return {"model_type": "x", "flow": corpus.checked(case(model, torch.randn(40, 12)), "flow")}


class Called(nn.Module):
    """Under the keyword that the corpus's losses use."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_kept_measurement_is_judged_again() -> None:
    sick = Called(net(*(part for _ in range(14) for part in (nn.Linear(32, 32), nn.Sigmoid()))))
    record = record_of(sick)
    assert record["flow"]["verdict"] in corpus.SOONER
    kept = json.loads(json.dumps(record))
    assert corpus.judged_again(kept)["flow"] == record["flow"]
    other = corpus.checked(case(Called(net(nn.ReLU())), torch.randn(40, 12)), "flow")
    tried = [{"symptom": f["symptom"], "severity": "serious"} for f in record["flow"]["findings"]]
    judged = corpus.judged_again({**kept, "confirmed": tried})["confirmed"]
    bad = {f["symptom"]: f["severity"] for f in record["flow"]["findings"] if f["severity"] in corpus.SOONER}
    assert {row["symptom"]: row["severity"] for row in judged} == bad
    mended = {**kept, "flow": {**kept["flow"], "run": other["run"]}, "confirmed": tried}
    assert "confirmed" not in corpus.judged_again(mended)
    assert corpus.judged_again(mended)["flow"]["verdict"] == other["verdict"]
    assert "confirmed" not in corpus.judged_again({**kept, "confirmed": [{"symptom": "other", "severity": "fatal"}]})


@pytest.mark.parametrize(
    ("severity", "built", "twin", "said"),
    [
        ("serious", 50, 10, True), ("serious", 49, 10, False), ("fatal", 199, 10, False), ("fatal", None, 10, True),
        ("serious", None, None, None), ("serious", 10, None, False),
        ("serious", None, 41, None), ("fatal", None, 11, None),
    ],
)  # fmt: skip
def test_when_a_verdict_holds(severity: str, built: int | None, twin: int | None, said: bool | None) -> None:
    assert corpus.holds({"severity": severity, "trial": {"as built": built, "twin": twin}}) is said
    assert corpus.holds({"severity": severity}) is True


def test_the_twin_of_a_net_that_a_dropout_keeps_from_learning_is_the_one_without() -> None:
    ill = Called(net(nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.999)))
    drawn, calm = corpus.twins(ill)
    assert [type(part) for part in calm.inner] == [nn.Linear, nn.GroupNorm, nn.ReLU, nn.Dropout, nn.Linear]
    assert calm.inner[3].p == 0 < drawn.inner[3].p == ill.inner[3].p
    assert isinstance(ill.inner[1], nn.BatchNorm1d)
    tried = corpus.trial(case(ill, torch.randn(40, 12)))
    assert tried["as built"] is None
    assert tried["twin"] < corpus.STEPS
    assert len(corpus.twins(Called(net(nn.ReLU(), nn.Dropout(0.1))))) == 1


@pytest.mark.parametrize("model_type", ["bert", "llama", "vit", "t5", "resnet"])
def test_real_architectures_come_out_healthy_in_both_levels(model_type: str) -> None:
    pytest.importorskip("transformers")
    record = corpus.examine(model_type, ("flow", "deep"), None)
    assert {level: record[level]["verdict"] for level in ("flow", "deep")} == {"flow": "healthy", "deep": "healthy"}
    assert record["flow"]["traceless"]
    assert record["deep"]["traceless"]
    assert record["flow"]["compared"]["sites"] > 20
    assert record["flow"]["compared"]["far"] == 0
