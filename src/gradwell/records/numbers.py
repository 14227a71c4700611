"""Numbers as JSON and as words: non-finite floats keep their names, sizes are spoken in decades.

JSON has no NaN and no infinity; they travel as the strings "nan", "inf" and "-inf". null means not measured.
"""

from __future__ import annotations

import math
from typing import Any

_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any) -> Any:
    """The same nested value with non-finite floats as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(value: float | str | None) -> float | None:
    """One number back from its JSON form."""
    if isinstance(value, str):
        return _NAMES[value]
    return None if value is None else float(value)


def log10(value: float | None) -> float | None:
    """log10 of a size: -inf for exact zero, None for what was not measured, nan and inf pass through."""
    if value is None or math.isnan(value) or value == math.inf:
        return value
    return math.log10(value) if value > 0 else -math.inf


def decades(value: float | None, *, signed: bool = True) -> str:
    """A number of decades as text, `-7.7`; two significant digits, never `-0.0`."""
    if value is None:
        return "not measured"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:+.1f}" if signed else f"{abs(value):.1f}"
    return "0.0" if text in {"-0.0", "+0.0"} else text


def size(value: float | None) -> str:
    """A size with two significant digits, `3.1e-05`, `0.42`, `12`."""
    if value is None:
        return "not measured"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.1e}" if not 1e-3 <= abs(value) < 1e4 else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def times(log10_ratio: float) -> str:
    """A ratio in words from its log10, `25 million times`."""
    if not math.isfinite(log10_ratio):
        return "infinitely many times"
    ratio = 10 ** min(abs(log10_ratio), 300)
    for power, word in ((12, "million million"), (9, "billion"), (6, "million"), (3, "thousand")):
        if ratio >= 10**15:
            return f"10^{abs(log10_ratio):.0f} times"
        if ratio >= 10**power:
            return f"{float(f'{ratio / 10**power:.2g}'):g} {word} times"
    return f"{float(f'{ratio:.2g}'):g} times"
