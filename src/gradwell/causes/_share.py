"""The share of one cause in a finding, from the ledger of its step. No entry of the shelf."""

from __future__ import annotations

from collections.abc import Iterable

from gradwell.measure.attribution import deep_ledger
from gradwell.measure.flow import Ledger, ledger
from gradwell.records.run import Run, Site, Step, finite
from gradwell.records.verdict import Attribution

LEAST = 1.0
"""Decades: below that total there are no shares, a division by almost nothing."""
PROFILES = ("vanishing_gradient", "exploding_gradient")


def share_of(run: Run, step: Step, cause: str, summary: str) -> Attribution | None:
    """The decades of a cause and their share of the total; None where the total is below a decade."""
    book = book_of(run, step)
    if book is None:
        return None
    part = book.share(cause)
    return Attribution(0, cause, "share", part, part / book.total, summary)


def book_of(run: Run, step: Step) -> Ledger | None:
    """The ledger of a step when it has shares to give: by Aumann and Shapley where that was measured."""
    book = deep_ledger(run.sites, step) or ledger(run.sites, step)
    return None if book is None or abs(book.total) < LEAST else book


def on_ledger(run: Run, step: Step, role: str) -> list[int]:
    """Indices of the sites of one role in the ledger."""
    book = book_of(run, step)
    sites = run.sites
    return [] if book is None else [i for i, _ in book.by_site if sites[i].role == role]


def a_layer(step: Step, indices: Iterable[int]) -> float | None:
    """The mean isotropic gain of some sites as a factor: what a random gradient keeps of its size in each."""
    gains = step.sites.get("isotropic", [])
    known = finite([gains[i] for i in indices if i < len(gains)])
    return 10 ** (sum(known) / len(known)) if known else None


def kinds(sites: Iterable[Site]) -> str:
    """`Linear`, `Linear and Conv2d`, `Linear, Conv2d and others`: the kinds of some sites, most frequent first."""
    names = [site.kind.removesuffix("()") for site in sites]
    ranked = sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    if len(ranked) > 2:
        return f"{ranked[0]}, {ranked[1]} and others"
    return " and ".join(ranked)


def factor(value: float) -> str:
    """A factor with two significant digits, `0.24`."""
    return f"{float(f'{value:.2g}'):g}"


def count(number: int, word: str) -> str:
    """`1 layer`, `20 layers`."""
    return f"{number} {word}{'s' if number != 1 else ''}"
