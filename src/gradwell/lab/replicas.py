"""Many small networks of one shape, trained side by side: one batched matmul a layer, the backward written by hand.

A replica is one seed. All its weights live in one flat array, so that an optimizer is a dozen numpy calls for all
replicas and layers together. Twelve layers of four units and 20 replicas take about 0.1 ms a step on one core, against
some 6 ms for a step of one such net in torch. Its slow twin, an autograd loop, is in the tests.

Axis letters: R replicas, B batch, N units in, M units out, L layers, P parameters of one replica.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from scipy.special import expit

from gradwell.errors import UsageError
from gradwell.lab._ids import pick
from gradwell.shelf import shelf
from gradwell.theory.nonlinearity import nonlinearity
from gradwell.theory.quadrature import Floats

# -- activations: in place forward, slope from input h and output y --------------------------------

Forward = Callable[[Floats, Floats], object]
Slope = Callable[[Floats, Floats, Floats], object]


def _sigmoid(h: Floats, y: Floats) -> None:
    expit(h, out=y)


def _sigmoid_slope(h: Floats, y: Floats, out: Floats) -> None:  # noqa: ARG001
    # y (1 - y)
    np.subtract(1.0, y, out=out)
    np.multiply(out, y, out=out)


def _tanh(h: Floats, y: Floats) -> None:
    np.tanh(h, out=y)


def _tanh_slope(h: Floats, y: Floats, out: Floats) -> None:  # noqa: ARG001
    # (1 + y)(1 - y)
    np.multiply(y, y, out=out)
    np.subtract(1.0, out, out=out)


def _relu(h: Floats, y: Floats) -> None:
    np.maximum(h, 0.0, out=y)


def _relu_slope(h: Floats, y: Floats, out: Floats) -> None:  # noqa: ARG001
    np.greater(h, 0.0, out=out, casting="unsafe")


def _leaky(h: Floats, y: Floats) -> None:
    np.multiply(h, 0.01, out=y)
    np.maximum(h, y, out=y)


def _leaky_slope(h: Floats, y: Floats, out: Floats) -> None:  # noqa: ARG001
    np.copyto(out, np.where(h > 0, 1.0, 0.01))


def _elu(h: Floats, y: Floats) -> None:
    np.copyto(y, np.where(h > 0, h, np.expm1(np.minimum(h, 0.0))))


def _elu_slope(h: Floats, y: Floats, out: Floats) -> None:
    np.copyto(out, np.where(h > 0, 1.0, y + 1.0))


def _identity(h: Floats, y: Floats) -> None:
    np.copyto(y, h)


def _identity_slope(h: Floats, y: Floats, out: Floats) -> None:  # noqa: ARG001
    out.fill(1.0)


ACTIVATIONS: dict[str, tuple[Forward, Slope]] = {
    "sigmoid": (_sigmoid, _sigmoid_slope),
    "tanh": (_tanh, _tanh_slope),
    "relu": (_relu, _relu_slope),
    "leaky_relu": (_leaky, _leaky_slope),
    "elu": (_elu, _elu_slope),
    "identity": (_identity, _identity_slope),
}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What all replicas share: `inputs` -> `width`, `hidden` more layers of `width`, -> `outputs`; hidden + 2 layers.

    `skip` 1: each hidden layer adds its input to its output; 2: each second one adds the input of the one before it.
    `norm`: batch norm (bias after it, no learned scale) on every layer but the last.
    """

    inputs: int = 2
    width: int = 4
    hidden: int = 10
    outputs: int = 1
    activation: str = "sigmoid"
    output: str = "sigmoid"
    skip: int = 0
    norm: bool = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(N, M) of each weight layer."""
        inner = [(self.width, self.width)] * self.hidden
        return [(self.inputs, self.width), *inner, (self.width, self.outputs)]

    @property
    def parameters(self) -> int:
        """P: weights and biases of one replica.

        >>> Shape().parameters
        217
        """
        return sum((n + 1) * m for n, m in self.sizes)

    def source(self, layer: int) -> int | None:
        """The layer whose input is added to the output of `layer`, None without a shortcut there."""
        if self.skip == 0 or not 1 <= layer <= self.hidden or layer % self.skip:
            return None
        return layer - self.skip + 1

    def layer_table(self) -> list[tuple[str, str, int]]:
        """Name, output shape and parameter count of each layer, as the lesson prints them."""
        rows = []
        last = len(self.sizes) - 1
        for k, (n, m) in enumerate(self.sizes):
            kind = "residual" if self.source(k) is not None else "dense"
            name = f"{kind} {k + 1}" + (" (output)" if k == last else "")
            rows.append((name, f"({m},)", (n + 1) * m))
        return rows


class Replicas:
    """R networks of one shape: `forward`, `backward`, and the arrays they work on.

    `parameters` is flat, all layers of all replicas; `weights[l]` (R, M, N) and `biases[l]` (R, M) are views of it,
    `weight_grads`, `bias_grads` of `gradients`. After `backward`: `deltas[l]` (R, B, M) is dLoss/d(pre-activation).
    """

    def __init__(self, shape: Shape, replicas: int, *, batch: int = 1) -> None:
        self.shape, self.replicas, self.batch = shape, replicas, batch
        self.forward_phi, self.slope_phi = pick(ACTIVATIONS, shape.activation, "activation of replicas")
        self.forward_out, self.slope_out = pick(ACTIVATIONS, shape.output, "activation of replicas")
        self._parameters(shape, replicas)
        self._buffers(shape, replicas, batch)

    def _parameters(self, shape: Shape, R: int) -> None:
        self.parameters = np.zeros(shape.parameters * R)
        self.gradients = np.zeros_like(self.parameters)
        self.matrices = _views(self.parameters, shape, R)
        self.matrix_grads = _views(self.gradients, shape, R)
        # the bias is the last column: it multiplies a 1 that stands at the end of every input
        self.weights = [a[:, :, :-1] for a in self.matrices]
        self.biases = [a[:, :, -1] for a in self.matrices]
        self.weight_grads = [a[:, :, :-1] for a in self.matrix_grads]
        self.bias_grads = [a[:, :, -1] for a in self.matrix_grads]
        start = (shape.inputs + 1) * shape.width * R
        stop = start + (shape.width + 1) * shape.width * shape.hidden * R
        inner = (shape.hidden, R, shape.width, shape.width + 1)
        self.inner_grads = self.gradients[start:stop].reshape(inner)

    def _buffers(self, shape: Shape, R: int, B: int) -> None:
        L, n = shape.hidden, shape.width
        first, last = np.ones((R, B, shape.inputs + 1)), np.ones((R, B, n + 1))
        inner = np.ones((L + 1, R, B, n + 1))
        inner[L] = last
        self.inner_inputs = inner[:L]
        self.inputs = [first, *inner]
        """X of each layer with the 1 at its end, (R, B, N + 1)"""
        self.values = [x[:, :, :-1] for x in self.inputs]
        hidden = np.empty((L + 1, R, B, n))
        self.hidden_pre, self.hidden_out = hidden, np.empty_like(hidden)
        self.hidden_slope, self.hidden_delta = np.empty_like(hidden), np.empty_like(hidden)
        self.out = np.empty((R, B, shape.outputs))
        self.out_pre, self.out_slope, self.out_delta = (np.empty_like(self.out) for _ in range(3))
        self.pre = [*self.hidden_pre, self.out_pre]
        self.outputs = [*self.hidden_out, self.out]
        self.deltas = [*self.hidden_delta, self.out_delta]
        self.back = [np.empty((R, B, n)) for _ in range(L + 2)]
        """dLoss/dX of each layer but the first"""
        self.turned = [a.swapaxes(1, 2) for a in self.matrices]
        self.sources = [shape.source(k) for k in range(L + 2)]
        self.sinks = {s: k for k, s in enumerate(self.sources) if s is not None}
        self.normed: list[tuple[Floats, Floats]] = []

    # -- one pass -----------------------------------------------------------------------------------

    def forward(self, x: Floats) -> Floats:
        """Outputs (R, B, M) for inputs (B, N) or (R, B, N)."""
        self.values[0][...] = x
        matmul, phi = np.matmul, self.forward_phi
        self.normed = []
        for k in range(self.shape.hidden + 1):
            pre, y = self.pre[k], self.outputs[k]
            matmul(self.inputs[k], self.turned[k], out=pre)
            if self.shape.norm:
                self._normalise(k)
            phi(pre, y)
            source = self.sources[k]
            if source is None:
                self.values[k + 1][...] = y
            else:
                np.add(y, self.values[source], out=self.values[k + 1])
        matmul(self.inputs[-1], self.turned[-1], out=self.out_pre)
        self.forward_out(self.out_pre, self.out)
        return self.out

    def _normalise(self, k: int) -> None:
        """Batch norm over B of W x, the bias added after it; eps 1e-5."""
        pre = self.pre[k]
        pre -= self.biases[k][:, None, :]
        pre -= pre.mean(axis=1, keepdims=True)
        scale = 1 / np.sqrt(np.square(pre).mean(axis=1, keepdims=True) + 1e-5)
        pre *= scale
        self.normed.append((pre.copy(), scale))
        pre += self.biases[k][:, None, :]

    def backward(self, target: Floats) -> Floats:
        """Losses (R,), sum over B and M of (y - t)^2 / 2, and their gradients in `gradients`; after `forward`."""
        error = self.out - target
        return self.backward_from(error, 0.5 * np.square(error).sum(axis=(1, 2)))

    def backward_from(self, grad_out: Floats, losses: Floats) -> Floats:
        """As `backward`, from any dLoss/d(output) of shape (R, B, M)."""
        matmul, multiply = np.matmul, np.multiply
        top = self.shape.hidden + 1
        self.slope_out(self.out_pre, self.out, self.out_slope)
        self.slope_phi(self.hidden_pre, self.hidden_out, self.hidden_slope)
        multiply(grad_out, self.out_slope, out=self.out_delta)
        matmul(self.out_delta, self.weights[top], out=self.back[top])
        for k in range(top - 1, -1, -1):
            delta = self.deltas[k]
            multiply(self.back[k + 1], self.hidden_slope[k], out=delta)
            if self.shape.norm:
                self._normalise_back(k)
            if k:
                matmul(delta, self.weights[k], out=self.back[k])
                sink = self.sinks.get(k)
                if sink is not None:
                    np.add(self.back[k], self.back[sink + 1], out=self.back[k])
        self._outer(top)
        return losses

    def _normalise_back(self, k: int) -> None:
        """delta becomes dLoss/d(W x); the bias's gradient, dLoss/d(bias), is kept apart."""
        delta = self.deltas[k]
        unit, scale = self.normed[k]
        shift = delta.sum(axis=1)
        delta -= delta.mean(axis=1, keepdims=True) + unit * (delta * unit).mean(axis=1, keepdims=True)
        delta *= scale
        self.normed[k] = (shift, scale)

    def _outer(self, top: int) -> None:
        """dLoss/dW = delta^T x for all layers; the hidden ones in one call."""
        if self.batch == 1:
            np.multiply(self.hidden_delta[1:].swapaxes(2, 3), self.inner_inputs, out=self.inner_grads)
            np.multiply(self.deltas[0].swapaxes(1, 2), self.inputs[0], out=self.matrix_grads[0])
            np.multiply(self.out_delta.swapaxes(1, 2), self.inputs[top], out=self.matrix_grads[top])
        else:
            np.matmul(self.hidden_delta[1:].swapaxes(2, 3), self.inner_inputs, out=self.inner_grads)
            np.matmul(self.deltas[0].swapaxes(1, 2), self.inputs[0], out=self.matrix_grads[0])
            np.matmul(self.out_delta.swapaxes(1, 2), self.inputs[top], out=self.matrix_grads[top])
        if self.shape.norm:
            for k in range(top):
                self.bias_grads[k][...] = self.normed[k][0]

    # -- what is asked of them ----------------------------------------------------------------------

    def profile(self) -> Floats:
        """|delta_l| of each layer after `backward`, L2 norm per sample, root mean square over B: (L + 2, R)."""
        return np.array([np.sqrt(np.square(d).sum(axis=2).mean(axis=1)) for d in self.deltas])

    def weight_gradient_norms(self) -> Floats:
        """|dLoss/dW_l| of each layer: (L + 2, R)."""
        return np.array([np.sqrt(np.square(g).sum(axis=(1, 2))) for g in self.weight_grads])

    def gradient_norms(self) -> Floats:
        """The norm of the whole gradient of each replica, (R,)."""
        return np.asarray(np.sqrt(sum(np.square(g).sum(axis=(1, 2)) for g in self.matrix_grads)))


