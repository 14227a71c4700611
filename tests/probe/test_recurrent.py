"""Lag profiles equal a step-by-step autograd loop over hand-written cells; what the loss asks equals its twins."""

import math

import pytest
import torch
from torch import Tensor, nn

from gradwell.journeys.check import measure
from gradwell.probe.recurrent import asked, lag_profile, links

T, B, N, H = 12, 3, 4, 5


def _cell(kind: str, module: nn.RNNBase, suffix: str, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    w_ih, w_hh = getattr(module, f"weight_ih_{suffix}"), getattr(module, f"weight_hh_{suffix}")
    b_ih, b_hh = getattr(module, f"bias_ih_{suffix}"), getattr(module, f"bias_hh_{suffix}")
    h, c = state
    gates_x, gates_h = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if kind == "RNN":
        return torch.tanh(gates_x + gates_h), c
    if kind == "LSTM":
        i, f, g, o = (gates_x + gates_h).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (r_x, z_x, n_x), (r_h, z_h, n_h) = gates_x.chunk(3, -1), gates_h.chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return (1 - z) * torch.tanh(n_x + r * n_h) + z * h, c


def _run(kind: str, module: nn.RNNBase, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of one sample, a loop over steps, layers and directions."""
    sequence = inputs
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(2 if module.bidirectional else 1):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            state = (torch.zeros(H, dtype=inputs[0].dtype),) * 2
            walked = []
            for x in reversed(sequence) if direction else sequence:
                state = _cell(kind, module, suffix, x, state)
                walked.append(state[0])
            outputs.append(walked[::-1] if direction else walked)
        sequence = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return sequence


def _twin(kind: str, module: nn.RNNBase, samples: list[Tensor], direction: str) -> list[float]:
    torch.manual_seed(0)
    cotangents = [torch.randn(len(samples), H, dtype=samples[0].dtype) for _ in range(2 if module.bidirectional else 1)]
    cotangent = cotangents[0 if direction == "forward" else -1]
    squares: list[list[float]] = [[] for _ in range(max(len(s) for s in samples))]
    for n, sample in enumerate(samples):
        inputs = [x.clone().requires_grad_() for x in sample]
        outputs = _run(kind, module, inputs)
        last = outputs[-1][:H] if direction == "forward" else outputs[0][-H:]
        grads = torch.autograd.grad(last, inputs, cotangent[n])
        for lag, grad in enumerate(reversed(grads) if direction == "forward" else grads):
            squares[lag].append(float(grad.double().square().sum()))
    means = [math.sqrt(sum(s) / len(s)) for s in squares]
    return [math.log10(m / means[0]) for m in means]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", ["time first", "batch first", "packed", "unbatched"])
def test_profile_equals_the_loop(kind: str, layers: int, bidirectional: bool, given: str) -> None:
    torch.manual_seed(1)
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": given == "batch first"}
    module = getattr(nn, kind)(N, H, **options).double()
    lengths = [7, T, 9] if given == "packed" else [T] if given == "unbatched" else [T] * B
    samples = [torch.randn(length, N, dtype=torch.float64) for length in lengths]
    x = {
        "time first": lambda: torch.stack(samples, 1),
        "batch first": lambda: torch.stack(samples),
        "packed": lambda: nn.utils.rnn.pack_sequence(samples, enforce_sorted=False),
        "unbatched": lambda: samples[0],
    }[given]()
    found = lag_profile(module, x)
    assert sorted(found) == (["forward", "reverse"] if bidirectional else ["forward"])
    for direction, profile in found.items():
        assert profile == pytest.approx(_twin(kind, module, samples, direction), abs=1e-5)


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(N, H, 2, dropout=0.5)
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    x, before = torch.randn(T, B, N), torch.get_rng_state()
    first = lag_profile(module, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert (seen, module.dropout) == ([], 0.5)
    assert all(p.grad is None for p in module.parameters())
    assert lag_profile(module, x) == first


def test_default_cells_lose_what_the_design_says() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 32, 16)
    for kind, loss in (("LSTM", 0.20), ("RNN", 0.25), ("GRU", 0.20)):
        profile = lag_profile(getattr(nn, kind)(16, 64), x)["forward"]
        assert (profile[-1] - profile[5]) / 54 == pytest.approx(-loss, abs=0.06), kind


def _read(model: nn.Module, kind: str, x: Tensor, lengths: list[int], reading: str) -> Tensor:
    """The head over what a reading looks at; `output` keeps its gradient for the twin."""
    given = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False) if reading == "packed" else x
    output, state = model.rnn(given)
    state = state[0] if kind == "LSTM" else state
    if reading == "state":
        return model.head(state[-1]).square().sum()
    if reading == "packed":
        output = nn.utils.rnn.pad_packed_sequence(output)[0]
    if reading == "last step":
        output = output[-1]
    return model.head(output).square().sum()


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reading", ["last step", "every step", "state", "packed"])
def test_what_the_loss_hears_is_its_gradient_at_each_output(kind: str, bidirectional: bool, reading: str) -> None:
    torch.manual_seed(2)
    lengths = [T, 9, 7] if reading == "packed" else [T] * B
    rnn = getattr(nn, kind)(N, H, bidirectional=bidirectional)
    width = H * (2 if bidirectional and reading != "state" else 1)
    model = nn.ModuleDict({"rnn": rnn, "head": nn.Linear(width, 2)})
    x = torch.randn(T, B, N)

    # The twin: a zero is added to every output that the loss can see; its gradient is the outputs' gradient.
    zero = torch.zeros(T, B, H * (2 if bidirectional else 1), requires_grad=True)

    def twin_forward(module: nn.Module, args: tuple, result: tuple) -> tuple:
        output, state = result
        packed = isinstance(output, nn.utils.rnn.PackedSequence)
        padded = nn.utils.rnn.pad_packed_sequence(output)[0] if packed else output
        moved = padded + zero
        last = zero[-1, :, :H] if not bidirectional else zero[0, :, H:]
        hidden = state[0] if kind == "LSTM" else state
        hidden = torch.cat([hidden[:-1], (hidden[-1] + last)[None]])
        again = nn.utils.rnn.pack_padded_sequence(moved, lengths, enforce_sorted=False) if packed else moved
        return again, ((hidden, state[1]) if kind == "LSTM" else hidden)

    handle = rnn.register_forward_hook(twin_forward)
    (twin,) = torch.autograd.grad(_read(model, kind, x, lengths, reading), zero)
    handle.remove()

    run = measure(model, None, lambda m, _: _read(m, kind, x, lengths, reading))
    names = {"rnn": slice(0, H), "rnn:reverse": slice(H, None)} if bidirectional else {"rnn": slice(0, H)}
    for name, part in names.items():
        squares = twin[..., part].double().square().sum(-1)
        sizes = []
        for back in range(T):
            seen = [
                squares[back if ":" in name else length - 1 - back, n]
                for n, length in enumerate(lengths) if back < length
            ]  # fmt: skip
            sizes.append(float(sum(seen) / len(seen)) ** 0.5)
        if max(sizes) == 0:
            assert name not in run.steps[0].heard
            continue
        expected = [math.log10(s / max(sizes)) if s > 0 else -math.inf for s in sizes]
        assert run.steps[0].heard[name] == pytest.approx(expected, abs=1e-4)


def test_links_equal_the_sums_over_pairs_of_samples() -> None:
    """The twin in plain loops: centred kernels over pairs, one term for each pair, listener and lag."""
    torch.manual_seed(3)
    steps, batch = 6, 20
    inputs, valid = torch.randn(steps, batch, 3).double(), torch.ones(steps, batch, dtype=torch.bool)
    grads = torch.zeros(steps, batch, 2).double()
    grads[0] = inputs[4, :, :2] + 0.1 * torch.randn(batch, 2)
    grads[1] = inputs[5, :, :2] + 0.1 * torch.randn(batch, 2)

    def kernel(values: Tensor) -> list[list[float]]:
        rows = (values - values.mean(0)).tolist()
        full = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in rows] for u in rows]
        off = sum(full[i][j] for i in range(batch) for j in range(batch) if i != j) / (batch * (batch - 1))
        return [[full[i][j] - off if i != j else 0.0 for j in range(batch)] for i in range(batch)]

    found = links(inputs, grads, valid)
    for lag in range(steps):
        listeners = [s for s in (0, 1) if s + lag < steps]
        terms = [
            (g, x)
            for s in listeners
            for gs, xs in zip(kernel(grads[s]), kernel(inputs[s + lag]), strict=True)
            for g, x in zip(gs, xs, strict=True)
        ]
        together = sum(g * x for g, x in terms)
        size = math.sqrt(sum(g * g for g, _ in terms) * sum(x * x for _, x in terms))
        sure = together > 6 * math.sqrt(2 * sum((g * x) ** 2 for g, x in terms))
        assert found[lag] == pytest.approx(together / size if sure else 0.0, abs=1e-9)
    assert [lag for lag in range(steps) if found[lag] > 0.5] == [4]


@pytest.mark.parametrize(("batch", "columns"), [(16, 4), (32, 1), (64, 8)])
def test_chance_makes_no_links(batch: int, columns: int) -> None:
    """200 sequences of 25 steps without any connection: at most one lag in a thousand shows one."""
    torch.manual_seed(4)
    valid = torch.ones(25, batch, dtype=torch.bool)
    found = 0
    for _ in range(100):
        for draw in (torch.randn, lambda *size: torch.nn.functional.one_hot(torch.randint(5, size[:2]), 5).float()):
            grads = torch.zeros(25, batch, 6)
            grads[0] = torch.randn(batch, 6)
            found += sum(link > 0 for link in links(draw(25, batch, columns), grads, valid))
    assert found <= 5


def test_links_do_not_care_about_the_size_of_the_loss_nor_of_the_inputs() -> None:
    torch.manual_seed(5)
    inputs, valid = torch.randn(8, 40, 3), torch.ones(8, 40, dtype=torch.bool)
    grads = torch.zeros(8, 40, 3)
    grads[0] = inputs[5] + 0.3 * torch.randn(40, 3)
    plain = links(inputs, grads, valid)
    for factor in (1e-30, 1e-6, 1e6, 1e30):
        assert links(inputs, grads * factor, valid) == pytest.approx(plain, rel=1e-4)
        assert links(inputs * factor, grads, valid) == pytest.approx(plain, rel=1e-4)


def test_samples_that_have_ended_do_not_count() -> None:
    """What padding holds must not matter."""
    torch.manual_seed(6)
    rnn = nn.RNN(N, H)
    lengths = torch.randint(5, T + 1, (40,)).tolist()
    given = [torch.randn(length, N) for length in lengths]
    packed = nn.utils.rnn.pack_sequence(given, enforce_sorted=False)
    want = torch.stack([x[-4] for x in given])
    error = want @ torch.randn(N, H)
    (found,) = asked(rnn, packed, None, error[None]).values()
    assert [lag for lag, link in enumerate(found.links) if link > 0.3] == [3]
    assert found.heard == [0.0] + [-math.inf] * (max(lengths) - 1)
