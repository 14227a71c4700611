"""Recurrent layers: gated cells in place of plain ones, gates that start open, orthogonal weights, cut histories.

torch's order of gates: LSTM input, forget, cell, output; GRU reset, update, new. The second one is the gate that keeps
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradwell.errors import Refused
from gradwell.surgery.replace import become, like
from gradwell.surgery.setup import TrainSetup
from gradwell.surgery.terms import TimeGain

GATED = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class LSTM(nn.LSTM):
    """An LSTM that is called like a plain RNN: what it hands out as its state is h alone. It goes by torch's name."""

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:  # type: ignore[override]
        if hx is not None and bool(hx.any()):
            raise Refused("A state is handed to this RNN, and an LSTM in its place would lose its cell; take the GRU.")
        out, (last, _) = super().forward(input)
        return out, last


def gate(setup: TrainSetup, to: str, forget_bias: float, chrono: int) -> None:
    """Plain RNNs become LSTMs or GRUs; then every gate that keeps starts open."""
    plain = [m for m in setup.model.modules() if isinstance(m, (nn.RNN, nn.RNNCell))]
    for module in plain:
        _require_torchs(module)
        become(module, like(_gated(module, to), setup.model, near=module))
    gated = [m for m in setup.model.modules() if isinstance(m, GATED)]
    if not gated:
        raise Refused("The model has no recurrent layer of torch's; there is nothing to gate.")
    if all(not getattr(m, "bias", True) for m in gated):
        raise Refused("The recurrent layers have no biases, so no gate can start open.")
    with torch.no_grad():
        for layer in gated:
            _open(layer, forget_bias, chrono)


def _gated(module: nn.Module, to: str) -> nn.Module:
    if isinstance(module, nn.RNNCell):
        if to != "gru":
            raise Refused("A cell is called step by step and an LSTM's has two states; take the GRU.")
        return nn.GRUCell(module.input_size, module.hidden_size, bias=module.bias)
    assert isinstance(module, nn.RNN)
    kind: Callable[..., nn.Module] = nn.GRU if to == "gru" else LSTM
    return kind(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=module.bias,
        batch_first=module.batch_first,
        dropout=module.dropout,
        bidirectional=module.bidirectional,
    )


def _open(module: nn.Module, forget_bias: float, chrono: int) -> None:
    """The gate that keeps starts at `forget_bias`, or at log U(1, T - 1) with the input gate at its negative."""
    size: int = module.hidden_size  # type: ignore[assignment]
    for name, bias in module.named_parameters(recurse=False):
        if name.startswith("bias_ih"):
            keep = bias[size : 2 * size]
            keep.copy_(torch.empty_like(keep).uniform_(1, chrono - 1).log() if chrono else torch.tensor(forget_bias))
            if chrono and isinstance(module, (nn.LSTM, nn.LSTMCell)):
                bias[:size] = -keep
        elif name.startswith("bias_hh"):
            bias[size : 2 * size] = 0
            if chrono and isinstance(module, (nn.LSTM, nn.LSTMCell)):
                bias[:size] = 0


def orthogonal(setup: TrainSetup, gain: float) -> None:
    """Hidden-to-hidden weights as orthogonal matrices, gate by gate."""
    with torch.no_grad():
        for size, weight in _hidden_weights(setup):
            for block in torch.split(weight, size):
                nn.init.orthogonal_(block, gain=gain)


def identity(setup: TrainSetup) -> None:
    """IRNN (Le et al., 2015): W_hh = 1, b = 0, W_ih ~ N(0, 0.001^2), ReLU; for plain RNNs only."""
    found = [m for m in setup.model.modules() if isinstance(m, RECURRENT)]
    if any(not isinstance(m, (nn.RNN, nn.RNNCell)) for m in found) or not found:
        raise Refused("The identity start is for plain RNNs; gated ones keep their state by their gates.")
    with torch.no_grad():
        for module in found:
            module.nonlinearity = "relu"
            if isinstance(module, nn.RNN):
                module.mode = "RNN_RELU"
            for name, p in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    nn.init.eye_(p)
                elif name.startswith("weight_ih"):
                    nn.init.normal_(p, std=0.001)
                else:
                    nn.init.zeros_(p)


def _hidden_weights(setup: TrainSetup) -> Iterator[tuple[int, Tensor]]:
    found = False
    for module in setup.model.modules():
        if isinstance(module, RECURRENT):
            for name, weight in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    found = True
                    yield int(module.hidden_size), weight
    if not found:
        raise Refused("The model has no recurrent layer of torch's; there is nothing to make orthogonal.")


class Chunked:
    """Stands as `forward` of one recurrent layer: the state goes on from chunk to chunk, its history does not."""

    def __init__(self, module: nn.RNNBase, steps: int) -> None:
        self.module, self.steps = module, steps

    def __call__(self, input: Any, hx: Any = None) -> tuple[Tensor, Any]:
        x, state = input, hx
        if not isinstance(x, Tensor):
            raise Refused("A packed sequence cannot be cut into chunks; pad it.")
        module = self.module
        axis = 1 if module.batch_first and x.dim() == 3 else 0
        base: Any = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind))
        outs: list[Tensor] = []
        for part in torch.split(x, self.steps, dim=axis):
            if outs:
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            out, state = base.forward(module, part, state)
            outs.append(out)
        return torch.cat(outs, axis), state


def truncate(setup: TrainSetup, steps: int) -> None:
    """The gradient goes back within a chunk of `steps` steps only."""
    found = [m for m in setup.model.modules() if isinstance(m, nn.RNNBase)]
    if not found:
        raise Refused("The model has no fused recurrent layer of torch's; detach the state in your own loop.")
    for module in found:
        _require_torchs(module)
        if module.bidirectional:
            raise Refused("A bidirectional layer reads its sequence whole; it cannot be cut into chunks.")
        if isinstance(module, LSTM):
            raise Refused("An LSTM in the place of an RNN hands out half of its state; take the GRU for chunks.")
        module.__dict__["forward"] = Chunked(module, steps)


def regularize(setup: TrainSetup, weight: float) -> None:
    """The penalty of Pascanu et al. on steps that shrink or stretch the gradient; for plain RNNs in one direction."""
    plain = [m for m in setup.model.modules() if isinstance(m, (nn.RNN, nn.RNNCell))]
    if not plain or any(getattr(m, "bidirectional", False) for m in plain):
        raise Refused("The penalty is for plain RNNs in one direction, and the model has none; gates do its work.")
    for module in plain:
        _require_torchs(module)
    setup.loss_terms.append(TimeGain(weight))


def _require_torchs(module: nn.Module) -> None:
    """Raise `Refused` for a class built on one of torch's, whose own forward the change would lose or misread."""
    base: Any = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch."))
    if type(module).forward not in {base.forward, LSTM.forward}:
        raise Refused(
            f"{type(module).__name__} has a forward of its own on top of nn.{base.__name__}; "
            f"make the change in that class, or use nn.{base.__name__} itself."
        )