def _views(flat: Floats, shape: Shape, R: int) -> list[Floats]:
    """The matrices (R, M, N + 1) of each layer, one behind the other in `flat`."""
    views, at = [], 0
    for n, m in shape.sizes:
        size = R * m * (n + 1)
        views.append(flat[at : at + size].reshape(R, m, n + 1))
        at += size
    return views


# -- starts ------------------------------------------------------------------------------------------


def draw(nets: Replicas, init: str, seeds: Sequence[int]) -> None:
    """Fill the parameters, replica r from the generator of `seeds[r]`.

    `uniform01`: W and b from U(0, 1), the lesson's; `torch_default` and `xavier_uniform` as torch draws them; every
    other id is one of the shelf of inits, drawn Gaussian.
    """
    if len(seeds) != nets.replicas:
        raise UsageError(f"{nets.replicas} replicas need as many seeds, found {len(seeds)}.")
    for r, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        for k, (w, b) in enumerate(zip(nets.weights, nets.biases, strict=True)):
            w[r], b[r] = _draw(generator, init, w.shape[1:], nets.shape.activation, first=k == 0)


def _draw(
    generator: np.random.Generator, init: str, size: tuple[int, ...], activation: str, *, first: bool
) -> tuple[Floats, Floats]:
    m, n = size
    if init == "uniform01":
        return generator.random((m, n)), generator.random(m)
    if init == "torch_default":
        bound = n**-0.5
        return generator.uniform(-bound, bound, (m, n)), generator.uniform(-bound, bound, m)
    if init == "xavier_uniform":
        bound = math.sqrt(6 / (n + m))
        return generator.uniform(-bound, bound, (m, n)), np.zeros(m)
    spread = shelf("gradwell.theory.inits")[init](n, m, activation=activation)
    weight = generator.normal(spread.mean_w, math.sqrt(spread.sigma_w2 / n), (m, n))
    if spread.centred and not first:
        # b_i = -phi(0) sum_j W_ij
        return weight, -nonlinearity(activation).at_zero * weight.sum(axis=1)
    return weight, generator.normal(0.0, math.sqrt(spread.sigma_b2), m)


