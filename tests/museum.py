"""The museum of odd models: one exhibit for each way in which real models break hooks (the rows of PITFALLS).

An exhibit is a function that builds a `Case`; it carries the rows that it stands for and the sites that must be
measured on it. `MUSEUM` holds all of them by name. Nothing here needs a GPU, a compiler or a process group.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

B, N = 6, 8  # samples, units


@dataclasses.dataclass
class Case:
    """A model, a batch, its loss, and (where it is not plain) how a script trains it.

    `train(case, optimizer, steps)` returns the losses; it must draw nothing but torch's random numbers.
    """

    model: nn.Module
    batch: Any
    loss_fn: Callable[[Any, Any], Tensor]
    train: Callable[[Case, torch.optim.Optimizer, int], list[float]] | None = None
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.05)
    parameters: Callable[[], list[Tensor]] | None = None

    def tensors(self) -> list[Tensor]:
        """Everything that is trained, also what the model does not own."""
        return list(self.model.parameters()) if self.parameters is None else self.parameters()

    def run(self, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        """Train as a script would and return the losses."""
        return (self.train or plain_training)(self, optimizer, steps)


class Exhibit(NamedTuple):
    name: str
    rows: tuple[str, ...]
    sites: tuple[str, ...]
    build: Callable[[], Case]


MUSEUM: dict[str, Exhibit] = {}


def exhibit(*rows: str, sites: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Put a builder into the museum. `sites`: names that must have a delta in `check`, with #k for call k."""

    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        MUSEUM[build.__name__] = Exhibit(build.__name__, rows, tuple(sites.split()), build)
        return build

    return add


