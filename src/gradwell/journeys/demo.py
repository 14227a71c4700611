"""`gradwell demo`: the main job on real data: a digits script that does not learn, and why."""

from __future__ import annotations

from pathlib import Path

from gradwell.errors import UnreadableInput

SCRIPT = "digits_sigmoid.py"


def demo_script() -> Path:
    """The shipped script: in the package when installed, in `examples/` in a checkout."""
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / "examples" / SCRIPT, here.parents[3] / "examples" / SCRIPT):
        if candidate.is_file():
            return candidate
    raise UnreadableInput(f"The demo script {SCRIPT} is missing from this installation; install gradwell again.")
