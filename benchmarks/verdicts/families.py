"""The networks and their tasks in plain PyTorch, one builder a family; nothing here knows gradwell.

A builder takes knobs (plain data) and a seed and gives a `Bench`: the model, whose turn it is to be trained with which
loss, endless batches, and what counts as learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
Knobs = Mapping[str, Any]


class Turn(NamedTuple):
    """One backward pass and one optimizer step of an iteration; a GAN has two."""

    parameters: list[nn.Parameter]
    loss: Callable[[Batch], Tensor]


class Bench(NamedTuple):
    """A family's network with its task. `target`: smoothed loss that counts as learnt; `chance`: the loss of the best
    constant answer. `right`: share of right answers of a batch, None where the task has no classes. `measure`: what is
    compared with the target instead of the loss; `settled`: steps before which a good value is luck.
    """

    model: nn.Module
    turns: list[Turn]
    batches: Iterator[Batch]
    target: float
    chance: float
    right: Callable[[Batch], float] | None = None
    measure: Callable[[], float] | None = None
    held: Batch | None = None
    settled: int = 0


# ------------------------------------------------------------------ data


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits as (1797, 8, 8) in 0 ... 1, shuffled, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.images / 16, dtype=torch.float32)[order], torch.tensor(found.target)[order].long()


def drawn(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """Endless shuffled batches of the first 1400 samples."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(1400, generator=generator)
        for chunk in torch.split(order[: 1400 - 1400 % size], size):
            yield x[chunk], y[chunk]


def recall(knobs: Knobs, seed: int) -> Iterator[Batch]:
    """Which of four symbols stood at the first of `length` steps? Noise follows."""
    generator = torch.Generator().manual_seed(seed)
    size, length = knobs.get("batch", 64), knobs.get("length", 6)
    while True:
        y = torch.randint(4, (size,), generator=generator)
        x = 0.1 * torch.randn(size, length, 4, generator=generator)
        x[torch.arange(size), 0, y] += 1
        yield scaled(x, knobs), y


def scaled(x: Tensor, knobs: Knobs) -> Tensor:
    return x * knobs.get("input_scale", 1.0) + knobs.get("input_shift", 0.0)


# ------------------------------------------------------------------ parts

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky": nn.LeakyReLU,
    "none": nn.Identity,
}


def act(knobs: Knobs, default: str = "relu") -> nn.Module:
    return ACTIVATIONS[knobs.get("act", default)]()


def start(model: nn.Module, knobs: Knobs) -> nn.Module:
    """The weights of the hidden and last linear and convolution layers, as the knobs say."""
    init, gain, bias = knobs.get("init", "default"), knobs.get("gain", 1.0), knobs.get("bias")
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        if init == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif init == "lecun":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        elif init != "default":
            nn.init.constant_(layer.weight, {"zeros": 0.0, "constant": 0.02}[init])
        if init != "default" and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.mul_(gain)
    for layer in layers[:-1]:
        if bias is not None and layer.bias is not None:
            nn.init.constant_(layer.bias, bias)
    if "head_bias" in knobs and layers[-1].bias is not None:
        nn.init.constant_(layers[-1].bias, knobs["head_bias"])
    return model


def classified(model: nn.Module, batches: Iterator[Batch], held: Batch, knobs: Knobs) -> Bench:
    """A classifier under cross-entropy, or under a squared error on its squashed outputs (`out="sigmoid"`)."""
    classes = int(held[1].max()) + 1
    squashed = knobs.get("out") == "sigmoid"
    if knobs.get("half"):
        model = model.half()
        batches = ((x.half(), y) for x, y in batches)
        held = (held[0].half(), held[1])

    def loss(batch: Batch) -> Tensor:
        x, y = batch
        if squashed:
            return nn.functional.mse_loss(torch.sigmoid(model(x)), nn.functional.one_hot(y, classes).to(x.dtype))
        return nn.functional.cross_entropy(model(x).float(), y)

    def right(batch: Batch) -> float:
        with torch.no_grad():
            return float((model(batch[0]).argmax(1) == batch[1]).double().mean())

    chance = (classes - 1) / classes**2 if squashed else math.log(classes)
    turns = [Turn(list(model.parameters()), loss)]
    return Bench(model, turns, batches, 0.045 if squashed else 0.5, chance, right, held=held)


def of_digits(model: nn.Module, knobs: Knobs, seed: int, *, flat: bool = True) -> Bench:
    x, y = digits()
    x = x.flatten(1) if flat else x.unsqueeze(1) if knobs.get("image", True) else x
    x = scaled(x, knobs)
    return classified(model, drawn(x, y, knobs.get("batch", 64), seed), (x[1400:], y[1400:]), knobs)


