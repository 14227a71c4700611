"""What many rules ask of the same record is worked out once and kept as long as the record lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradwell.records.run import Header, Site, Step

Answer = TypeVar("Answer")


def once_a_step(function: Callable[[Sequence[Site], Step], Answer]) -> Callable[[Sequence[Site], Step], Answer]:
    """The function of (sites, step), asked again for the same step only when sites have been added.

    The answer is shared: do not change it.
    """
    return _once(function, about=lambda _, step: step, state=lambda sites, _: (sites, len(sites)))


def once_a_header(function: Callable[[Header], Answer]) -> Callable[[Header], Answer]:
    """The function of a header, asked again for the same header only when parameters or sites have been added."""
    return _once(function, about=lambda header: header, state=lambda header: (len(header.sites), len(header.params)))


def _once(
    function: Callable[..., Answer], *, about: Callable[..., Any], state: Callable[..., Any]
) -> Callable[..., Answer]:
    """Answers by the id of the record that they are about, each with the state that it was worked out for."""
    known: dict[int, tuple[Any, Any, Answer]] = {}

    def asked(*given: Any) -> Answer:
        record, now = about(*given), state(*given)
        key = id(record)
        entry = known.get(key)
        if entry is None or entry[0]() is not record or entry[1] != now:
            forget = weakref.ref(record, lambda _: known.pop(key, None))
            entry = known[key] = (forget, now, function(*given))
        return entry[2]

    return asked
