"""The way from a parameter to the loss is cut."""

from __future__ import annotations

from gradwell.measure.held import astray, unreached
from gradwell.records.run import Run, Step
from gradwell.records.verdict import Attribution, Finding

EXPLAINS = ("unreached_parameter",)


def detached_graph(run: Run, _finding: Finding, step: Step) -> Attribution | None:
    """The way from a parameter to the loss is cut: its output is taken out of the graph, or never used.

    What it is:
        Autograd follows tensors from the loss back to the parameters. `.detach()`, `.item()`, `.numpy()`,
        `torch.no_grad()`, `torch.tensor(x)`, argmax, rounding and comparisons give tensors without a past; a module
        that is built and not called, or whose result is dropped, has no way either.

    How it is measured:
        Parameters are looked at in the order in which the model holds them. When all up to one go without a gradient
        and all behind it get one, the cut lies between these two; else branches are cut or unused.

    What changes it:
        Take the cut out, or use an estimator that has a gradient (straight-through, softmax in place of argmax);
        `requires_grad_(False)` where the parameters are meant to stay.

    Source:
        PyTorch, "Autograd mechanics"; Bengio, Léonard and Courville 2013 for hard decisions.
    """
    if astray(run, unreached(run)):
        text = (
            "the optimizer was made for other tensors: make it after the last line that makes, copies or loads the "
            "model, `optimizer = torch.optim.Adam(model.parameters())`, say"
        )
        return Attribution(0, "detached_graph", "condition", None, None, text)
    owned = [i for i, param in enumerate(run.header.params) if not param.frozen]
    known = [any(s.of("grad_rms", i) is not None for s in (step, *run.steps)) for i in owned]
    if all(known):
        return None
    first = next(run.header.params[i].name for i, is_known in zip(owned, known, strict=True) if not is_known)
    cut = known.index(True) if True in known else len(known)
    if cut and all(known[cut:]) and cut < len(owned):
        last, after = run.header.params[owned[cut - 1]], run.header.params[owned[cut]]
        text = f"everything up to {last.name} is cut off and {after.name} is reached: look between the two for"
    else:
        text = f"the first one cut off or unused is {first}; look at what becomes of its output:"
    text += " .detach(), no_grad, .item(), argmax or a result that is not used"
    return Attribution(0, "detached_graph", "condition", None, None, text)
