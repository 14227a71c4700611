"""A gradient that goes back a fixed number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradwell.records.verdict import Prescription
from gradwell.remedies._act import acting
from gradwell.remedies._case import Case, Treats
from gradwell.remedies._code import advise, lines

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

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
        import torch
        from torch import nn


        def chunked(rnn, steps):
            plain, axis = rnn.forward, 1 if rnn.batch_first else 0

            def forward(input, hx=None):
                outs = []
                for part in input.split(steps, dim=axis):
                    if outs:  # the state goes on, its history does not
                        hx = tuple(s.detach() for s in hx) if isinstance(hx, tuple) else hx.detach()
                    out, hx = plain(part, hx)
                    outs.append(out)
                return torch.cat(outs, axis), hx

            rnn.forward = forward


        for m in model.modules():
            if isinstance(m, nn.RNNBase):
                chunked(m, 50)

    What it costs:
        Less memory and time, in fact.

    When it fails:
        Whatever depends on more than `steps` steps back is not learned, and gets no gradient at all: not for vanishing.
        A loss on the last step alone then trains the last chunk alone. In a loop over cells write
        `state = state.detach()` every so many steps yourself.

    Source:
        Williams and Peng 1990; Sutskever 2013.
    """
    if case.symptom.startswith("vanishing"):
        return None
    text = lines(truncate_bptt).replace("chunked(m, 50)", f"chunked(m, {steps})")
    return advise(truncate_bptt, expected=f"the gradient grows over {steps} steps at most", code=text, steps=steps)


GRID = ({"steps": 5}, {"steps": 50})


@acting
def apply(setup: TrainSetup, *, steps: int = 50) -> None:
    """Run the recurrent layers in chunks whose history is cut."""
    from gradwell.surgery.recurrent import truncate

    truncate(setup, steps)
