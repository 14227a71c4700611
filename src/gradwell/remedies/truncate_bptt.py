"""A gradient that goes back a fixed number of steps."""

from __future__ import annotations

from gradwell.records.verdict import Prescription
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

TREATS = (
    Treats("exploding_through_time", "long_unroll", 3),
    Treats("exploding_through_time", "", 5),
)


def truncate_bptt(case: Case, *, steps: int = 50) -> Prescription | None:
    """Cuts the sequence into chunks and lets the gradient go back within a chunk only.

    `steps`: length of a chunk.

    What it does:
        The state is carried over, its history is not: a gradient can grow over `steps` steps at most.

    In your code:
        state = None
        for x, y in zip(inputs.split(50, dim=1), targets.split(50, dim=1)):  # (B, T, N)
            out, state = rnn(x, state)
            loss = loss_fn(out, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = state.detach()  # LSTM: tuple(s.detach() for s in state)

    What it costs:
        Less memory and time, in fact.

    When it fails:
        Whatever depends on more than `steps` steps back is not learned, and gets no gradient at all: not for vanishing.

    Source:
        Williams and Peng 1990; Sutskever 2013.
    """
    if case.symptom.startswith("vanishing"):
        return None
    text = lines(truncate_bptt).replace("split(50", f"split({steps}")
    return advise(truncate_bptt, expected=f"the gradient grows over {steps} steps at most", code=text, steps=steps)
