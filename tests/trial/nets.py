"""Small trainings for the tests of trials; at the top of a module, so that other processes can import them."""

import os
import time

import torch
from torch import nn

from gradwell.surgery.setup import TrainSetup


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(32, 8, generator=generator)
        yield x, (x[:, 0] > x[:, 1]).long()


def chain(depth=2, activation=nn.Tanh, width=8):
    torch.manual_seed(0)
    layers = []
    for k in range(depth):
        layers += [nn.Linear(8 if k == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def healthy(**options):
    return TrainSetup(chain(), sgd, cross_entropy, batches, **{"steps": 40, **options})


def sick(**options):
    """Ten sigmoid layers at their default init."""
    return TrainSetup(chain(10, nn.Sigmoid), sgd, cross_entropy, batches, **{"steps": 150, **options})


# Losses that behave badly in a child, and well in the process that made them.

HOME = os.getpid()


def away():
    return os.getpid() != HOME


def killed_once(model, batch):
    """A child dies in its first run; the mark is what tells the second one."""
    mark = os.environ["GRADWELL_TEST_MARK"]
    if away() and not os.path.exists(mark):  # noqa: PTH110
        open(mark, "w").close()  # noqa: PTH123
        os.kill(os.getpid(), 9)
    return cross_entropy(model, batch)


def killed_always(model, batch):
    if away():
        os.kill(os.getpid(), 9)
    return cross_entropy(model, batch)


def hangs(model, batch):
    if away():
        time.sleep(60)
    return cross_entropy(model, batch)