def plain_training(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = case.loss_fn(case.model, case.batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mse(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


def data(*shape: int, out: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    return torch.randn(*(shape or (B, N))), torch.randn(*(out or shape or (B, N)))


class Free(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def linear() -> nn.Linear:
    return nn.Linear(N, N)


# ------------------------------------------------------------------ P1 P2 P3 P20: in place and views


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.bn(self.conv1(x))))
        out += x
        return self.relu(out)


@exhibit("P1", sites="0 1.conv1 1.bn 1.relu 1.conv2 1.relu#1 2.conv1 2.conv2 5")
def residual_inplace() -> Case:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), ResidualBlock(4), ResidualBlock(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return Case(net, (torch.randn(B, 1, 8, 8), torch.randint(0, 3, (B,))), lambda m, b: F.cross_entropy(m(b[0]), b[1]))


@exhibit("P1", sites="first second.inner last")
def relu_on_own_input() -> Case:
    second = Free(lambda self, x: self.inner(F.relu_(x)), inner=linear())
    net = Free(lambda self, x: self.last(self.second(self.first(x))), first=linear(), second=second, last=linear())
    return Case(net, data(), mse)


@exhibit("P2", sites="0 1 2 3")
def flatten_then_inplace_relu() -> Case:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4 * 6, N))
    return Case(net, data(B, 2, N, out=(B, N)), mse)


@exhibit("P2", "P3", sites="a b")
def inplace_add_on_view() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h.view(-1, N)[:, :4].add_(1.0)
        return self.b(h)

    return Case(Free(forward, a=linear(), b=linear()), data(), mse)


@exhibit("P3", sites="a tanh() b")
def stale_alias() -> Case:
    """The alias of a tensor that was changed in place gets its node only on use: younger than its user's."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        alias = h[:, :]
        h.mul_(2.0)
        return self.b(torch.tanh(alias * 1.0))

    return Case(Free(forward, a=linear(), b=linear()), data(), mse)


@exhibit("P20", sites="0 1 2")
def inplace_hides_preactivation() -> Case:
    return Case(nn.Sequential(linear(), nn.ReLU(inplace=True), linear()), data(), mse)


# ------------------------------------------------------------------ P4 P5 P25: graphs kept, frozen parts


@exhibit("P5", sites="2")
def frozen_prefix() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear())
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    return Case(net, data(), mse, parameters=lambda: list(net[2].parameters()))


@exhibit("P25", sites="2 4")
def frozen_then_unfrozen() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear())

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        net[0].requires_grad_(False)
        losses = plain_training(case, optimizer, steps // 2)
        net[0].requires_grad_(True)
        return losses + plain_training(case, optimizer, steps - steps // 2)

    return Case(net, data(), mse, train)


# ------------------------------------------------------------------ P6 P7: outputs and inputs of any shape


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@dataclasses.dataclass
class SlottedAnswer:
    __slots__ = ("logits",)
    logits: Tensor


class Pair(NamedTuple):
    mean: Tensor
    scale: Tensor


class Bilinear(nn.Module):
    """A leaf whose weights are its own and whose output comes in a wrapping."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, N) / N**0.5)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x @ self.weight)


def wrapped(wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> Case:
    net = Free(lambda self, x: self.last(unwrap(self.inner(self.first(x)))), first=linear(), last=linear())
    net.inner = Bilinear(wrap)
    return Case(net, data(), mse)


@exhibit("P6", sites="first inner last")
def dict_output() -> Case:
    return wrapped(lambda t: {"a": {"b": [t, None]}, "text": "x"}, lambda o: o["a"]["b"][0])


@exhibit("P6", sites="first inner last")
def dataclass_output() -> Case:
    return wrapped(lambda t: Answer(t), lambda o: o.logits)


@exhibit("P6", sites="first inner last")
def dataclass_in_a_dict() -> Case:
    return wrapped(lambda t: {"answer": Answer(t)}, lambda o: o["answer"].logits)


@exhibit("P6", sites="first inner last")
def slotted_output() -> Case:
    return wrapped(SlottedAnswer, lambda o: o.logits)


@exhibit("P6", sites="first inner last")
def namedtuple_output() -> Case:
    return wrapped(lambda t: Pair(t, t.exp()), lambda o: o.mean * o.scale)


@exhibit("P6", sites="lstm head")
def lstm_hidden_only() -> Case:
    net = Free(lambda self, x: self.head(self.lstm(x)[1][0][-1]), lstm=nn.LSTM(N, N, batch_first=True), head=linear())
    return Case(net, data(B, 5, N, out=(B, N)), mse)


@exhibit("P6", sites="lstm head")
def lstm_packed() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 5, 4, 3, 2, 1]), batch_first=True)
        out, _ = self.lstm(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return self.head(padded.mean(1))

    return Case(Free(forward, lstm=nn.LSTM(N, N, 2, batch_first=True), head=linear()), data(B, 5, N, out=(B, N)), mse)


@exhibit("P6", sites="first split a b")
def two_outputs() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = self.split(self.first(x))
        return self.a(left) + self.b(right)

    split = Free(lambda _self, h: h.chunk(2, dim=-1))
    return Case(Free(forward, first=linear(), split=split, a=nn.Linear(4, N), b=nn.Linear(4, N)), data(), mse)


@exhibit("P7", sites="a act b")
def keyword_inputs() -> Case:
    def forward(self: Any, *, x: Tensor) -> Tensor:
        return self.b(input=self.act(input=self.a(input=x)))

    net = Free(forward, a=linear(), act=nn.Tanh(), b=linear())
    return Case(net, data(), lambda m, b: F.mse_loss(m(x=b[0]), b[1]))


# ------------------------------------------------------------------ P8 P9: called often, called again


@exhibit("P8", sites="first shared shared#1 shared#2 act act#1 act#2 last")
def shared_module() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = self.act(self.shared(x))
        return self.last(x)

    return Case(Free(forward, first=linear(), shared=linear(), act=nn.Tanh(), last=linear()), data(), mse)


@exhibit("P8", sites="embed body head")
def tied_embedding() -> Case:
    net = Free(
        lambda self, t: self.head(self.body(self.embed(t))), embed=nn.Embedding(10, N), body=linear(),
        head=nn.Linear(N, 10, bias=False),
    )  # fmt: skip
    net.head.weight = net.embed.weight
    tokens = torch.randint(0, 10, (B, 5))
    return Case(net, tokens, lambda m, t: F.cross_entropy(m(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten()))


def checkpointed(inner: Callable[[], nn.Module], **options: Any) -> Case:
    net = Free(
        lambda self, x: self.last(checkpoint(self.inner, self.first(x), **options)),
        first=linear(), inner=inner(), last=linear(),
    )  # fmt: skip
    return Case(net, data(), mse)


def checkpoint_inner() -> nn.Module:
    return nn.Sequential(linear(), nn.BatchNorm1d(N), nn.Tanh(), nn.Dropout(0.5), linear())


@exhibit("P9", sites="first inner.0 inner.1 inner.2 inner.3 inner.4 last")
def checkpoint_not_reentrant() -> Case:
    return checkpointed(checkpoint_inner, use_reentrant=False)


@exhibit("P9", sites="first last")
def checkpoint_reentrant() -> Case:
    return checkpointed(checkpoint_inner, use_reentrant=True)


@exhibit("P9", sites="first inner.0 inner.1 inner.2 inner.3 last")
def checkpoint_draws_again() -> Case:
    """Without a kept random state a recomputation too many draws other dropout masks ever after."""

    def inner() -> nn.Module:
        return nn.Sequential(linear(), nn.LayerNorm(N), nn.Dropout(0.5), linear())

    return checkpointed(inner, use_reentrant=False, preserve_rng_state=False)


@exhibit("P9", sites="0 1 2")
def saved_tensors_on_hooks() -> Case:
    """`save_on_cpu` and its kin count how often a saved tensor is read."""
    net = nn.Sequential(linear(), nn.LayerNorm(N), linear())
    net.read = []

    def unpack(t: Tensor) -> Tensor:
        net.read.append(1)
        return t + 0.001 * len(net.read)

    def loss_fn(model: Any, batch: Any) -> Tensor:
        net.read.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), unpack):
            return mse(model, batch)

    return Case(net, data(), loss_fn)