# -- optimizers on the flat parameters -----------------------------------------------------------------

Update = Callable[[Floats, Floats], None]
"""Changes the first array (parameters) by the second (gradients), in place."""


def adam(size: int, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-7) -> Update:
    """Adam as the lesson writes it: eps outside the bias correction.

    lr_t = lr sqrt(1 - b2^t) / (1 - b1^t); p -= lr_t m / (sqrt(v) + eps). torch adds eps to the corrected root.
    """
    m, v, work = np.zeros(size), np.zeros(size), np.empty(size)
    b1, b2 = betas
    powers = [1.0, 1.0]
    multiply, add = np.multiply, np.add

    def update(p: Floats, g: Floats) -> None:
        powers[0] *= b1
        powers[1] *= b2
        rate = lr * math.sqrt(1 - powers[1]) / (1 - powers[0])
        # m = b1 m + (1 - b1) g
        multiply(m, b1, out=m)
        multiply(g, 1 - b1, out=work)
        add(m, work, out=m)
        # v = b2 v + (1 - b2) g^2
        multiply(v, b2, out=v)
        multiply(g, g, out=work)
        multiply(work, 1 - b2, out=work)
        add(v, work, out=v)
        np.sqrt(v, out=work)
        add(work, eps, out=work)
        np.divide(m, work, out=work)
        multiply(work, rate, out=work)
        np.subtract(p, work, out=p)

    return update


