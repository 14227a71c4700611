"""Small trainings of every kind that the remedies are tried on."""

import torch
from torch import nn
from torch.nn import functional

from gradwell.surgery.setup import TrainSetup, forked

WIDTH, CLASSES, BATCH = 16, 5, 12


class Functional(nn.Module):
    """The same net as `mlp`, its activations called as functions of three kinds."""

    def __init__(self, activation="sigmoid"):
        super().__init__()
        self.name = activation
        self.fc1, self.fc2, self.fc3 = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = getattr(functional, self.name)(self.fc1(x))
        x = getattr(torch, self.name)(self.fc2(x))
        x = getattr(self.fc3(x), self.name)()
        return self.head(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Reader(nn.Module):
    """A fused recurrent layer, read at its last step."""

    def __init__(self, kind=nn.RNN, **settings):
        super().__init__()
        self.rnn = kind(4, WIDTH, batch_first=True, **settings)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Stepper(nn.Module):
    """A cell called step by step."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(4, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        state = x.new_zeros(len(x), WIDTH)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


class Encoder(nn.Module):
    """One attention block over tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.Sequential(layer)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.layers(self.embed(x)).mean(1))


def mlp(activation=nn.Sigmoid):
    parts = []
    for _ in range(4):
        parts += [nn.Linear(WIDTH, WIDTH), activation()]
    return nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def unpadded():
    """Convolutions of which only some keep the size of their image."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


NETS = {
    "sigmoid": (mlp, (WIDTH,)),
    "relu": (lambda: mlp(nn.ReLU), (WIDTH,)),
    "functional": (Functional, (WIDTH,)),
    "cnn": (cnn, (1, 6, 6)),
    "unpadded": (unpadded, (1, 9, 9)),
    "residual": (Residual, (WIDTH,)),
    "rnn": (Reader, (7, 4)),
    "two_rnns": (lambda: Reader(num_layers=2), (7, 4)),
    "lstm": (lambda: Reader(nn.LSTM), (7, 4)),
    "gru": (lambda: Reader(nn.GRU), (7, 4)),
    "cell": (Stepper, (7, 4)),
    "encoder": (Encoder, (7, 4)),
}


def loss_fn(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y)


def data(shape):
    def batches(seed):
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            x = 3 + 2 * torch.randn(BATCH, *shape, generator=generator)
            yield x, torch.randint(CLASSES, (BATCH,), generator=generator)

    return batches


def setup_of(name, *, seed=0, optimizer=None, dtype=torch.float32):
    make, shape = NETS[name]
    with forked(seed):
        model = make().to(dtype)
    batches = data(shape)
    if dtype != torch.float32:
        batches = lambda seed: ((x.to(dtype), y) for x, y in data(shape)(seed))  # noqa: E731
    return TrainSetup(model, optimizer or (lambda params: torch.optim.SGD(params, lr=0.05)), loss_fn, batches)
