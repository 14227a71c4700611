"""Choosing by id from a table, with one clear sentence when the id is not there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from gradwell.errors import UnknownId

Thing = TypeVar("Thing")


def pick(table: Mapping[str, Thing], key: str, kind: str) -> Thing:
    """`table[key]`; raises `UnknownId` naming the nearest id, or all of them where none is near."""
    if key in table:
        return table[key]
    close = difflib.get_close_matches(key, table, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(sorted(table))}."
    raise UnknownId(f"There is no {kind} {key!r} in the lab; {hint}")
