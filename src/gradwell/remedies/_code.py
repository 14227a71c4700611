"""Lines to paste: plain PyTorch as text, with the place in the user's own files where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from gradwell.records.verdict import Prescription, Remedy
from gradwell.shelf import Page

MOST_PLACES = 4
NOT_TRIED = "not yet tried"


def advise(
    remedy: Callable[..., Any], *, expected: str, code: str = "", at: Sequence[str] = (), **settings: Any
) -> Prescription:
    """The prescription of one remedy: its settings, what to expect, and the code (default: that of its page).

    `at`: places such as `train.py:42` that the change is about.
    """
    imports, body = _apart(code or lines(remedy))
    whole = _with_imports(imports, ["\n".join([*_places(at), body])])
    return Prescription([Remedy(remedy.__name__, settings)], f"{expected}; {NOT_TRIED}", whole)


@cache
def lines(remedy: Callable[..., Any]) -> str:
    """The code that stands on a remedy's page under `In your code:`."""
    return Page.read(remedy.__doc__).blocks["In your code"]


def together(parts: Sequence[Prescription], *, expected: str) -> Prescription:
    """Several remedies as one prescription: code in order, each import once, on top."""
    texts = [_apart(part.in_your_code) for part in parts]
    imports = list(dict.fromkeys(line for lines, _ in texts for line in lines))
    whole = _with_imports(imports, [body for _, body in texts])
    remedies = [remedy for part in parts for remedy in part.remedies]
    return Prescription(remedies, f"{expected}; {NOT_TRIED}", whole)


def _with_imports(imports: Sequence[str], bodies: Sequence[str]) -> str:
    head = ["\n".join(imports)] if imports else []
    return "\n\n".join([*head, *bodies])


def _places(at: Sequence[str]) -> list[str]:
    at = list(dict.fromkeys(at))  # a cell in a loop is one place with many calls
    if not at:
        return []
    more = f" and {len(at) - MOST_PLACES} more" if len(at) > MOST_PLACES else ""
    return [f"# concerns {', '.join(at[:MOST_PLACES])}{more}"]


def _apart(code: str) -> tuple[list[str], str]:
    """The lines that import, and the others."""
    imports: list[str] = []
    body: list[str] = []
    for line in code.splitlines():
        (imports if line.startswith(("import ", "from ")) else body).append(line)
    return imports, "\n".join(body).strip()
