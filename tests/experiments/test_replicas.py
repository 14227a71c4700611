"""The batched backward, written by hand, against an autograd loop of one net at a time."""

import numpy as np
import pytest
import torch

from gradwell.errors import UsageError
from gradwell.lab.replicas import (
    OPTIMIZERS,
    XOR_INPUTS,
    XOR_TARGETS,
    Replicas,
    Shape,
    adam,
    clip_by_norm,
    draw,
    train_xor,
)

TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.01),
    "elu": torch.nn.functional.elu,
    "identity": lambda x: x,
}
SHAPES = [
    (Shape(), 1),
    (Shape(skip=1), 1),
    (Shape(skip=2), 1),
    (Shape(skip=2, activation="relu", hidden=5, width=3, inputs=4, outputs=2), 3),
    (Shape(activation="tanh", hidden=0), 4),
    (Shape(activation="elu", output="identity", hidden=3), 4),
    (Shape(activation="leaky_relu", hidden=3, skip=1), 4),
    (Shape(activation="identity", output="identity"), 1),
    (Shape(hidden=4, norm=True), 4),
    (Shape(hidden=4, norm=True, skip=2, activation="tanh"), 6),
]


def one_net(shape, weights, biases, x):
    """The slow twin: one replica, layer by layer, as the lesson writes it."""
    phi, out = TORCH[shape.activation], TORCH[shape.output]
    inputs = []
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        inputs.append(x)
        h = x @ w.T
        last = k == len(weights) - 1
        if shape.norm and not last:
            h = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5)
        h = h + b
        x = out(h) if last else phi(h)
        source = shape.source(k)
        if source is not None:
            x = x + inputs[source]
    return x


def parameters_of(nets, r):
    weights = [torch.tensor(w[r], requires_grad=True) for w in nets.weights]
    biases = [torch.tensor(b[r], requires_grad=True) for b in nets.biases]
    return weights, biases


@pytest.mark.parametrize(("shape", "batch"), SHAPES, ids=str)
def test_three_steps_equal_autograd(shape, batch):
    generator = np.random.default_rng(0)
    nets = Replicas(shape, 3, batch=batch)
    draw(nets, "xavier_uniform", [5, 6, 7])
    twins = [parameters_of(nets, r) for r in range(3)]
    update = adam(nets.parameters.size, lr=0.01)
    moments = [{id(p): (torch.zeros_like(p), torch.zeros_like(p)) for p in w + b} for w, b in twins]
    for step in range(1, 4):
        x = generator.normal(size=(batch, shape.inputs))
        t = generator.random(size=(batch, shape.outputs))
        nets.forward(x)
        losses = nets.backward(t)
        for r, (weights, biases) in enumerate(twins):
            y = one_net(shape, weights, biases, torch.tensor(x))
            loss = 0.5 * (y - torch.tensor(t)).square().sum()
            grads = torch.autograd.grad(loss, weights + biases)
            assert losses[r] == pytest.approx(loss.item(), rel=1e-12)
            ours = [g[r] for g in nets.weight_grads + nets.bias_grads]
            for mine, theirs in zip(ours, grads, strict=True):
                np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-13)
            with torch.no_grad():
                for p, g in zip(weights + biases, grads, strict=True):
                    m, v = moments[r][id(p)]
                    m.mul_(0.9).add_(g, alpha=0.1)
                    v.mul_(0.999).add_(g * g, alpha=0.001)
                    rate = 0.01 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
                    p -= rate * m / (v.sqrt() + 1e-7)
        update(nets.parameters, nets.gradients)
        for r, (weights, biases) in enumerate(twins):
            for mine, theirs in zip(nets.weights + nets.biases, weights + biases, strict=True):
                np.testing.assert_allclose(mine[r], theirs.detach().numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("rmsprop", {"lr": 0.01}, lambda p: torch.optim.RMSprop(p, lr=0.01)),
        ("adagrad", {"lr": 0.01}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
        ("adam", {"lr": 0.01, "eps": 1e-12}, lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-12)),
    ],
)
def test_optimizers_equal_torch(name, settings, theirs):
    generator = np.random.default_rng(1)
    mine = generator.normal(size=6)
    p = torch.tensor(mine.copy(), requires_grad=True)
    update, other = OPTIMIZERS[name](6, **settings), theirs([p])
    for _ in range(4):
        g = generator.normal(size=6)
        p.grad = torch.tensor(g)
        other.step()
        update(mine, g)
    np.testing.assert_allclose(mine, p.detach().numpy(), rtol=1e-9)


def test_sign_moves_by_one_size():
    p = np.zeros(3)
    OPTIMIZERS["sign"](3, lr=0.1)(p, np.array([1e-30, -5.0, 0.0]))
    assert p.tolist() == [-0.1, 0.1, 0.0]


def test_clip_is_torchs():
    nets = Replicas(Shape(hidden=2), 2)
    draw(nets, "uniform01", [0, 1])
    nets.forward(XOR_INPUTS[1:2])
    nets.backward(XOR_TARGETS[1])
    before = nets.gradient_norms()
    grads = [torch.tensor(g[0].copy()) for g in nets.matrix_grads]
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    limit = 0.5 * float(before.min())
    torch.nn.utils.clip_grad_norm_(params, limit)
    clip_by_norm(nets, limit)
    assert nets.gradient_norms() == pytest.approx([limit, limit], rel=1e-3)
    for p, g in zip(params, nets.matrix_grads, strict=True):
        np.testing.assert_allclose(g[0], p.grad.numpy(), rtol=1e-9)


def test_the_lesson_has_217_parameters():
    shape = Shape()
    assert shape.parameters == 217
    assert sum(count for _, _, count in shape.layer_table()) == 217
    assert len(shape.layer_table()) == 12


def test_a_seed_is_a_net_whatever_its_neighbours():
    alone, many = Replicas(Shape(hidden=1), 1), Replicas(Shape(hidden=1), 3)
    draw(alone, "uniform01", [2])
    draw(many, "uniform01", [0, 1, 2])
    one = train_xor(alone, adam(alone.parameters.size), epochs=200)
    three = train_xor(many, adam(many.parameters.size), epochs=200)
    assert one.losses[0] == pytest.approx(three.losses[2], rel=1e-9)
    with pytest.raises(UsageError, match="as many seeds"):
        draw(many, "uniform01", [0])


def test_initial_weight_gradients_of_the_lesson():
    """Seed 0, x = (0, 1): some nine decades from the first layer to the last (THEORY 2.1)."""
    nets = Replicas(Shape(), 20)
    draw(nets, "uniform01", range(20))
    nets.forward(XOR_INPUTS[1:2])
    nets.backward(XOR_TARGETS[1])
    norms = nets.weight_gradient_norms()
    assert 8 < np.median(np.log10(norms[-1] / norms[0])) < 11