def sgd(size: int, *, lr: float = 0.1, momentum: float = 0.0) -> Update:
    """v = momentum v + g; p -= lr v, as torch."""
    velocity = np.zeros(size)

    def update(p: Floats, g: Floats) -> None:
        np.multiply(velocity, momentum, out=velocity)
        np.add(velocity, g, out=velocity)
        p -= lr * velocity

    return update


def rmsprop(size: int, *, lr: float = 1e-3, alpha: float = 0.99, eps: float = 1e-8) -> Update:
    """v = alpha v + (1 - alpha) g^2; p -= lr g / (sqrt(v) + eps)."""
    square = np.zeros(size)

    def update(p: Floats, g: Floats) -> None:
        np.multiply(square, alpha, out=square)
        np.add(square, (1 - alpha) * g * g, out=square)
        p -= lr * g / (np.sqrt(square) + eps)

    return update


def adagrad(size: int, *, lr: float = 1e-2, eps: float = 1e-10) -> Update:
    """s += g^2; p -= lr g / (sqrt(s) + eps)."""
    total = np.zeros(size)

    def update(p: Floats, g: Floats) -> None:
        np.add(total, g * g, out=total)
        p -= lr * g / (np.sqrt(total) + eps)

    return update


def sign(size: int, *, lr: float = 1e-3) -> Update:  # noqa: ARG001
    """p -= lr sign(g): every parameter takes a step of one size, however small its gradient."""

    def update(p: Floats, g: Floats) -> None:
        p -= lr * np.sign(g)

    return update


OPTIMIZERS: dict[str, Callable[..., Update]] = {
    "adam": adam,
    "sgd": sgd,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "sign": sign,
}


