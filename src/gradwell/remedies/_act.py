"""The acting half of a remedy: `apply(setup, **settings)` changes a training setup.

Every `apply` stands behind `acting`: models that surgery cannot edit are refused, random numbers are put back, and
the setup notes what was done to it. A setup whose change was refused may be half changed: give a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradwell.errors import GradwellError, Refused

if TYPE_CHECKING:
    from gradwell.surgery.setup import TrainSetup

LOOP = "# in the training step"
"""The line of the pasted code from which on it is run again in each step."""

Act = Callable[..., None]


def acting(apply: Act) -> Act:
    """An `apply` with random numbers put back, models checked and the change noted in `setup.applied`."""
    remedy = apply.__module__.rpartition(".")[2]

    @functools.wraps(apply)
    def whole(setup: TrainSetup, **settings: Any) -> None:
        from gradwell.surgery.replace import require_editable, without_nesting
        from gradwell.surgery.setup import forked_once

        require_editable(setup.model)
        with forked_once():
            try:
                apply(setup, **settings)
            except GradwellError:
                raise
            except Exception as problem:  # torch's own refusals: sparse, complex, nested, recomputed
                raise Refused(
                    f"{remedy} cannot be done on this model ({type(problem).__name__}: {problem})."
                ) from problem
        without_nesting(setup.model)
        setup.applied.append((remedy, settings))

    return whole


def already(what: str) -> Exception:
    """The refusal of a change that would change nothing."""
    return Refused(f"The training has {what} already; there is nothing to change.")
