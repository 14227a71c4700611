"""XOR with ten hidden layers: what cures it and what does not."""

from __future__ import annotations

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _xor as xor
from gradwell.lab.replicas import Shape
from gradwell.report.figures import VERMILLION, Spec
from gradwell.report.lessons import GREEN, ORANGE, PALETTE, PURPLE, bars, lines

OPTIONS = ("depth", "seeds", "epochs")


def _trials(depth: int) -> list[xor.Trial]:
    def net(activation: str = "sigmoid", *, norm: bool = False) -> Shape:
        return Shape(hidden=depth, activation=activation, norm=norm)

    sick = net()
    return [
        xor.Trial(name="as in the lesson", shape=sick, reference=(0, 0)),
        xor.Trial(name="Xavier", shape=sick, init="xavier_uniform", reference=(1, 3), median=32389.0),
        xor.Trial(name="centred sigmoid", shape=sick, init="centred_sigmoid", reference=(20, 20), median=7236.5),
        xor.Trial(name="PyTorch's default init", shape=sick, init="torch_default", reference=(0, 0)),
        xor.Trial(name="tanh + Xavier", shape=net("tanh"), init="xavier_uniform", reference=(19, 19)),
        xor.Trial(name="LeakyReLU + He", shape=net("leaky_relu"), init="he", reference=(20, 20)),
        xor.Trial(name="ELU + Xavier", shape=net("elu"), init="xavier_uniform", reference=(20, 20)),
        xor.Trial(name="ReLU + He", shape=net("relu"), init="he", reference=(8, 8)),
        xor.Trial(name="ReLU alone", shape=net("relu"), reference=(0, 0)),
        xor.Trial(name="batch norm, batch of 4", shape=net(norm=True), full_batch=True),
        xor.Trial(name="SGD .1", shape=sick, optimizer="sgd", settings={"lr": 0.1}),
        xor.Trial(name="momentum .9", shape=sick, optimizer="sgd", settings={"lr": 0.1, "momentum": 0.9}),
        xor.Trial(name="RMSprop", shape=sick, optimizer="rmsprop"),
        xor.Trial(name="AdaGrad", shape=sick, optimizer="adagrad"),
        xor.Trial(name="sign update", shape=sick, optimizer="sign"),
    ]


def xor_cures(ask: Ask) -> Outcome:
    """Ten hidden layers of XOR, each cure by itself: the theory's init cures, an optimizer does not.

    What you see:
        Of the lesson's nets none learns. The centred sigmoid (a bias that takes out the mean of 1/2, weights of
        variance 16 / n), leaky ReLU with He, ELU or tanh with Xavier and batch norm learn nearly always; Xavier on a
        sigmoid seldom; ReLU with He less than half the time, for in layers of four units a whole layer is often dead;
        ReLU on the lesson's positive weights never. No optimizer helps: it rescales the gradient's size, but what the
        gradient says about the inputs is gone.

    Why:
        chi = sigma_w2 E[phi'^2] must be near 1, and the forward signal must not drown in the mean of the activations.

    Formula:
        Sigmoid: chi = 0.056 with Xavier; centred, sigma_w2 = 16 gives chi = 1. A ReLU layer of n units is dead with
        probability 2^-n: for 11 layers of 4 units all live with (15/16)^11 = 0.49 for one input.

    Source:
        THEORY 2.1; Glorot and Bengio 2010, He et al. 2015, Clevert et al. 2015, Ioffe and Szegedy 2015.
    """
    depth, seeds = ask.depth or 10, ask.seeds or ask.pick(20, 10)
    epochs = ask.epochs or ask.pick(100_000, 0)
    trials = _trials(depth)
    found = [xor.train(ask, t, seeds=seeds, epochs=epochs or _quick(t)) for t in trials]
    by_name = {t.trial.name: t for t in found}
    known = [t for t in found if t.trial.reference is not None] if depth == 10 else []
    shares = {f"learnt: {t.trial.name}": float(np.isfinite(t.run.learnt).mean()) for t in found}
    solved = {f"solved: {t.trial.name}": t.run.share_solved for t in found}
    return Outcome(
        tables=[Table("ten hidden layers, each cure by itself", xor.COLUMNS, [xor.row(t) for t in found])],
        figures={"cures": _bars(found, seeds, quick=ask.quick), "loss": _losses(by_name)},
        lines=[f"{t.trial.name}: {shares[f'learnt: {t.trial.name}']:.0%} learn, {t.run.share_solved:.0%} reach 1e-7"
               for t in found],
        deviations=xor.deviations(known, full=not ask.quick and ask.epochs is None),
        facts={**shares, **solved, "median centred": by_name["centred sigmoid"].run.median_epochs},
    )  # fmt: skip


def _quick(trial: xor.Trial) -> int:
    """Epochs of the quick form: long enough to see who learns."""
    if trial.full_batch:
        return 8_000  # one update an epoch
    if trial.init == "centred_sigmoid":
        return 2_500
    return 1_000 if trial.shape.activation in ("tanh", "leaky_relu", "elu") else 400


def _bars(found: list[xor.Trained], seeds: int, *, quick: bool) -> Spec:
    rows = []
    for t in found:
        if t.trial.reference is not None and not quick:
            rows.append((t.trial.name, 100 * sum(t.trial.reference) / 40, "reference (20 seeds)"))
        share = float(np.isfinite(t.run.learnt).mean()) if quick else t.run.share_solved
        rows.append((t.trial.name, 100 * share, "measured"))
    what = "come below a loss of .01" if quick else "come to a loss of 1e-7"
    said = f"Percent of {seeds} seeds that {what} in {max(t.run.epochs for t in found):,} epochs."
    colors = {"measured": GREEN, "reference (20 seeds)": "#6E7781"}
    return bars(rows, title="XOR, ten hidden layers: who learns", x=f"percent of seeds that {what}", said=said,
                colors=colors, domain=(0, 100))  # fmt: skip


def _losses(found: dict[str, xor.Trained]) -> Spec:
    names = {"as in the lesson": VERMILLION, "Xavier": ORANGE, "centred sigmoid": GREEN, "LeakyReLU + He": PALETTE[0],
             "ReLU + He": PURPLE}  # fmt: skip
    curves = [xor.course_line(found[n], n, color=c, stroke="dashed" if n == "as in the lesson" else "solid")
              for n, c in names.items()]  # fmt: skip
    said = "; ".join(f"{n}: {np.median(found[n].run.losses):.2g}" for n in names)
    return lines(curves, title="Loss over training, median and 10 to 90 % of the seeds", x="epoch",
                 y="epoch loss, decades (log10)", said=f"Median last loss: {said}.")  # fmt: skip
