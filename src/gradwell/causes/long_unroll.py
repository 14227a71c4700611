"""Many more time steps than the gradient can cross."""

from __future__ import annotations

from gradwell.measure.through_time import REACH, unrolled
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("vanishing_through_time", "exploding_through_time")


def long_unroll(run: Run, finding: Finding, step: Step) -> Attribution | None:
    """Many more time steps than the gradient can cross: what one step does to it is raised to their number.

    What it is:
        A recurrent layer applies the same weights at each step, so that its gains multiply: 0.6 a step is harmless over
        5 steps and 22 decades over 100; 1.1 a step is 4 decades over 100.

    How it is measured:
        The horizon is the number of steps after which the gradient has changed by 4 decades; the layer runs over more
        steps than that.

    What changes it:
        Shorter sequences or chunks; fewer steps a second; a layer that reads every n-th step; gains of exactly 1 a
        step (orthogonal weights, open gates); a mean or attention over the outputs as a shorter way.

    Source:
        Pascanu, Mikolov and Bengio 2013.
    """
    names = {place.site for place in finding.where}
    for layer in unrolled(run, step):
        gains = layer.sent
        horizon = next((lag for lag, gain in enumerate(gains) if abs(gain) >= REACH), None)
        if layer.site.site in names and horizon is not None and horizon < layer.steps - 1:
            verb = "lost" if gains[horizon] < 0 else "gained"
            text = (
                f"{layer.name} runs over {layer.steps} steps and {REACH:g} decades are {verb} within {horizon} of them"
            )
            return Attribution(0, "long_unroll", "condition", None, None, text)
    return None
