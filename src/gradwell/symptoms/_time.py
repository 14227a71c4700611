"""What the two symptoms through time share: how the training goes, and words. No entry of the shelf."""

from __future__ import annotations

import math
from statistics import median_low
from typing import Literal

from gradwell.errors import NotMeasurable
from gradwell.measure.through_time import Unrolled, unrolled
from gradwell.records.run import Run
from gradwell.symptoms._words import needs_steps

ENOUGH = 300
"""Steps of training after which a loss that has not fallen stands still."""

Progress = Literal["learns", "stands"]


def needs_time(run: Run) -> None:
    """Raise when no step went through a recurrent layer."""
    needs_steps(run)
    if not any(True for step in run.steps for _ in unrolled(run, step)):
        raise NotMeasurable(
            "the loss goes through no recurrent layer: no RNN, LSTM or GRU, and no cell that is called 8 times or more."
        )


def progress(run: Run, *, learning: float) -> Progress | None:
    """Whether the loss falls to `learning` times what it was at the start; None where that cannot be told yet.

    The first drop of a loss with real-valued targets only finds their mean: there the first tenth of the run is left
    out, and a loss that is flat behind it can mean success as well, so that nothing is said of it.
    """
    known = [(s.step, s.loss) for s in run.steps if s.loss is not None and math.isfinite(s.loss)]
    if len(known) < 6 or known[-1][0] - known[0][0] < ENOUGH:
        return None
    first, end = median_low([loss for _, loss in known[:3]]), median_low([loss for _, loss in known[-3:]])
    settled = known[0][0] + (known[-1][0] - known[0][0]) / 10
    later = median_low([loss for number, loss in known if number >= settled][:3])
    if _classes(run, first):
        return "learns" if end <= learning * first else "stands" if end > 0.9 * first else None
    return "learns" if end <= learning * later else None


def _classes(run: Run, first: float) -> bool:
    """True where the first loss is that of guessing between classes: ln of the number of outputs, ln 2 for one."""
    output = next((step.output for step in run.steps if step.output is not None), None)
    units = run.sites[output].fan_out if output is not None else None
    return units is not None and abs(first / math.log(max(units, 2)) - 1) < 0.3


def layer_words(layer: Unrolled) -> str:
    """`cell (train.py:12), an RNN over 50 steps`."""
    name = layer.name.replace(":reverse", ", in reverse,")
    source = f" ({layer.site.source})" if layer.site.source else ""
    kind = layer.site.kind
    article = "an" if kind.startswith(("RNN", "LSTM")) else "a"
    return f"{name}{source}, {article} {kind} over {layer.steps} steps"
