"""XOR with ten hidden layers and shortcuts round them."""

from __future__ import annotations

import numpy as np

from gradwell.lab.experiment import Ask, Outcome, Table
from gradwell.lab.experiments import _xor as xor
from gradwell.lab.replicas import XOR_INPUTS, XOR_TARGETS, Replicas, Shape, draw
from gradwell.report.figures import BLUE, VERMILLION, Spec
from gradwell.report.lessons import GREEN, PURPLE, graph, lines
from gradwell.theory.quadrature import Floats

OPTIONS = ("depth", "seeds", "epochs")


def xor_residual(ask: Ask) -> Outcome:
    """Shortcuts x + sigmoid(W x + b) let the ten-layer XOR net learn, though its first gradients are smaller still.

    What you see:
        The plain net stays at a loss of 0.5; nine of ten residual ones go to 1e-7 (88 of 100 seeds, median 10,400). The
        shortcut carries nearly all of the gradient, from the first layer to the last. All of it is tiny at first, for
        ten positive increments push the output unit into saturation: that is the output's trouble, not the depth's.
        Adam rescales it; the seeds that stay at a loss of 1 start with gradients far below its eps. With betas .99 and
        .9999 the same nets take five times longer: Adam's long memory holds on to the initial values.

    Why:
        In the backward pass a block adds: gradient = grads + dense.back_prop(grads). The first term arrives whatever
        the weights do.

    Formula:
        y = x + sigma(W x + b), dL/dx = dL/dy + W^T (sigma'(h) dL/dy). The first and the last layer have no shortcut;
        over two layers y = x + sigma(W2 sigma(W1 x + b1) + b2). Everything else as in xor-depth.

    Source:
        s-hironobu, guide2dl, part 1 (the residual script); He et al. 2015. Reference counts: THEORY 2.1.
    """
    depth, seeds = ask.depth or 10, ask.seeds or ask.pick(20, 8)
    epochs = ask.epochs or ask.pick(100_000, 7_500)
    ten = depth == 10
    slow = {"betas": (0.99, 0.9999)}
    trials = [
        xor.Trial(name="plain", shape=Shape(hidden=depth), reference=(0, 0) if ten else None),
        xor.Trial(name="residual, betas .9/.999", shape=Shape(hidden=depth, skip=1),
                  reference=(20, 20) if ten else None, median=10618.0 if ten else None),
        xor.Trial(name="residual, betas .99/.9999", shape=Shape(hidden=depth, skip=1), settings=slow,
                  reference=(18, 18) if ten else None, median=49676.5 if ten else None),
        xor.Trial(name="residual over two layers", shape=Shape(hidden=depth, skip=2)),
        xor.Trial(name="plain, betas .99/.9999", shape=Shape(hidden=depth), settings=slow,
                  reference=(0, 0) if ten else None),
    ]  # fmt: skip
    if ask.quick:
        trials = [t for t in trials if not t.settings]
    found = [xor.train(ask, t, seeds=seeds, epochs=epochs if t.shape.skip or not ask.quick else 1500) for t in trials]
    by_name = {t.trial.name: t for t in found}
    plain, residual, slow_ = found[0], found[1], by_name.get("residual, betas .99/.9999")
    blocks = _blocks(depth)
    flat = [float(np.nanmedian(_spread(t))) for t in (plain, residual)]
    text = [*xor.layer_lines(residual.trial.shape), *xor.loss_lines(residual.run), *xor.truth_lines(residual.run)]
    return Outcome(
        tables=[Table("who solves XOR", xor.COLUMNS, [xor.row(t) for t in found]),
                Table("each block backward: grads + dense.back_prop(grads), x = (0, 1), seed 0",
                      ["layer", "|grads|", "|dense.back_prop(grads)|", "|their sum|", "shortcut's share"], blocks)],
        figures={"graph-plain": _graph(skip=False), "graph-residual": _graph(skip=True),
                 "loss": _losses(found), "profile": _profiles(plain, residual)},
        lines=text,
        deviations=xor.deviations(found, full=not ask.quick and ask.epochs is None),
        facts={"learnt": float(np.isfinite(residual.run.learnt).mean()), "solved": residual.run.share_solved,
               **({"slow_solved": slow_.run.share_solved, "slow_median": slow_.run.median_epochs} if slow_ else {}),
               "two_learnt": float(np.isfinite(by_name["residual over two layers"].run.learnt).mean()),
               "median": residual.run.median_epochs,
               "plain_stuck": plain.run.stuck, "seeds": seeds,
               "spread_plain": flat[0], "spread_residual": flat[1],
               "median_learnt": float(np.median(residual.run.learnt)),
               "start_plain": float(np.median(plain.weight_grads[1])),
               "start_residual": float(np.median(residual.weight_grads[1]))},
    )  # fmt: skip