# ------------------------------------------------------------------ P11 P14 P15 P17: who steps when


@exhibit("P11", sites="0 2")
def accumulation() -> Case:
    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(3):
                loss = case.loss_fn(case.model, data()) / 3
                loss.backward()
                losses.append(loss.item())
            nn.utils.clip_grad_norm_(case.tensors(), 1.0)
            optimizer.step()
        return losses

    return Case(nn.Sequential(linear(), nn.Tanh(), linear()), data(), mse, train)


@exhibit("P14", sites="0 2")
def grad_scaler() -> Case:
    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        losses = []
        for k in range(steps):
            optimizer.zero_grad()
            loss = case.loss_fn(case.model, case.batch)
            if k == 1:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses

    return Case(nn.Sequential(linear(), nn.Tanh(), linear()), data(), mse, train)


@exhibit("P15", sites="0 2")
def lbfgs() -> Case:
    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = case.loss_fn(case.model, case.batch)
            loss.backward()
            losses.append(loss.item())
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return losses

    return Case(
        nn.Sequential(linear(), nn.Tanh(), linear()), data(), mse, train,
        lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
    )  # fmt: skip


@exhibit("P17", sites="0 2")
def gradient_penalty() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return F.mse_loss(out, batch[1]) + (slope.norm(dim=1) - 1).square().mean()

    return Case(nn.Sequential(linear(), nn.Tanh(), linear()), data(), loss_fn)


@exhibit("P17", sites="0 2 4")
def pinn() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        x = batch.clone().requires_grad_()
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return (ddu + u).square().mean()

    net = nn.Sequential(nn.Linear(1, N), nn.Tanh(), linear(), nn.Tanh(), nn.Linear(N, 1))
    return Case(net, torch.randn(B, 1), loss_fn)


@exhibit("P18", sites="0 2")
def not_a_number() -> Case:
    """The loss is nan from the start; clipping spreads it."""

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = case.loss_fn(case.model, case.batch)
            loss.backward()
            nn.utils.clip_grad_norm_(case.tensors(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    return Case(nn.Sequential(linear(), nn.Tanh(), linear()), data(), lambda m, b: (m(b[0]).sum() * 0).log(), train)


# ------------------------------------------------------------------ P19 P28: weights used by others


@exhibit("P19", sites="attend head")
def attention() -> Case:
    net = Free(
        lambda self, x: self.head(self.attend(x, x, x, need_weights=False)[0]),
        attend=nn.MultiheadAttention(N, 2, batch_first=True), head=linear(),
    )  # fmt: skip
    return Case(net, data(B, 5, N), mse)


@exhibit("P19", sites="w1 w2 relu() head")
def functional_weights() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.linear(F.relu(x @ self.w1), self.w2))

    net = Free(forward, head=linear())
    net.w1, net.w2 = nn.Parameter(torch.randn(N, N) / 3), nn.Parameter(torch.randn(N, N) / 3)
    return Case(net, data(), mse)


@exhibit("P19", sites="a.weight b.weight")
def forward_called_directly() -> Case:
    net = Free(lambda self, x: self.b.forward(self.a.forward(x).tanh()), a=linear(), b=linear())
    return Case(net, data(), mse)


@exhibit(
    "P19",
    "P28",
    sites="layers.0.self_attn layers.0.linear1 layers.0.linear2 layers.0.norm1 layers.1.linear1 layers.1.norm2",
)
def transformer_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(N, 2, 2 * N, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            losses += plain_training(case, optimizer, 1)
            net.eval()
            with torch.no_grad():
                losses.append(case.loss_fn(net, case.batch).item())  # the fast path
            net.train()
        return losses

    return Case(net, data(B, 5, N), mse, train)


@exhibit("P28", sites="head.0 head.2")
def frozen_backbone() -> Case:
    """A frozen encoder in eval mode takes torch's fast path, which has other bits, also while gradients are on."""
    body = nn.TransformerEncoder(nn.TransformerEncoderLayer(N, 2, N, batch_first=True), 2, enable_nested_tensor=False)
    body.requires_grad_(False).eval()
    net = Free(lambda self, x: self.head(self.body(x)), body=body, head=nn.Sequential(linear(), nn.ReLU(), linear()))
    return Case(net, data(B, 5, N), mse, parameters=lambda: list(net.head.parameters()))


# ------------------------------------------------------------------ P21 P22: number formats


@exhibit("P21", sites="0 1 2")
def bfloat16() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear()).bfloat16()
    x, y = data()
    return Case(net, (x.bfloat16(), y.bfloat16()), mse)


@exhibit("P21", sites="0 1 2")
def float16() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear()).half()
    x, y = data()
    return Case(net, (x.half(), y.half()), mse)


