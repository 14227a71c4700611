"""Lag profiles equal a step-by-step autograd loop over hand-written cells."""

import math

import pytest
import torch
from torch import Tensor, nn

from gradwell.probe.recurrent import lag_profile

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
