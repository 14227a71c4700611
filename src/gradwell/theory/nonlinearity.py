"""An activation as the theory sees it: its function, its slope and where they have kinks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeAlias

import msgspec
import numpy as np

from gradwell.errors import UsageError
from gradwell.shelf import Entry, shelf
from gradwell.theory.quadrature import Z_MAX, Floats


class Nonlinearity(msgspec.Struct, frozen=True):
    """An activation with its parameters filled in, ready for the averages.

    `density` is for units that are no elementwise function (maxout): the density of the unit's value
    against N(0, 1), as a function of z; `phi` then acts on that value.
    """

    id: str
    phi: Callable[[Floats], Floats]
    slope: Callable[[Floats], Floats]
    kinks: tuple[float, ...] = ()
    z_max: float = Z_MAX
    wavelength: float = float("inf")
    density: Callable[[Floats], Floats] | None = None

    @property
    def at_zero(self) -> float:
        """phi(0)."""
        return float(self.phi(np.zeros(1))[0])


Activation: TypeAlias = str | Nonlinearity
"""Either an id of the shelf `gradwell.theory.activations` or a `Nonlinearity`."""


def _one(x: Floats) -> Floats:
    return np.ones_like(x)


def _same(x: Floats) -> Floats:
    return x


def _check_parameters(entry: Entry, params: dict[str, float]) -> None:
    unknown = sorted(set(params) - set(entry.thresholds))
    if unknown:
        known = ", ".join(entry.thresholds) or "none"
        raise UsageError(f"The activation {entry.id!r} has no parameter {unknown[0]!r}; its parameters are: {known}.")


@lru_cache(maxsize=256)
def nonlinearity(activation: str, **params: float) -> Nonlinearity:
    """The activation of that id, with parameters other than the defaults where given.

    Raises UnknownId for an id on no shelf and UsageError for a parameter the activation does not have.

    >>> nonlinearity("leaky_relu", negative_slope=0.2).id
    'leaky_relu'
    """
    entry = shelf("gradwell.theory.activations")[activation]
    _check_parameters(entry, params)
    density = entry.fact("density")
    return Nonlinearity(
        id=entry.id,
        phi=_same if density else partial(entry.function, **params),
        slope=_one if density else partial(entry.fact("slope"), **params),
        kinks=tuple(entry.fact("KINKS")),
        z_max=entry.fact("Z_MAX", Z_MAX),
        wavelength=entry.fact("WAVELENGTH", float("inf")),
        density=partial(density, **params) if density else None,
    )


def resolve(activation: Activation) -> Nonlinearity:
    """An id or a `Nonlinearity`, as a `Nonlinearity`."""
    return nonlinearity(activation) if isinstance(activation, str) else activation


def _shifted(phi: Callable[[Floats], Floats], shift: float, x: Floats) -> Floats:
    return phi(x) - shift


@lru_cache(maxsize=64)
def centred(activation: Activation) -> Nonlinearity:
    """phi(x) - phi(0): what an activation becomes under the bias b_i = -phi(0) sum_j W_ij."""
    plain = resolve(activation)
    return msgspec.structs.replace(plain, phi=partial(_shifted, plain.phi, plain.at_zero))