@exhibit("P21", sites="0 1 2 3")
def autocast() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.mse_loss(model(batch[0]).float(), batch[1])

    return Case(nn.Sequential(linear(), nn.LayerNorm(N), nn.GELU(), linear()), data(), loss_fn)


@exhibit("P21", sites="0 1 2")
def float64() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear()).double()
    x, y = data()
    return Case(net, (x.double(), y.double()), mse)


@exhibit("P22", sites="embed bag head")
def sparse_embedding() -> Case:
    net = Free(
        lambda self, t: self.head(self.embed(t).mean(1) + self.bag(t)),
        embed=nn.Embedding(10, N, sparse=True), bag=nn.EmbeddingBag(10, N, sparse=True), head=linear(),
    )  # fmt: skip
    return Case(net, (torch.randint(0, 10, (B, 5)), torch.randn(B, N)), mse)


@exhibit("complex", sites="a act b")
def complex_parameters() -> Case:
    act = Free(lambda _self, z: z / (1 + z.abs()))
    net = Free(
        lambda self, x: self.b(self.act(self.a(x.to(torch.complex64))).abs()),
        a=nn.Linear(N, N, dtype=torch.complex64), act=act, b=linear(),
    )  # fmt: skip
    return Case(net, data(), mse)


@exhibit("complex", sites="a b")
def negative_bit() -> Case:
    """The imaginary part of a conjugate is a tensor that numpy refuses."""
    part = Free(lambda _self, z: z.conj().imag)
    net = Free(
        lambda self, x: self.b(self.part(torch.complex(self.a(x), self.a(x)))), a=linear(), part=part, b=linear()
    )
    return Case(net, data(), mse)


# ------------------------------------------------------------------ P23 P24 P26 P27: transforms, copies, evaluation


@exhibit("P23", sites="a b")
def vmap_inside() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.func.vmap(lambda row: torch.tanh(F.relu(row) * 2))(self.a(x)))

    return Case(Free(forward, a=linear(), b=linear()), data(), mse)


@exhibit("P23", sites="b")
def grad_transform_inside() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.func.vmap(torch.func.grad(lambda row: F.silu(self.a(row)).sum()))(x))

    return Case(Free(forward, a=linear(), b=linear()), data(), mse)


@exhibit("P23", sites="a b")
def functional_call() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear())

    def forward(self: Any, x: Tensor) -> Tensor:
        scaled = {name: value * 1.5 for name, value in self.inner.named_parameters()}
        return self.b(torch.func.functional_call(self.inner, scaled, (self.a(x),)))

    return Case(Free(forward, a=linear(), inner=net, b=linear()), data(), mse)


@exhibit("P24", sites="0 2")
def exponential_average() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear())

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        average = copy.deepcopy(net)
        losses = []
        for _ in range(steps):
            losses += plain_training(case, optimizer, 1)
            with torch.no_grad():
                for mean, now in zip(average.parameters(), net.parameters(), strict=True):
                    mean.lerp_(now, 0.1)
                losses.append(case.loss_fn(average, case.batch).item())
        return losses

    return Case(net, data(), mse, train)


