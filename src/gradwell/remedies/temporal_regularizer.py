"""A penalty on steps that shrink or stretch the gradient through time."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

TREATS = (Treats("vanishing_through_time", "", 3),)


def temporal_regularizer(case: Case, *, weight: float = 1.0) -> Prescription | None:
    """Adds to the loss how far each time step is from keeping the gradient's norm.

    `weight`: factor of the penalty, 0.5 to 4, lowered during training.

    What it does:
        Omega = sum over t of (|dE/dh_(t+1) dh_(t+1)/dh_t| / |dE/dh_(t+1)| - 1)^2. Only the Jacobian of the step is
        trained, its incoming gradient is taken as it is.

    In your code:
        import torch

        # cell: nn.RNNCell with tanh; states: the list of h_t, each (B, N), kept in your loop
        grads = torch.autograd.grad(loss, states, retain_graph=True)
        omega = 0.0
        for grad, state in zip(grads[1:], states[1:]):
            back = (grad * (1 - state**2)) @ cell.weight_hh
            omega = omega + ((back.norm(dim=1) / grad.norm(dim=1).clamp_min(1e-12) - 1) ** 2).mean()
        loss = loss + 1.0 * omega

    What it costs:
        One more backward pass and a loop over time; no fused RNN.

    When it fails:
        It needs the error to arrive: a gradient of exact zeros cannot be rescaled. Use it with clipping, since it
        pushes towards the edge of exploding.

    Source:
        Pascanu, Mikolov and Bengio 2013, equation 9.
    """
    text = lines(temporal_regularizer).replace("+ 1.0 *", f"+ {weight:g} *")
    places = case.lines("weight")
    expected = "time steps learn to keep the gradient's norm"
    return advise(temporal_regularizer, expected=expected, code=text, at=places, weight=weight)