def _spread(trained: xor.Trained) -> Floats:
    """Decades between the largest and the smallest gradient at the inputs of the hidden blocks, by seed."""
    nets = Replicas(trained.trial.shape, trained.seeds)
    draw(nets, "uniform01", range(trained.seeds))
    nets.forward(XOR_INPUTS[1:2])
    nets.backward(XOR_TARGETS[1])
    sizes = np.array([np.linalg.norm(b[:, 0], axis=1) for b in nets.back[1:]])
    inner = np.ptp(xor.decades(sizes[:, sizes.min(axis=0) > 0]), axis=0)
    return inner if inner.size else np.array([np.nan])


def _blocks(depth: int) -> list[list[object]]:
    """For each block the two parts of its gradient, from the output to the input."""
    nets = Replicas(Shape(hidden=depth, skip=1), 1)
    draw(nets, "uniform01", [0])
    nets.forward(XOR_INPUTS[1:2])
    nets.backward(XOR_TARGETS[1])
    rows: list[list[object]] = []
    for layer in range(depth, 0, -1):
        grads = nets.back[layer + 1][0, 0]
        dense = nets.hidden_delta[layer][0, 0] @ nets.weights[layer][0]
        total = nets.back[layer][0, 0]
        share = float(grads @ total / (total @ total)) if total.any() else None
        sizes = [float(np.linalg.norm(v)) for v in (grads, dense, total)]
        rows.append([layer + 1, *sizes, share])
    return rows


def _graph(*, skip: bool) -> Spec:
    """Forward on the upper row, backward on the lower one; three of the hidden layers stand for all."""
    names = ["x", "dense", "dense", "dense", "dense", "dense", "loss"] if not skip else [
        "x", "dense", "x + dense", "x + dense", "x + dense", "dense", "loss"]  # fmt: skip
    nodes = [(f"f{k}", 1.4 * k, 1.4, name) for k, name in enumerate(names)]
    back = ["", *["back_prop" for _ in names[1:-1]], "dL/dy"]
    nodes += [(f"b{k}", 1.4 * k, 0.0, name) for k, name in enumerate(back) if name]
    last = len(names) - 1
    edges = [(f"f{k}", f"f{k + 1}", "forward") for k in range(last)]
    edges += [(f"b{k + 1}", f"b{k}", "backward") for k in range(1, last)]
    if skip:
        edges += [(f"f{k}", f"f{k + 1}", "skip") for k in (1, 2, 3)]
        edges += [(f"b{k + 1}", f"b{k}", "skip") for k in (2, 3, 4)]
    title = "Residual net: the gradient passes each block twice, once untouched" if skip else "Plain net: one way only"
    words = "Forward (upper row, black) and backward (lower row, blue)"
    said = f"{words}; red arcs are the shortcuts." if skip else f"{words}; each layer multiplies."
    return graph(nodes, edges, title=title, said=said)


def _losses(found: list[xor.Trained]) -> Spec:
    colors = (VERMILLION, GREEN, PURPLE, BLUE, "#6E7781")
    curves = [xor.course_line(t, t.trial.name, color=colors[k], stroke="dashed" if t.trial.shape.skip == 0 else "solid")
              for k, t in enumerate(found)]  # fmt: skip
    said = "; ".join(f"{t.trial.name}: {np.median(t.run.losses):.2g}" for t in found)
    return lines(curves, title="Loss over training, median and 10 to 90 % of the seeds", x="epoch",
                 y="epoch loss, decades (log10)", said=f"Median last loss: {said}.")  # fmt: skip


def _profiles(plain: xor.Trained, residual: xor.Trained) -> Spec:
    curves = [
        xor.profile_line(plain, "plain", weights=True, color=VERMILLION, stroke="dashed"),
        xor.profile_line(residual, "residual", weights=True, color=GREEN),
    ]
    said = (
        f"From the first layer to the last the plain net's weight gradients climb from {curves[0].y[0]:.1f} to "
        f"{curves[0].y[-1]:.1f} decades; the residual net's are small all over ({curves[1].y[0]:.1f} and "
        f"{curves[1].y[-1]:.1f}), for its output is saturated."
    )
    return lines(curves, title="Weight gradients at the start, by layer", x="layer, counted from the input",
                 y="|dL/dW| for x = (0, 1), decades (log10)", said=said)  # fmt: skip