@exhibit("P26", sites="0 1 3")
def evaluation_between() -> Case:
    net = nn.Sequential(linear(), nn.BatchNorm1d(N), nn.Dropout(0.2), linear())

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            losses += plain_training(case, optimizer, 1)
            net.eval()
            with torch.no_grad():
                losses += [case.loss_fn(net, case.batch).item() for _ in range(3)]
            net.train()
        return losses

    return Case(net, data(), mse, train)


@exhibit("P26", sites="0 1 3")
def evaluation_with_gradients() -> Case:
    """Beginners evaluate without no_grad: those passes have a graph and no backward."""
    net = nn.Sequential(linear(), nn.BatchNorm1d(N), nn.Dropout(0.2), linear())

    def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            net.eval()
            losses += [case.loss_fn(net, case.batch).item() for _ in range(3)]
            net.train()
            losses += plain_training(case, optimizer, 1)
        return losses

    return Case(net, data(), mse, train)


@exhibit("P27", sites="trunk used")
def partial_backward() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        used, _ = model(batch[0])
        return F.mse_loss(used, batch[1])

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.used(h), self.unused(h)

    return Case(Free(forward, trunk=linear(), used=linear(), unused=linear()), data(), loss_fn)


# ------------------------------------------------------------------ P30 P32


@exhibit("P30", sites=" ".join(str(2 * k) for k in range(49)))
def deep_sigmoid() -> Case:
    layers: list[nn.Module] = []
    for _ in range(48):
        layers += [nn.Linear(16, 16), nn.Sigmoid()]
    return Case(nn.Sequential(*layers, nn.Linear(16, 1)), data(B, 16, out=(B, 1)), mse)


