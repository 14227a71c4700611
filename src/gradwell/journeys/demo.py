"""`gradwell demo`: the main job on real data: a digits script that does not learn, and why."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gradwell.errors import UnreadableInput, UsageError

SCRIPT = "digits_sigmoid.py"


def demo_script() -> Path:
    """The shipped script: in the package when installed, in `examples/` in a checkout."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "The demo's digits come with scikit-learn, which is not installed: pip install 'gradwell[lab]'."
        )
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / "examples" / SCRIPT, here.parents[3] / "examples" / SCRIPT):
        if candidate.is_file():
            return candidate
    raise UnreadableInput(f"The demo script {SCRIPT} is missing from this installation; install gradwell again.")
