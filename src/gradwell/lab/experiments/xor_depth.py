"""XOR with more and more hidden layers."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _xor as xor
from gradwell.lab.replicas import Shape
from gradwell.report.figures import BLUE
from gradwell.report.lessons import GREEN, PALETTE, Line, lines, predicted

OPTIONS = ("depth", "seeds", "epochs")
REFERENCE = {0: 19, 1: 19, 2: 18, 3: 15, 4: 15, 5: 16, 6: 12, 8: 3, 10: 0}
MEDIAN = {0: 23475.0, 1: 13312.0, 2: 12752.5, 3: 14126.0, 4: 13094.0, 5: 16607.0, 6: 19534.5, 8: 84598.0}
"""20 seeds of another program (THEORY 2.1): solved, and median epochs."""


def xor_depth(ask: Ask) -> Outcome:
    """XOR is learnt with one to four hidden sigmoid layers and not at all with ten: the gradient is gone.

    What you see:
        The share of nets that solve XOR falls with depth; with ten hidden layers (12 weight layers, 217 parameters)
        all stand at a loss of 0.5 for 100,000 epochs: the output is 1/2 whatever the input. The gradient of the first
        layer is nine decades smaller than that of the last.

    Why:
        Each sigmoid multiplies the gradient by its slope, at most 1/4 and here 0.08, for positive weights drive the
        units up their curve; four inputs of mean weight 1/2 give a factor 2 back. What is left is 0.16 a layer. Adam
        rescales the steps, but the forward signal has gone the same way: the layers hardly tell 0 from 1.

    Formula:
        h = 4 E[w] sigma(h) + E[b] = 2 sigma(h) + 1/2 has h* = 2.32; gain a layer = 4 E[w] sigma'(h*) = 0.16, that is
        0.79 decades. Input 2 -> dense 4 -> N hidden layers of 4 -> dense 1, all sigmoid, W and b ~ U(0, 1); online
        updates in the order 00, 01, 10, 11; Adam 1e-3, betas .9 and .999, eps 1e-7 outside the bias correction; loss
        (y - t)^2 / 2, summed over the four points; stop at 1e-7.

    Source:
        s-hironobu, guide2dl, part 1 (XOR); reference counts: 20 seeds of our own C program, THEORY 2.1.
    """
    depths = [ask.depth] if ask.depth else ask.pick([*range(1, 11)], [1, 3, 10])
    seeds = ask.seeds or ask.pick(20, 10)
    found = []
    for depth in depths:
        trial = xor.Trial(
            name=f"{depth} hidden layers",
            shape=Shape(hidden=depth),
            reference=(REFERENCE[depth],) * 2 if depth in REFERENCE else None,
            median=MEDIAN.get(depth),
        )
        epochs = ask.epochs or ask.pick(100_000, 12_000 if depth < 6 else 3_000)
        found.append(xor.train(ask, trial, seeds=seeds, epochs=epochs))
    deepest = found[-1]
    text = [
        *xor.layer_lines(deepest.trial.shape),
        *xor.loss_lines(deepest.run, most=101 if ask.depth else 20),
        *xor.truth_lines(deepest.run),
    ]
    text.append(f"{deepest.run.stuck} of {seeds} stuck at 0.5 after {deepest.run.epochs:,} epochs")
    gain, slope = _predicted(), _slope(deepest)
    table = Table("share solved against depth", xor.COLUMNS, [xor.row(t) for t in found])
    gains = Table(
        "decades of gradient a layer at the start",
        ["depth", "predicted", "measured"],
        [[d, gain, _slope(t)] for d, t in zip(depths, found, strict=True)],
    )
    return Outcome(
        tables=[table, gains],
        figures={
            **({"share": _share(depths, found, quick=ask.quick)} if len(found) > 1 else {}),
            "loss": _losses(found),
            "profile": _profile(deepest, gain),
        },
        lines=text,
        deviations=xor.deviations(found, full=not ask.quick and ask.epochs is None),
        facts={
            "parameters": deepest.trial.shape.parameters,
            "stuck": deepest.run.stuck,
            "seeds": seeds,
            "loss": float(np.median(deepest.run.losses)),
            "gain": slope,
            "predicted_gain": gain,
            "solved_first": found[0].run.share_solved,
            "learnt_first": float(np.isfinite(found[0].run.learnt).mean()),
            "first_to_last": float(np.median(np.log10(deepest.weight_grads[-1] / deepest.weight_grads[0]))),
        },
    )


def _predicted() -> float:
    h = 2.0
    for _ in range(100):
        h = 2 * float(expit(h)) + 0.5
    # log10(4 E[w] sigma'(h*))
    return math.log10(2 * float(expit(h)) * float(expit(-h)))


def _slope(trained: xor.Trained) -> float:
    deltas = xor.decades(trained.deltas)
    inner = deltas[:-1]
    return float(np.median((inner[0] - inner[-1]) / max(len(inner) - 1, 1)))


def _share(depths: list[int], found: list[xor.Trained], *, quick: bool) -> dict[str, object]:
    """The quick form is too short for 1e-7: it shows who comes to 0.01."""
    known = [d for d in depths if d in REFERENCE]
    learnt = [100 * float(np.isfinite(t.run.learnt).mean()) for t in found]
    solved = [100 * t.run.share_solved for t in found]
    curves = [Line("learnt (loss <= 0.01)", depths, learnt, "dashed", GREEN, points=quick)]
    if not quick:
        curves.insert(0, Line("solved (loss <= 1e-7)", depths, solved, points=True))
        curves.append(predicted("reference, 20 other seeds", known, [5.0 * REFERENCE[d] for d in known]))
    shown = "; ".join(f"{d}: {v:.0f} %" for d, v in zip(depths, learnt if quick else solved, strict=True))
    return lines(
        curves,
        title="XOR: share of nets that learn it, by depth",
        x="hidden layers",
        y="percent of seeds",
        said=f"By hidden layers: {shown}.",
        domain=(0.0, 104.0),
    )


def _losses(found: list[xor.Trained]) -> dict[str, object]:
    shown = found if len(found) <= 4 else [found[0], found[3], found[5], found[-1]]
    curves = [xor.course_line(t, t.trial.name, color=PALETTE[k]) for k, t in enumerate(shown)]
    said = "; ".join(f"{t.trial.name}: {np.median(t.run.losses):.2g}" for t in shown)
    return lines(
        curves,
        title="Loss over training, median and 10 to 90 % of the seeds",
        x="epoch",
        y="epoch loss, decades (log10)",
        said=f"Median last loss: {said}. A loss of 0.5 is an output of 1/2 for every input.",
        marks={"0.5: output 1/2": math.log10(0.5)},
    )


def _profile(trained: xor.Trained, gain: float) -> dict[str, object]:
    measured = xor.profile_line(trained, "gradient at the layer's pre-activation", color=BLUE)
    top = len(measured.y) - 1
    expected = [measured.y[top - 1] + gain * (top - layer) for layer in range(1, top + 1)]
    said = f"From layer {top} to layer 1 the gradient changes by {measured.y[0] - measured.y[top - 1]:.1f} decades."
    return lines(
        [measured, predicted(f"predicted, {gain:.2f} decades a layer", list(range(1, top + 1)), expected)],
        title=f"The gradient at the start, {trained.trial.name}",
        x="layer, counted from the input",
        said=said,
        y="|delta| for x = (0, 1), decades (log10)",
    )