# ------------------------------------------------------------------ families


class Cut(nn.Module):
    """The bug of a detached graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class NormBug(nn.Module):
    """x plus the length of a difference that is zero: finite forward, NaN backward (the gradient of sqrt at 0)."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + ((x - x.clone()) ** 2).sum(1, keepdim=True).sqrt()
        return out


def mlp(knobs: Knobs, seed: int) -> Bench:
    """Linear layers in a row."""
    width, depth, last = knobs.get("width", 48), knobs.get("depth", 3), 64
    parts: list[nn.Module] = []
    for n in range(depth):
        parts.append(nn.Linear(last, width))
        parts += [nn.BatchNorm1d(width)] if knobs.get("norm") == "batch" else []
        parts += [nn.LayerNorm(width)] if knobs.get("norm") == "layer" else []
        parts.append(act(knobs))
        parts += [nn.Dropout(knobs["dropout"])] if "dropout" in knobs else []
        parts += [Cut()] if n + 1 == knobs.get("cut") else []
        last = width
    parts += [NormBug()] if knobs.get("norm_bug") else []
    parts.append(nn.Linear(last, 10))
    return of_digits(start(nn.Sequential(*parts), knobs), knobs, seed)


class ConvNet(nn.Module):
    """Convolutions in a row, pooled twice where deep enough, read by one linear layer."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        channels, depth = knobs.get("width", 10), knobs.get("depth", 3)
        layers: list[nn.Module] = []
        last = 1
        for n in range(depth):
            layers.append(nn.Conv2d(last, channels, 3, padding=1))
            layers += [nn.BatchNorm2d(channels)] if knobs.get("norm") == "batch" else []
            layers.append(act(knobs))
            layers += [nn.MaxPool2d(2)] if n == 0 else []
            last = channels
        self.features = nn.Sequential(*layers)
        self.cut = Cut() if knobs.get("cut") else nn.Identity()
        self.classifier = nn.Linear(channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.cut(self.features(x)).flatten(1))
        return out


def cnn(knobs: Knobs, seed: int) -> Bench:
    """Convolutions in a row."""
    return of_digits(start(ConvNet(knobs), knobs), knobs, seed, flat=False)


class Block(nn.Module):
    def __init__(self, width: int, knobs: Knobs) -> None:
        super().__init__()
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "": lambda _: nn.Identity()}
        self.norm = norms[knobs.get("norm", "layer")](width)
        self.fc1 = nn.Linear(width, width)
        self.act = act(knobs)
        self.fc2 = nn.Linear(width, width)
        self.scale = knobs.get("scale", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.fc2(self.act(self.fc1(self.norm(x))))


class ResNet(nn.Module):
    """x + scale F(x), with or without a norm in the branch."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        width = knobs.get("width", 32)
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Block(width, knobs) for _ in range(knobs.get("depth", 4)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.fc(x)
        return out


def residual(knobs: Knobs, seed: int) -> Bench:
    """Residual blocks of two linear layers."""
    return of_digits(start(ResNet(knobs), knobs), knobs, seed)


class DenseNet(nn.Module):
    """Each layer reads what all layers before it gave."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        growth = knobs.get("width", 6)
        layers, channels = [], growth
        self.stem = nn.Conv2d(1, growth, 3, padding=1)
        for _ in range(knobs.get("depth", 4)):
            norm = nn.BatchNorm2d(channels) if knobs.get("norm", "batch") else nn.Identity()
            layers.append(nn.Sequential(norm, act(knobs), nn.Conv2d(channels, growth, 3, padding=1)))
            channels += growth
        self.layers = nn.ModuleList(layers)
        self.pool = nn.AvgPool2d(2)
        self.cut = Cut() if knobs.get("cut") else nn.Identity()
        self.classifier = nn.Linear(channels * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        out: Tensor = self.classifier(self.cut(self.pool(x)).flatten(1))
        return out


def densenet(knobs: Knobs, seed: int) -> Bench:
    """Concatenating convolutions."""
    return of_digits(start(DenseNet(knobs), knobs), knobs, seed, flat=False)


class UNet(nn.Module):
    """Two levels down, two up, with the features of the way down concatenated on the way up."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        c = knobs.get("width", 8)
        self.knobs = knobs
        self.down1, self.down2 = self.level(1, c), self.level(c, 2 * c)
        self.bottom = self.level(2 * c, 2 * c)
        self.up2, self.up1 = self.level(4 * c, c), self.level(2 * c, c)
        self.cut = Cut() if knobs.get("cut") else nn.Identity()
        self.out = nn.Conv2d(c, 1, 1)

    def level(self, before: int, after: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(after) if self.knobs.get("norm") == "batch" else nn.Identity()
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), norm, act(self.knobs))

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        low = self.bottom(nn.functional.max_pool2d(two, 2))
        high = self.up2(torch.cat([nn.functional.interpolate(low, scale_factor=2), two], 1))
        high = self.up1(torch.cat([nn.functional.interpolate(high, scale_factor=2), one], 1))
        out: Tensor = self.out(self.cut(high))
        return out


