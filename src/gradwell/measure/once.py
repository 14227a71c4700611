"""What many rules ask of the same record is worked out once and kept as long as the record lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradwell.records.run import Header, Site, Step

Answer = TypeVar("Answer")


class _Kept:
    """The answers about one record, by the function that gave them; they hold for what the record was then."""

    __slots__ = ("answers", "params", "record", "site_count", "sites")

    def __init__(self, record: weakref.ref[Any], sites: Sequence[Site], params: int = 0) -> None:
        self.record = record
        self.sites, self.site_count, self.params = sites, len(sites), params
        self.answers: dict[Callable[..., Any], Any] = {}


_steps: dict[int, _Kept] = {}
_headers: dict[int, _Kept] = {}


def once_a_step(function: Callable[[Sequence[Site], Step], Answer]) -> Callable[[Sequence[Site], Step], Answer]:
    """The function of (sites, step), asked again for the same step only when sites have been added.

    The answer is shared: do not change it.
    """

    def asked(sites: Sequence[Site], step: Step) -> Answer:
        kept = _steps.get(id(step))
        if kept is None or kept.sites is not sites or kept.site_count != len(sites):
            kept = _about_step(sites, step, kept)
        if function not in kept.answers:
            kept.answers[function] = function(sites, step)
        answer: Answer = kept.answers[function]
        return answer

    return asked


def once_a_header(function: Callable[[Header], Answer]) -> Callable[[Header], Answer]:
    """The function of a header, asked again for the same header only when parameters or sites have been added."""

    def asked(header: Header) -> Answer:
        kept = _headers.get(id(header))
        if kept is None or kept.site_count != len(header.sites) or kept.params != len(header.params):
            kept = _headers[id(header)] = _Kept(_while_alive(header, _headers), header.sites, len(header.params))
        if function not in kept.answers:
            kept.answers[function] = function(header)
        answer: Answer = kept.answers[function]
        return answer

    return asked


def _about_step(sites: Sequence[Site], step: Step, kept: _Kept | None) -> _Kept:
    """What is known about a step with these sites; other sites that are equal have the same answers."""
    if kept is None or kept.site_count != len(sites) or kept.sites != sites:
        kept = _steps[id(step)] = _Kept(_while_alive(step, _steps), sites)
    kept.sites = sites
    return kept


def _while_alive(record: Step | Header, table: dict[int, _Kept]) -> weakref.ref[Any]:
    """A reference that takes the record's answers out of the table as it goes."""
    key = id(record)
    return weakref.ref(record, lambda _: table.pop(key, None))