def clip_by_norm(nets: Replicas, max_norm: float) -> None:
    """Scale the gradient of each replica to at most `max_norm`; coef = max_norm / (total + 1e-6), as torch."""
    coef = np.minimum(max_norm / (nets.gradient_norms() + 1e-6), 1.0)
    for grad in nets.matrix_grads:
        np.multiply(grad, coef[:, None, None], out=grad)


# -- XOR -----------------------------------------------------------------------------------------------

XOR_INPUTS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
XOR_TARGETS = np.array([[0.0], [1.0], [1.0], [0.0]])
SOLVED = 1e-7
"""The lesson stops at this epoch loss."""
LEARNT = 1e-2
STUCK = 0.45
"""An epoch loss above this is not learnt: half for each output of 1/2 is 0.5 in sum."""


class XorRun(msgspec.Struct, frozen=True):
    """What R nets did on XOR: epochs (R,) to a loss of 1e-2 and of 1e-7 (inf: never), last losses, and the course."""

    learnt: Floats
    solved: Floats
    losses: Floats
    """epoch loss (sum over the four points) at the end, or when solved"""
    epochs: int
    course: list[tuple[int, list[float]]]
    """(epoch, losses of all replicas), every 1000 epochs"""
    truth: Floats
    """(R, 4): outputs at the end for 00, 01, 10, 11"""

    @property
    def share_solved(self) -> float:
        """Share of the replicas that came to 1e-7."""
        return float(np.isfinite(self.solved).mean())

    @property
    def median_epochs(self) -> float:
        """Median epochs to 1e-7 of those that came there; nan if none did."""
        found = self.solved[np.isfinite(self.solved)]
        return float(np.median(found)) if found.size else math.nan

    @property
    def stuck(self) -> int:
        """How many ended above 0.45: the output is 1/2 for every input."""
        return int(np.sum(self.losses > STUCK))


def train_xor(
    nets: Replicas,
    update: Update,
    *,
    epochs: int,
    full_batch: bool = False,
    clip_norm: float | None = None,
    tick: Callable[[int, Floats], None] | None = None,
    report: int = 1000,
) -> XorRun:
    """Train on XOR: four updates an epoch in the order 00, 01, 10, 11 (one, with `full_batch`), until all are solved.

    The loss of a point is (y - t)^2 / 2, that of an epoch the sum over the four. A replica that is solved keeps
    training; only the first epoch counts. `tick(epoch, losses)` is called every `report` epochs.
    """
    R = nets.replicas
    learnt, solved = np.full(R, np.inf), np.full(R, np.inf)
    losses, kept = np.zeros(R), np.zeros(R)
    course: list[tuple[int, list[float]]] = []
    epoch = 0
    for epoch, losses in enumerate(_epochs(nets, update, full_batch, clip_norm), start=1):
        if losses.min() <= LEARNT:
            learnt[(losses <= LEARNT) & ~np.isfinite(learnt)] = epoch
            new = (losses <= SOLVED) & ~np.isfinite(solved)
            solved[new] = epoch
            kept[new] = losses[new]
        if epoch == 1 or epoch % report == 0:
            course.append((epoch, [float(v) for v in losses]))
            if tick is not None:
                tick(epoch, losses)
        if epoch >= epochs or np.all(np.isfinite(solved)):
            break
    if course and course[-1][0] != epoch:
        course.append((epoch, [float(v) for v in losses]))
    final = np.where(np.isfinite(solved), kept, losses)
    return XorRun(learnt, solved, final, epoch, course, outputs(nets, XOR_INPUTS)[:, :, 0])


def _epochs(nets: Replicas, update: Update, full_batch: bool, clip_norm: float | None) -> Iterator[Floats]:
    single = [(XOR_INPUTS[i : i + 1], XOR_TARGETS[i]) for i in range(4)]
    points = [(XOR_INPUTS, XOR_TARGETS)] if full_batch else single
    parameters, gradients = nets.parameters, nets.gradients
    while True:
        total = np.zeros(nets.replicas)
        for x, t in points:
            nets.forward(x)
            total += nets.backward(t)
            if clip_norm is not None:
                clip_by_norm(nets, clip_norm)
            update(parameters, gradients)
        yield total


def outputs(nets: Replicas, x: Floats) -> Floats:
    """Outputs (R, B, M) for a batch of another size; `nets` is not changed."""
    other = Replicas(nets.shape, nets.replicas, batch=len(x))
    other.parameters[:] = nets.parameters
    return other.forward(x)