@exhibit("P32", sites="Linear Tanh Linear#1")
def layers_in_a_list() -> Case:
    layers = [linear(), nn.BatchNorm1d(N), nn.Tanh(), linear()]

    def forward(_self: Any, x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return Case(Free(forward), data(), mse, parameters=lambda: [p for layer in layers for p in layer.parameters()])


@exhibit("P32", sites="net.0 net.2 criterion")
def training_step() -> Case:
    def step(self: Any, batch: Any) -> Tensor:
        return self.criterion(self.net(batch[0]), batch[1])

    net = Free(lambda self, x: self.net(x), net=nn.Sequential(linear(), nn.Tanh(), linear()), criterion=nn.MSELoss())
    return Case(net, data(), step)


@exhibit("P32", sites="encoder.0 decoder.0 decoder.2")
def encoder_and_decoder() -> Case:
    net = nn.ModuleDict(
        {"encoder": nn.Sequential(linear(), nn.Tanh()), "decoder": nn.Sequential(linear(), nn.ReLU(), linear())}
    )

    def loss_fn(model: Any, batch: Any) -> Tensor:
        z = model["encoder"](batch[0])
        return F.mse_loss(model["decoder"](z + 0.1 * torch.randn_like(z)), batch[1])

    return Case(net, data(), loss_fn)


@exhibit("P32", sites="tensor(8,8) tensor(8,8)#1 tanh()")
def raw_tensors() -> Case:
    w = [torch.randn(N, N).div_(3).requires_grad_(), torch.randn(N, N).div_(3).requires_grad_()]

    def loss_fn(_model: Any, batch: Any) -> Tensor:
        return F.mse_loss(torch.tanh(batch[0] @ w[0]) @ w[1], batch[1])

    return Case(Free(lambda self: None), data(), loss_fn, parameters=lambda: list(w))


# ------------------------------------------------------------------ P33: what is differentiated once only


@exhibit("P33", sites="qkv out")
def fused_attention() -> Case:
    """The fused kernels have no second derivative."""

    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(B, 5, 3, 2, N // 2).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, 5, N))

    return Case(Free(forward, qkv=nn.Linear(N, 3 * N), out=linear()), data(B, 5, N), mse)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@exhibit("P33", sites="a tanh() b c")
def differentiable_once() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(Once.apply(self.b(torch.tanh(self.a(x)))))

    return Case(Free(forward, a=linear(), b=linear(), c=linear()), data(), mse)


# ------------------------------------------------------------------ layers, shapes and layouts


@exhibit("layers", sites="experts.a.0 experts.b.1 head")
def module_list_in_dict() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(sum(layer(x) for expert in self.experts.values() for layer in expert))

    experts = nn.ModuleDict({"a": nn.ModuleList([linear(), linear()]), "b": nn.ModuleList([linear(), linear()])})
    return Case(Free(forward, experts=experts, head=linear()), data(), mse)


@exhibit("layers", sites="0 1 2")
def weight_norm() -> Case:
    net = nn.Sequential(parametrizations.weight_norm(linear()), nn.Tanh(), parametrizations.weight_norm(linear()))
    return Case(net, data(), mse)


@exhibit("layers", sites="0 1 2")
def spectral_norm() -> Case:
    net = nn.Sequential(parametrizations.spectral_norm(linear()), nn.Tanh(), parametrizations.spectral_norm(linear()))
    return Case(net, data(), mse)


@exhibit("layers", sites="0 1 2")
def old_spectral_norm() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.utils.spectral_norm(linear()), nn.Tanh(), nn.utils.spectral_norm(linear()))
    return Case(net, data(), mse)


@exhibit("layers", sites="0 1 2 3 4 7")
def channels_last() -> Case:
    net = nn.Sequential(
        nn.Conv2d(3, N, 3), nn.ReLU(), nn.Conv2d(N, N, 3, groups=2), nn.BatchNorm2d(N), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(N, 4),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    x = torch.randn(B, 3, 10, 10).to(memory_format=torch.channels_last)
    return Case(net, (x, torch.randn(B, 4)), mse)


@exhibit("layers", sites="0 1 2 3 4 5")
def other_convolutions() -> Case:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Unflatten(2, (2, 3)), nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.InstanceNorm2d(3, affine=True), nn.Conv2d(3, 1, 1),
    )  # fmt: skip
    return Case(net, data(B, 2, N, out=(B, 1, 4, 6)), mse)


@exhibit("layers", sites="0 1 2")
def user_hooks() -> Case:
    """The user's own hooks: forward, tensor and full backward ones; they change the gradient."""
    net = nn.Sequential(linear(), nn.Tanh(), linear())
    net[0].register_forward_hook(lambda _m, _a, out: out * 2)
    net[1].register_full_backward_hook(lambda _m, grads, _out: (grads[0] * 0.5,))
    net[2].register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    return Case(net, data(), mse)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.variable = "a name that AccumulateGrad has too"
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@exhibit("layers", sites="a b")
def own_function() -> Case:
    return Case(Free(lambda self, x: self.b(Doubled.apply(self.a(x))), a=linear(), b=linear()), data(), mse)


@exhibit("layers", sites="0 1")
def expanded_buffer() -> Case:
    net = nn.Sequential(linear(), linear())
    net.register_buffer("ids", torch.zeros(1).expand(4))
    return Case(net, data(), mse)


@exhibit("layers", sites="0 1 2")
def nested_tensor() -> Case:
    rows = torch.nested.nested_tensor([torch.randn(3, N), torch.randn(5, N)], layout=torch.jagged)
    net = nn.Sequential(linear(), nn.ReLU(), linear())
    return Case(net, rows, lambda m, b: m(b).values().square().mean())


@exhibit("shapes", sites="0 1 2")
def batch_of_one() -> Case:
    return Case(nn.Sequential(linear(), nn.Tanh(), linear()), data(1, N), mse)


@exhibit("shapes", sites="0 1 2")
def no_batch_axis() -> Case:
    return Case(nn.Sequential(linear(), nn.Tanh(), nn.Linear(N, 1)), data(N, out=(1,)), mse)


@exhibit("shapes", sites="0 1 2")
def empty_batch() -> Case:
    net = nn.Sequential(linear(), nn.Tanh(), linear())
    return Case(net, torch.randn(0, N), lambda m, b: m(b).sum())


@exhibit("shapes", sites="a b.tanh()")
def scalars() -> Case:
    """Sites without axes, and parameters without axes."""
    squeeze = Free(lambda _self, x: x.sum().tanh())
    net = Free(lambda self, x: self.b(self.a(x)) * self.scale, a=nn.Linear(N, 1), b=squeeze)
    net.scale = nn.Parameter(torch.tensor(2.0))
    return Case(net, torch.randn(B, N), lambda m, b: m(b).square())


@exhibit("shapes", sites="a b")
def input_wants_gradient() -> Case:
    x = torch.randn(B, N, requires_grad=True)
    return Case(Free(lambda self, t: self.b(self.a(t)), a=linear(), b=linear()), (x, torch.randn(B, N)), mse)
