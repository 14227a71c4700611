"""A penalty on steps that shrink or stretch the gradient through time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

TREATS = (Treats("vanishing_through_time", "", 3),)


def temporal_regularizer(case: Case, *, weight: float = 1.0) -> Prescription | None:
    """Adds to the loss how far each time step is from keeping the gradient's norm.

    `weight`: factor of the penalty, 0.5 to 4, lowered during training.

    What it does:
        Omega = sum over t of (|dE/dh_(t+1) dh_(t+1)/dh_t| / |dE/dh_(t+1)| - 1)^2. Only the Jacobian of the step is
        trained, its incoming gradient is taken as it is.

    In your code:
        import torch
        from torch import nn

        rnn = next(m for m in model.modules() if isinstance(m, nn.RNN))  # tanh, one direction; its last layer
        kept = {}
        rnn.register_forward_hook(lambda m, args, out: kept.update(states=out[0], last=out[1]))
        weight = f"weight_hh_l{rnn.num_layers - 1}"

        # in the training step
        ends = kept["states"], kept["last"]
        direct, at_end = torch.autograd.grad(loss, ends, retain_graph=True, allow_unused=True)
        states = (kept["states"].transpose(0, 1) if rnn.batch_first else kept["states"]).detach()  # (T, B, N)
        grads = torch.zeros_like(states)
        if direct is not None:
            grads = grads + (direct.transpose(0, 1) if rnn.batch_first else direct)
        if at_end is not None:
            grads[-1] += at_end[-1]
        omega = 0.0
        for t in range(len(states) - 1, 0, -1):
            back = (grads[t] * (1 - states[t] ** 2)) @ getattr(rnn, weight)
            omega = omega + ((back.norm(dim=-1) / grads[t].norm(dim=-1).clamp_min(1e-12) - 1) ** 2).mean()
            grads[t - 1] += back.detach()
        (loss + 1.0 * omega).backward()
        optimizer.step()

    What it costs:
        One more backward pass and a loop over time.

    When it fails:
        It needs the error to arrive: a gradient of exact zeros cannot be rescaled. Use it with clipping, since it
        pushes towards the edge of exploding. LSTM and GRU have no such step: their gates do this work.

    Source:
        Pascanu, Mikolov and Bengio 2013, equation 9.
    """
    if case.recurrent not in {"RNN", "RNNCell", ""}:
        return None
    page = _CELL if case.recurrent == "RNNCell" else lines(temporal_regularizer)
    text = page.replace("loss + 1.0 *", f"loss + {weight:g} *")
    places = case.lines("weight")
    expected = "time steps learn to keep the gradient's norm"
    return advise(temporal_regularizer, expected=expected, code=text, at=places, weight=weight)


_CELL = """import torch
from torch import nn

cell = next(m for m in model.modules() if isinstance(m, nn.RNNCell))  # tanh
states = []
cell.register_forward_hook(lambda m, args, out: states.append(out))

# in the training step
grads = torch.autograd.grad(loss, states, retain_graph=True)
omega = 0.0
for grad, state in zip(grads[1:], states[1:]):
    back = (grad * (1 - state.detach() ** 2)) @ cell.weight_hh
    omega = omega + ((back.norm(dim=-1) / grad.norm(dim=-1).clamp_min(1e-12) - 1) ** 2).mean()
(loss + 1.0 * omega).backward()
optimizer.step()
states.clear()"""

GRID = ({"weight": 0.5}, {"weight": 4.0})


@acting
def apply(setup: TrainSetup, *, weight: float = 1.0) -> None:
    """Add the penalty to the loss; refused without a plain RNN that runs in one direction."""
    from gradwell.surgery.recurrent import regularize

    regularize(setup, weight)