def unet(knobs: Knobs, seed: int) -> Bench:
    """Which pixels of a noisy digit are ink? One logit a pixel."""
    clean, _ = digits()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    x = scaled((clean + 0.3 * noise).unsqueeze(1), knobs)
    ink = (clean > 0.5).float().unsqueeze(1)
    model = start(UNet(knobs), knobs)

    def loss(batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    def right(batch: Batch) -> float:
        with torch.no_grad():
            return float(((model(batch[0]) > 0) == (batch[1] > 0.5)).double().mean())

    share = float(ink.mean())
    chance = -share * math.log(share) - (1 - share) * math.log(1 - share)
    turns = [Turn(list(model.parameters()), loss)]
    return Bench(
        model, turns, drawn(x, ink, knobs.get("batch", 32), seed), 0.33, chance, right, held=(x[1400:], ink[1400:])
    )


class Reader(nn.Module):
    """A recurrent net read at its last step."""

    def __init__(self, knobs: Knobs, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        width = knobs.get("width", 32)
        self.rnn = cell(4, width, num_layers=knobs.get("depth", 1), batch_first=True)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x)
        out: Tensor = self.fc(steps[:, -1])
        return out


def recurrent(cell: type[nn.RNNBase]) -> Callable[[Knobs, int], Bench]:
    def build(knobs: Knobs, seed: int) -> Bench:
        model = start(Reader(knobs, cell), knobs)
        for name, weight in model.named_parameters():
            with torch.no_grad():
                if ".weight_hh" in name:
                    weight.mul_(knobs.get("recurrent_gain", 1.0))
                if "rnn." in name and knobs.get("init") == "zeros":
                    weight.zero_()
                if ".weight_hh" in name and knobs.get("orthogonal"):
                    nn.init.orthogonal_(weight)
                if ".bias_ih" in name and "forget_bias" in knobs:
                    n = len(weight) // 4
                    weight[n : 2 * n].fill_(knobs["forget_bias"])
        held = next(recall({**knobs, "batch": 256}, 104729))
        return classified(model, recall(knobs, seed), held, knobs)

    build.__doc__ = f"{cell.__name__} over a sequence whose first symbol is asked for at the end."
    return build


class Attend(nn.Module):
    """A transformer block written by hand, pre- or post-LN."""

    def __init__(self, width: int, knobs: Knobs, *, pre: bool) -> None:
        super().__init__()
        self.pre, self.heads, self.scale = pre, 4, knobs.get("scale", 1.0)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.act = act(knobs, "gelu")

    def attention(self, x: Tensor) -> Tensor:
        b, t, n = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, t, n))
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.scale * self.attention(self.ln1(x))
            return x + self.scale * self.down(self.act(self.up(self.ln2(x))))
        x = self.ln1(x + self.attention(x))
        out: Tensor = self.ln2(x + self.down(self.act(self.up(x))))
        return out


class Transformer(nn.Module):
    """The eight rows of a digit as tokens."""

    def __init__(self, knobs: Knobs, *, pre: bool) -> None:
        super().__init__()
        width = knobs.get("width", 24)
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(Attend(width, knobs, pre=pre) for _ in range(knobs.get("depth", 2)))
        self.ln = nn.LayerNorm(width) if pre else nn.Identity()
        self.cut = Cut() if knobs.get("cut") else nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.cut(self.ln(x)).mean(1))
        return out


def transformer(*, pre: bool) -> Callable[[Knobs, int], Bench]:
    def build(knobs: Knobs, seed: int) -> Bench:
        model = start(Transformer(knobs, pre=pre), knobs)
        return of_digits(model, {**knobs, "image": False}, seed, flat=False)

    return build


