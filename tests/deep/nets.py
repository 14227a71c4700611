"""Small nets of every wiring, with a batch and a loss: (model, batch, loss_fn)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

N, B = 16, 16


class Free(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def classify(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def fit(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def labelled(units: int = N, samples: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, units), torch.randint(0, 3, (samples,))


def linear(fan_in: int = N, fan_out: int = N) -> nn.Linear:
    return nn.Linear(fan_in, fan_out)


def branch() -> dict[str, nn.Module]:
    return {"norm": nn.LayerNorm(N), "a": linear(), "act": nn.ReLU(), "b": linear()}


def pre_norm(depth: int = 24) -> Any:
    blocks = [Free(lambda m, x: x + m.b(m.act(m.a(m.norm(x)))), **branch()) for _ in range(depth)]
    return nn.Sequential(linear(), *blocks, nn.LayerNorm(N), linear(fan_out=3)), labelled(), classify


def post_norm() -> Any:
    blocks = [Free(lambda m, x: m.norm(x + m.b(m.act(m.a(x)))), **branch()) for _ in range(24)]
    return nn.Sequential(linear(), *blocks, linear(fan_out=3)), labelled(), classify


def residual_sigmoid(depth: int = 50) -> Any:
    blocks = [Free(lambda m, x: x + torch.sigmoid(m.a(x)), a=linear()) for _ in range(depth)]
    return nn.Sequential(linear(), *blocks, linear(fan_out=3)), labelled(), classify


def concatenating() -> Any:
    """As in DenseNet: every layer sees all before it."""
    layers = nn.ModuleList([linear(N + 4 * k, 4) for k in range(12)])

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        for layer in m.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return m.last(x)

    return Free(forward, first=linear(), layers=layers, last=linear(N + 48, 3)), labelled(), classify


def unet() -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        fine = m.act(m.down1(x))
        coarse = m.act(m.down2(F.max_pool2d(fine, 2)))
        coarse = m.act(m.middle(coarse))
        return m.out(m.act(m.up1(torch.cat([m.up(coarse), fine], 1))))

    model = Free(
        forward, act=nn.ReLU(inplace=True), down1=nn.Conv2d(1, 4, 3, padding=1), down2=nn.Conv2d(4, 8, 3, padding=1),
        middle=nn.Conv2d(8, 8, 3, padding=1), up=nn.ConvTranspose2d(8, 4, 2, stride=2),
        up1=nn.Conv2d(8, 4, 3, padding=1), out=nn.Conv2d(4, 1, 1),
    )  # fmt: skip
    return model, (torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)), fit


def sigmoid_chain(depth: int = 12) -> Any:
    layers = [layer for _ in range(depth) for layer in (linear(), nn.Sigmoid())]
    return nn.Sequential(*layers, linear(fan_out=3)), labelled(), classify


def transformer() -> Any:
    layer = nn.TransformerEncoderLayer(N, 2, 2 * N, dropout=0.1, batch_first=True)
    model = Free(
        lambda m, t: m.head(m.body(m.embed(t))), embed=nn.Embedding(20, N),
        body=nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), head=linear(fan_out=20),
    )  # fmt: skip
    tokens = torch.randint(0, 20, (8, 7))
    return model, tokens, lambda m, t: F.cross_entropy(m(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())


class Once(torch.autograd.Function):
    """As many hand-written kernels: no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def once() -> Any:
    model = Free(lambda m, x: m.c(Once.apply(m.b(torch.tanh(m.a(x))))), a=linear(), b=linear(), c=linear(fan_out=3))
    return model, labelled(), classify


def once_in_a_branch() -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.c(h + Once.apply(m.b(torch.tanh(h))))

    return Free(forward, a=linear(), b=linear(), c=linear(fan_out=3)), labelled(), classify


def mixture() -> Any:
    """A mixture of experts of which one idles."""
    experts = nn.ModuleList([nn.Sequential(linear(), nn.ReLU(), linear()) for _ in range(3)])

    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        weights = m.gate(x).softmax(-1)
        return {"logits": m.last(x + sum(weights[:, k : k + 1] * m.experts[k](x) for k in range(2)))}

    model = Free(forward, first=linear(), gate=linear(fan_out=3), experts=experts, last=linear(fan_out=3))
    return model, labelled(), lambda m, b: F.cross_entropy(m(b[0])["logits"], b[1])


def generator() -> Any:
    made = nn.Sequential(linear(), nn.BatchNorm1d(N), nn.ReLU(inplace=True), linear(), nn.Tanh())
    judge = nn.Sequential(linear(), nn.LeakyReLU(0.2, inplace=True), linear(fan_out=1)).requires_grad_(False)
    return made, torch.randn(B, N), lambda m, z: F.softplus(-judge(m(z))).mean()


def attention() -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x + m.a(x, x, x)[0]
        return m.last((x + m.b(x, x, x, need_weights=False)[0]).mean(1))

    model = Free(
        forward, first=linear(), last=linear(fan_out=3), a=nn.MultiheadAttention(N, 2, batch_first=True),
        b=nn.MultiheadAttention(N, 2, batch_first=True, dropout=0.1),
    )  # fmt: skip
    return model, (torch.randn(8, 5, N), torch.randint(0, 3, (8,))), classify


def lstm() -> Any:
    model = Free(
        lambda m, x: m.head(m.lstm(m.first(x))[0][:, -1]), first=linear(), lstm=nn.LSTM(N, N, 2, batch_first=True),
        head=linear(fan_out=3),
    )  # fmt: skip
    return model, (torch.randn(8, 6, N), torch.randint(0, 3, (8,))), classify


NETS: dict[str, Callable[[], Any]] = {
    net.__name__: net
    for net in (
        pre_norm, post_norm, residual_sigmoid, concatenating, unet, sigmoid_chain, transformer, mixture, generator,
        attention, lstm,
    )
}  # fmt: skip


def build(net: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return net()
