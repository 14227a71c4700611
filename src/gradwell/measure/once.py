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
    known: dict[int, tuple[Any, Any, int, Answer]] = {}

    def asked(sites: Sequence[Site], step: Step) -> Answer:
        key = id(step)
        entry = known.get(key)
        if entry is None or entry[0]() is not step or entry[1] is not sites or entry[2] != len(sites):
            forget = weakref.ref(step, lambda _: known.pop(key, None))
            entry = known[key] = (forget, sites, len(sites), function(sites, step))
        return entry[3]

    return asked


def once_a_header(function: Callable[[Header], Answer]) -> Callable[[Header], Answer]:
    """The function of a header, asked again for the same header only when parameters or sites have been added."""
    known: dict[int, tuple[Any, tuple[int, int], Answer]] = {}

    def asked(header: Header) -> Answer:
        key, lengths = id(header), (len(header.sites), len(header.params))
        entry = known.get(key)
        if entry is None or entry[0]() is not header or entry[1] != lengths:
            forget = weakref.ref(header, lambda _: known.pop(key, None))
            entry = known[key] = (forget, lengths, function(header))
        return entry[2]

    return asked