def gan(knobs: Knobs, seed: int) -> Bench:
    """A generator of points on a ring and its critic; measured by how far from the ring and its centre they lie."""
    width = knobs.get("width", 32)

    def net(before: int, after: int) -> list[nn.Module]:
        hidden: list[nn.Module] = []
        for n in range(knobs.get("depth", 2)):
            hidden += [nn.Linear(before if n == 0 else width, width), act(knobs, "leaky")]
        return [*hidden, nn.Linear(width, after)]

    generator = start(nn.Sequential(*net(4, 2)), knobs)
    critic = nn.Sequential(*net(2, 1))
    points = torch.Generator().manual_seed(seed)
    fixed = torch.randn(256, 4, generator=torch.Generator().manual_seed(7))
    size = knobs.get("batch", 64)

    def ring() -> Iterator[Batch]:
        while True:
            angle = torch.rand(size, generator=points) * 2 * math.pi
            real = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(size, 2, generator=points)
            yield scaled(real, knobs), torch.randn(size, 4, generator=points)

    def judge(x: Tensor, *, real: bool) -> Tensor:
        logits = critic(x)
        if knobs.get("squared"):  # a sigmoid under a squared error
            return (torch.sigmoid(logits) - float(real)).square().mean()
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def critic_loss(batch: Batch) -> Tensor:
        return judge(batch[0], real=True) + judge(generator(batch[1]).detach(), real=False)

    def generator_loss(batch: Batch) -> Tensor:
        return judge(generator(batch[1]), real=True)

    def off_the_ring() -> float:
        with torch.no_grad():
            made = generator(fixed)
            return float((made.norm(dim=1) - 2).abs().mean() + made.mean(0).norm())

    turns = [Turn(list(critic.parameters()), critic_loss), Turn(list(generator.parameters()), generator_loss)]
    model = nn.ModuleDict({"critic": critic, "generator": generator})
    return Bench(model, turns, ring(), 1.0, 2.0, measure=off_the_ring, settled=20)


class AutoEncoder(nn.Module):
    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        width, code, depth = knobs.get("width", 32), knobs.get("code", 12), knobs.get("depth", 1)
        out = {"": nn.Identity, "sigmoid": nn.Sigmoid}[knobs.get("out", "")]
        self.encoder = nn.Sequential(*self.half(64, width, depth, knobs), nn.Linear(width, code))
        self.cut = Cut() if knobs.get("cut") else nn.Identity()
        self.decoder = nn.Sequential(*self.half(code, width, depth, knobs), nn.Linear(width, 64), out())

    @staticmethod
    def half(before: int, width: int, depth: int, knobs: Knobs) -> list[nn.Module]:
        found: list[nn.Module] = []
        for n in range(depth):
            found += [nn.Linear(before if n == 0 else width, width), act(knobs, "elu")]
        return found

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.cut(self.encoder(x)))
        return out


def autoencoder(knobs: Knobs, seed: int) -> Bench:
    """A digit through a narrow code; the squared error a pixel, times ten."""
    x, _ = digits()
    x = scaled(x.flatten(1), knobs)
    model = start(AutoEncoder(knobs), knobs)
    size = knobs.get("input_scale", 1.0) ** 2

    def loss(batch: Batch) -> Tensor:
        return 10 * nn.functional.mse_loss(model(batch[0]), batch[1])

    chance = 10 * float((x - x.mean(0)).square().mean())
    turns = [Turn(list(model.parameters()), loss)]
    return Bench(
        model, turns, drawn(x, x, knobs.get("batch", 64), seed), 0.42 * size, chance, held=(x[1400:], x[1400:])
    )


class Mixture(nn.Module):
    """Each sample goes to the expert that the gate likes best, times its weight; `idle`: one that is never liked."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        width = knobs.get("width", 32)
        self.gate = nn.Linear(64, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, width), act(knobs), nn.Linear(width, width), act(knobs)) for _ in range(3)
        )
        self.head = nn.Linear(width, 10)
        self.idle, self.cut = knobs.get("idle", 0), knobs.get("cut", False)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x)[:, : 3 - self.idle].softmax(1)
        best, choice = gates.max(1)
        mixed = torch.zeros(len(x), self.head.in_features, dtype=x.dtype)
        for n in range(3 - self.idle):
            rows = (choice == n).nonzero().squeeze(1)
            if len(rows):
                mixed = mixed.index_add(0, rows, best[rows, None] * self.experts[n](x[rows]))
        out: Tensor = self.head(mixed.detach() if self.cut else mixed)
        return out


def mixture(knobs: Knobs, seed: int) -> Bench:
    """A mixture of three experts, one of them chosen for each sample."""
    return of_digits(start(Mixture(knobs), knobs), knobs, seed)


FAMILIES: dict[str, Callable[[Knobs, int], Bench]] = {
    "mlp": mlp,
    "cnn": cnn,
    "residual": residual,
    "densenet": densenet,
    "unet": unet,
    "rnn": recurrent(nn.RNN),
    "lstm": recurrent(nn.LSTM),
    "gru": recurrent(nn.GRU),
    "pre_ln": transformer(pre=True),
    "post_ln": transformer(pre=False),
    "gan": gan,
    "autoencoder": autoencoder,
    "mixture": mixture,
}
HELD_ASIDE = ("densenet", "unet", "gru", "autoencoder", "mixture")
"""Families that no threshold was ever chosen on, and none may be."""
