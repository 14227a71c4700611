"""A diagnosis as plain text, for a tired person at midnight: the verdict first, then why, then what to do.

Decades are log10 of a ratio of gradient sizes, signed: negative shrinks on the way from the loss to the input.
No line is wider than asked for, except lines of code to paste, which are never broken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, takewhile
from typing import IO, Any, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.color import ColorSystem
from rich.style import Style

from gradwell.records.numbers import decades, size, times
from gradwell.records.verdict import RANK, Attribution, Diagnosis, Finding, Prescription, ProfileRow, Remedy

NARROWEST = 40
MAX_ROWS = 12
SPAN = 6.0  # decades: a smaller span would make a healthy net look like a disaster
STYLES = {"fatal": "bold red", "serious": "red", "mild": "yellow", "healthy": "bold green", "undecided": "bold"}
PLAIN = {
    "…": "...", "→": "->", "←": "<-", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "±": "+-", "≤": "<=",
    "≥": ">=", "≈": "~", "²": "^2", "√": "sqrt", "σ": "sigma", "χ": "chi", "δ": "delta", "μ": "mu", "‘": "'",
    "’": "'", "“": '"', "”": '"',
}  # fmt: skip
"""How our own signs are written where there is only ASCII."""


class Line(NamedTuple):
    """A line of the answer and the style that it has where there is colour."""

    text: str
    style: str = ""


class Page(NamedTuple):
    """How wide the text may be, in terminal cells, and whether only ASCII may be used."""

    width: int
    ascii: bool


def render(diagnosis: Diagnosis, *, width: int = 80, color: bool = False, ascii: bool = False) -> str:
    """The whole diagnosis as text, at most `width` terminal cells wide (at least 40), ending without a newline.

    `color` adds ANSI styles; `ascii` writes every character, also those of the user's names, in ASCII.
    """
    page = Page(max(width, NARROWEST), ascii)
    blocks = (
        _verdict(diagnosis, page),
        *(_causes(diagnosis, index, page) for index in by_severity(diagnosis)),
        _depth(diagnosis, page),
        _layers(diagnosis, page),
        _deep(diagnosis, page),
        _prescriptions(diagnosis.prescriptions, page),
        _not_checked(diagnosis, page),
        _notes(diagnosis, page),
        _origin(diagnosis, page),
    )
    return joined(blocks, color=color)


def joined(blocks: Iterable[list[Line]], *, color: bool) -> str:
    """Blocks of lines as text, an empty line between two; empty ones are left out."""
    lines = [line for block in blocks if block for line in (Line(""), *block)][1:]
    return "\n".join(paint(line) if color else line.text for line in lines)


def render_line(diagnosis: Diagnosis, *, ascii: bool = False) -> str:
    """The verdict in one line, however long: how bad, what, where, by how much and the largest cause."""
    return clean(_verdict_words(diagnosis), ascii=ascii)


def render_finding(diagnosis: Diagnosis, index: int, *, ascii: bool = False) -> str:
    """One finding in one line, however long: how bad, what, where, by how much and the largest cause."""
    return clean(_finding_words(diagnosis, index), ascii=ascii)


def terminal(stream: IO[str]) -> dict[str, Any]:
    """The options of `render` that suit a stream: its width, colour on a terminal only (not under NO_COLOR),
    ASCII where the stream's encoding cannot carry our signs.

    >>> import io
    >>> terminal(io.StringIO())
    {'width': 80, 'color': False, 'ascii': False}
    """
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        width = 0
    try:
        "▁█▽×…".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        plain = True
    else:
        plain = False
    is_terminal = bool(getattr(stream, "isatty", bool)())
    color = is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return {"width": min(width, 120) or 80, "color": color, "ascii": plain}


# What the records say: shared by the text and the report.


def last_rows(diagnosis: Diagnosis) -> list[ProfileRow]:
    """The profile at its last step, input first."""
    last = max((row.step for row in diagnosis.profile), default=0)
    return sorted((row for row in diagnosis.profile if row.step == last), key=lambda row: row.order)


def label(row: ProfileRow, *, roots: bool = False) -> str:
    """The site's name as people know it; a repeated call is numbered, `roots` puts the root module before it."""
    name = row.site or "(model)"
    name = f"{row.root}:{name}" if roots and row.root else name
    return f"{name} #{row.call + 1}" if row.call else name


def by_severity(diagnosis: Diagnosis) -> list[int]:
    """Indices of the findings, the worst first."""
    order = range(len(diagnosis.findings))
    return sorted(order, key=lambda i: -RANK[diagnosis.findings[i].severity])


def shares(diagnosis: Diagnosis, finding: int) -> list[Attribution]:
    """The causes of a finding that carry decades: the largest in the direction of the total first, the
    unexplained rest last."""
    found = [a for a in diagnosis.causes(finding) if a.kind == "share" and a.decades is not None]
    sign = math.copysign(1.0, total(found))
    return sorted(found, key=lambda a: (a.cause == "unexplained", -sign * (a.decades or 0.0)))


def total(attributions: Iterable[Attribution]) -> float:
    """Sum of the decades of the causes that carry decades."""
    return math.fsum(a.decades for a in attributions if a.decades is not None and math.isfinite(a.decades))


def largest_cause(diagnosis: Diagnosis, finding: int) -> Attribution | None:
    """The largest cause with the sign of the total; the unexplained rest only where nothing else has it."""
    found = shares(diagnosis, finding)
    whole = total(found)
    return next((a for a in found if a.decades and a.decades * whole > 0), None)


def helped(attribution: Attribution, whole: float) -> bool:
    """True for a named cause that acts against the total."""
    part = attribution.decades or 0.0
    return part * whole < 0 and attribution.cause != "unexplained" and decades(part) != "0.0"


def gain_words(gain: float | None) -> str:
    """A log10 gain as a table cell: decades, or the word for what is no number."""
    if gain is None:
        return "-"
    if math.isnan(gain) or gain == math.inf:
        return "not finite"
    return "exactly 0" if gain == -math.inf else decades(gain)


def percent(fraction: float | None) -> str:
    """A fraction in per cent, no decimals: 0.128 is `13 %`."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{round(100 * fraction)} %"


def words(identifier: str) -> str:
    """An id as words: `activation_slope` is `activation slope`."""
    return identifier.replace("_", " ")


def remedies(prescription: Prescription) -> str:
    """The remedies of a prescription with their settings, `swap_activation(to=relu) + reinit(init=he)`."""
    return " + ".join(remedy(item) for item in prescription.remedies)


def remedy(item: Remedy) -> str:
    """A remedy with its settings, `reinit(init=he)`."""
    settings = ", ".join(f"{name}={_setting(value)}" for name, value in item.settings.items())
    return f"{item.id}({settings})" if settings else item.id


def short_remedies(items: Iterable[Remedy]) -> str:
    """Remedies with the values of their settings alone, for a narrow column: `swap_activation(relu) + reinit(he)`."""
    values = [(item.id, ", ".join(_setting(value) for value in item.settings.values())) for item in items]
    return " + ".join(f"{name}({told})" if told else name for name, told in values)


def not_checked(diagnosis: Diagnosis) -> list[tuple[str, list[str]]]:
    """Reasons and the symptoms that each kept from being checked, in the order of the record."""
    merged: dict[str, list[str]] = {}
    for item in diagnosis.not_checked:
        merged.setdefault(item.reason, []).append(item.symptom)
    return list(merged.items())


def overhead_words(diagnosis: Diagnosis) -> str:
    """What the measuring cost, as a sentence; empty when there was no step."""
    cost = diagnosis.overhead
    if not cost.steps:
        return ""
    sampled = f"{cost.sampled_steps} of {cost.steps} step{'s' if cost.steps != 1 else ''} sampled"
    if cost.fraction is None:
        return f"{sampled[0].upper()}{sampled[1:]}." if cost.steps > 1 else ""
    return f"Measuring cost {_two(100 * cost.fraction)} % of the training's time, {sampled}."


def origin(diagnosis: Diagnosis) -> list[str]:
    """Script, versions, device, dtype, seed and date: what is needed to find the run again."""
    head = diagnosis.header
    parts = [
        " ".join(head.argv), head.tool, f"torch {head.torch}" if head.torch else "", head.device, head.dtype,
        "" if head.seed is None else f"seed {head.seed}", ", ".join(o.kind for o in head.optimizers), head.started,
    ]  # fmt: skip
    return [part for part in parts if part]


def worst_first(diagnosis: Diagnosis, rows: Sequence[ProfileRow]) -> list[ProfileRow]:
    """The rows that matter most: sites named in findings, then what is not finite, then the size of the trouble."""
    order = by_severity(diagnosis)
    first = diagnosis.findings[order[0]].symptom if order else ""
    named: dict[str, int] = {}
    for rank, index in enumerate(order):
        for place in diagnosis.findings[index].where:
            named.setdefault(place.site, rank)

    def key(row: ProfileRow) -> tuple[int, bool, float]:
        return named.get(row.site, len(order)), not broken(row), -_trouble(first, row)

    return sorted(rows, key=key)


def broken(row: ProfileRow) -> bool:
    """True where the outputs or the gradient are not finite."""
    gain = row.log10_gain
    return bool(row.nonfinite) or (gain is not None and (math.isnan(gain) or gain == math.inf))


def _trouble(symptom: str, row: ProfileRow) -> float:
    gain = row.log10_gain
    gain = 0.0 if gain is None or math.isnan(gain) else gain
    ratio = row.update_ratio or 0.0
    measures: dict[str, float | None] = {
        "vanishing": -gain,
        "exploding": gain,
        "dead": row.dead_frac if row.dead_frac is not None else row.zero_frac,
        "saturated": row.saturated_frac,
        "undersized": -ratio,
        "oversized": ratio,
    }
    measured = measures.get(symptom.partition("_")[0], abs(gain))
    return 0.0 if measured is None or math.isnan(measured) else measured


# The verdict.


def _verdict(diagnosis: Diagnosis, page: Page) -> list[Line]:
    lines = wrap(_verdict_words(diagnosis), page, hang="  ", style=STYLES[diagnosis.verdict])
    order = by_severity(diagnosis)
    for index in order if diagnosis.verdict == "undecided" else order[1:]:
        finding = diagnosis.findings[index]
        lines += wrap(f"also: {finding.severity} {finding.symptom}: {_stop(finding.summary)}", page, hang="  ")
    return lines


def _verdict_words(diagnosis: Diagnosis) -> str:
    if diagnosis.verdict == "undecided":
        return f"UNDECIDED: {_missing(diagnosis)}"
    if not diagnosis.findings:
        return f"HEALTHY: {_healthy(diagnosis)}"
    return _finding_words(diagnosis, by_severity(diagnosis)[0])


def _finding_words(diagnosis: Diagnosis, index: int) -> str:
    finding = diagnosis.findings[index]
    cause = _cause_words(diagnosis, index)
    return f"{finding.severity.upper()} {finding.symptom}: {_stop(finding.summary)[:-1]}{cause}"


def _cause_words(diagnosis: Diagnosis, finding: int) -> str:
    origins = [words(a.cause) for a in _origins(diagnosis, finding)]
    largest = largest_cause(diagnosis, finding)
    if origins or largest is None:
        return f"; condition: {', '.join(origins)}" if origins else ""
    return f"; largest cause: {words(largest.cause)}"


def _origins(diagnosis: Diagnosis, finding: int) -> list[Attribution]:
    """The conditions that stand before all shares: they have made what the shares divide."""
    return list(takewhile(lambda a: a.kind == "condition", diagnosis.causes(finding)))


def _healthy(diagnosis: Diagnosis) -> str:
    rows = last_rows(diagnosis)
    gains = [row.log10_gain for row in rows if row.log10_gain is not None and math.isfinite(row.log10_gain)]
    if len(rows) < 2 or not gains:
        return "nothing that was checked is wrong."
    layers = f"all {len(rows)} layers"
    if len(gains) < len(rows):
        zeros = sum(row.log10_gain == -math.inf for row in rows)
        others = f"exactly 0 at {zeros}" if zeros else "the others were not measured"
        layers = f"{len(gains)} of {len(rows)} layers ({others})"
    widest = decades(max(map(abs, gains)), signed=False)
    return f"the gradient arrives at {layers} within {widest} decades of the output's."


def _missing(diagnosis: Diagnosis) -> str:
    """What an undecided verdict lacked."""
    gains = [row.log10_gain for row in diagnosis.profile]
    count = len({item.symptom for item in diagnosis.not_checked})
    rest = f"; {count} symptom{'s' if count != 1 else ''} could not be checked" if count else ""
    if not diagnosis.profile:
        return f"no backward pass was seen{rest}."
    if all(gain is None for gain in gains):
        return f"no gradient was measured at any layer{rest}."
    if all(gain == -math.inf for gain in gains if gain is not None):
        return f"every gradient is exactly 0{rest}."
    if all(gain is None or not math.isfinite(gain) for gain in gains):
        return f"no gradient is finite{rest}."
    reasons = not_checked(diagnosis)
    most = max(reasons, key=lambda item: len(item[1]))[0] if reasons else "the evidence does not suffice"
    return f"{_stop(most)[:-1]}{rest}."


# Where it is lost.


def _causes(diagnosis: Diagnosis, index: int, page: Page) -> list[Line]:
    finding = diagnosis.findings[index]
    found = shares(diagnosis, index)
    conditions = [a for a in diagnosis.causes(index) if a.kind == "condition"]
    if not found and not conditions:
        return []
    lines = heading(_causes_title(finding, total(found), several=len(diagnosis.findings) > 1), page)
    origins = _origins(diagnosis, index)
    lines += [line for a in origins for line in _condition(a, page)]
    told = [a for a in found if a.cause == "unexplained" or decades(a.decades) != "0.0"]
    lines += [line for a in told for line in _share(a, total(found), page)]
    if found:
        whole = total(found)
        ratio = f" ({times(whole)} {'smaller' if whole < 0 else 'larger'})" if decades(whole) != "0.0" else ""
        lines += wrap(f"{decades(whole):>7} decades in total{ratio}", page, lead="  ", hang=" " * 10)
    return lines + [line for a in conditions[len(origins) :] for line in _condition(a, page)]


def _condition(attribution: Attribution, page: Page) -> list[Line]:
    text = attribution.summary or f"{words(attribution.cause)}."
    return wrap(f"condition: {text}", page, lead="  ", hang="    ")


def _causes_title(finding: Finding, whole: float, *, several: bool) -> str:
    title = "Where it is lost" if whole < 0 else "Where it grows" if whole > 0 else "Why"
    return f"{title} ({finding.symptom})" if several else title


def _share(attribution: Attribution, whole: float, page: Page) -> list[Line]:
    """One cause: decades, share of the total, name, whether it helped, and its summary."""
    share = "" if attribution.share is None else percent(attribution.share)
    name = words(attribution.cause) + (" (helped)" if helped(attribution, whole) else "")
    said = attribution.summary
    known = said.lower().replace("_", " ").startswith(words(attribution.cause))
    text = f"{said} (helped)" if known and helped(attribution, whole) else said if known else _join(name, said)
    return wrap(f"{decades(attribution.decades):>7}  {share:>6}  {text}", page, lead="  ", hang=" " * 19)


def _join(name: str, summary: str) -> str:
    return f"{name}: {summary}" if summary else name


# The depth profile.


def spark(gains: Sequence[float | None], *, cells: int, ascii: bool = False) -> tuple[str, float, float]:
    """One sign for each site or bucket of sites, with the log10 of the lowest and the highest level, in decades.

    The span is at least 6 decades, and a level is centred on 0, so that a healthy net looks flat. Exact zero,
    not finite and not measured have signs of their own; a bucket shows its worst site.

    >>> spark([-7.0, -4.0, -1.0, 0.0], cells=10, ascii=True)
    (' -*#', -7.0, 0.0)
    """
    low, high = _levels([gain for gain in gains if gain is not None and math.isfinite(gain)])
    shades = " .:-=+*#" if ascii else "▁▂▃▄▅▆▇█"
    marks = "0X?" if ascii else "▽×·"
    count = min(max(cells, 1), len(gains))
    edges = [len(gains) * i // count for i in range(count + 1)] if count else []
    buckets = (gains[a:b] for a, b in pairwise(edges))
    return "".join(_sign(bucket, low, high, shades, marks) for bucket in buckets), low, high


def _levels(finite: list[float]) -> tuple[float, float]:
    """Lowest and highest level in decades: 0 in the middle of the fifth of 8 levels unless the data need the room."""
    low, high = -SPAN * 4 / 7, SPAN * 3 / 7
    lowest, highest = min(finite, default=0.0), max(finite, default=0.0)
    if highest - lowest > SPAN:
        return lowest, highest
    shift = min(lowest - low, 0.0) or max(highest - high, 0.0)
    return low + shift, high + shift


def _sign(bucket: Sequence[float | None], low: float, high: float, shades: str, marks: str) -> str:
    known = [gain for gain in bucket if gain is not None]
    if not known:
        return marks[2]
    if any(math.isnan(gain) or gain == math.inf for gain in known):
        return marks[1]
    if -math.inf in known:
        return marks[0]
    worst = max(known, key=abs)
    return shades[round((worst - low) / (high - low) * (len(shades) - 1))]


def _depth(diagnosis: Diagnosis, page: Page) -> list[Line]:
    gains = [row.log10_gain for row in last_rows(diagnosis)]
    if not any(gain is not None for gain in gains):
        return []
    text, low, high = spark(gains, cells=page.width - 20, ascii=page.ascii)
    lines = heading("Gradient by depth", page)
    lines.append(Line(f"  input |{text}| loss", "cyan"))
    many = f", {math.ceil(len(gains) / len(text))} layers a sign" if len(gains) > len(text) else ""
    marks = dict(zip("0X?" if page.ascii else "▽×·", ("exactly 0", "not finite", "not measured"), strict=True))
    legend = "".join(f"; {mark} {meaning}" for mark, meaning in marks.items() if mark in text)
    levels = f"from {decades(low)} (lowest sign) to {decades(high)} decades (highest) against the output's{many}"
    finite = any(gain is not None and math.isfinite(gain) for gain in gains)
    caption = levels + legend if finite else legend.removeprefix("; ")
    return lines + wrap(caption, page, lead="  ", hang="  ")


# The table of layers.


class Column(NamedTuple):
    """A column of the table: its heading, its cells, and the fewest cells it can be shortened to (0: never)."""

    title: str
    cells: list[str]
    least: int = 0

    @property
    def natural(self) -> int:
        """Width in terminal cells that shows everything."""
        return max(map(cell_len, (self.title, *self.cells)))

    @property
    def least_width(self) -> int:
        """Width in terminal cells that it needs at least."""
        return min(self.natural, self.least) if self.least else self.natural


DROPPED_FIRST = ("act rms", "kind", "zeros", "update ratio", "source")


def _layers(diagnosis: Diagnosis, page: Page) -> list[Line]:
    rows = last_rows(diagnosis)
    if not rows:
        return []
    shown = worst_first(diagnosis, rows)[:MAX_ROWS]
    columns = _columns(shown, page, roots=len({row.root for row in rows if row.root}) > 1)
    title = "Layers, worst first" if diagnosis.findings else "Layers, furthest from the output's size first"
    lines = heading(title, page) + table(columns, page, dropped_first=DROPPED_FIRST)
    rest = len(rows) - len(shown)
    if rest:
        lines += wrap(f"{rest} more layer{'s' if rest != 1 else ''} not shown", page, lead="  ", hang="  ")
    return lines


def _columns(rows: Sequence[ProfileRow], page: Page, *, roots: bool) -> list[Column]:
    """All columns that hold at least one number or name."""

    def cells(text: Callable[[ProfileRow], str]) -> list[str]:
        return [clean(text(row), ascii=page.ascii) for row in rows]

    columns = [
        Column("layer", cells(lambda row: label(row, roots=roots)), 12),
        Column("kind", cells(lambda row: row.kind), 8),
        Column("log10 gain", cells(lambda row: gain_words(row.log10_gain))),
        Column("act rms", cells(lambda row: _number(row.act_rms))),
        Column("zeros", cells(lambda row: percent(row.zero_frac))),
        Column("update ratio", cells(lambda row: _number(row.update_ratio))),
        Column("source", cells(lambda row: row.source or "-"), 16),
    ]
    return [c for c in columns if c.title in {"layer", "log10 gain"} or any(cell not in {"-", ""} for cell in c.cells)]


def table(columns: list[Column], page: Page, *, dropped_first: Sequence[str] = ()) -> list[Line]:
    """The columns as lines, headings first; those named in `dropped_first` go where the page has no room for them."""
    columns = _fitting(columns, page, dropped_first)
    widths = _widths(columns, page)
    lines = [Line(_row([c.title for c in columns], columns, widths, page), "dim")]
    rows = range(len(columns[0].cells))
    return lines + [Line(_row([c.cells[i] for c in columns], columns, widths, page)) for i in rows]


def _fitting(columns: list[Column], page: Page, dropped_first: Sequence[str]) -> list[Column]:
    """The columns that the page has room for."""
    for title in dropped_first:
        if _least(columns) <= page.width:
            break
        columns = [column for column in columns if column.title != title]
    return columns


def _least(columns: Sequence[Column]) -> int:
    return sum(2 + column.least_width for column in columns)


def _widths(columns: Sequence[Column], page: Page) -> list[int]:
    """Widths in terminal cells: what is left over goes to the layer's name, then to the others, left to right."""
    widths = [column.least_width for column in columns]
    spare = page.width - _least(columns)
    for i, column in enumerate(columns):
        more = max(0, min(spare, column.natural - widths[i]))
        widths[i] += more
        spare -= more
    return widths


def _row(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int], page: Page) -> str:
    """One row: names to the left, numbers to the right."""
    parts = []
    for text, column, width in zip(texts, columns, widths, strict=True):
        short = shorten(text, width, ascii=page.ascii, head=0.0 if column.title == "source" else 0.5)
        pad = " " * (width - cell_len(short))
        parts.append(short + pad if column.least else pad + short)
    return ("  " + "  ".join(parts)).rstrip()


# What level deep adds.


def _deep(diagnosis: Diagnosis, page: Page) -> list[Line]:
    said = deep_words(diagnosis)
    lines = [line for text in said for line in wrap(text, page, lead="  ", hang="    ")]
    return heading("Deeper", page) + lines if lines else []


def deep_words(diagnosis: Diagnosis) -> list[str]:
    """What level deep measured, a sentence each; empty at level flow."""
    deep, said = diagnosis.deep, []
    if deep is None:
        return []
    if deep.random_total is not None and deep.alignment is not None:
        chi = _chi(diagnosis, deep.random_total)
        said.append(
            f"the model alone: {decades(deep.random_total)} decades for a random gradient"
            f"{'' if chi is None else f' (chi {size(chi)} a layer)'}; "
            f"this loss adds {decades(deep.alignment)}"
        )
    if deep.wiring is not None:
        said.append(f"the wiring alone: {decades(deep.wiring)} decades if every layer had gain 1")
    ratios = sorted(row.gsnr for row in last_rows(diagnosis) if row.gsnr is not None)
    if ratios:
        middle, lost = ratios[len(ratios) // 2], ratios.count(0.0)
        found = [f"{size(middle)} in the median layer"] if middle else []
        found += [f"lost in the noise of this batch in {lost} of {len(ratios)} layers"] if lost else []
        said.append(f"signal to noise of one sample's gradient: {', '.join(found)}")
    if deep.hidden_rank is not None:
        said.append(
            f"rank of the last hidden layer: the samples differ in {size(deep.hidden_rank)} directions "
            f"of {deep.hidden_rank_most}"
        )
    return said


def _chi(diagnosis: Diagnosis, total: float) -> float | None:
    """Squared gain of a layer, the geometric mean along a chain; None where the way forks or is shorter than 3."""
    flows = [row.flow for row in last_rows(diagnosis) if row.role == "weight" and row.flow]
    steps = len(flows) - 1
    return 10 ** (2 * total / steps) if steps > 1 and all(flow > 0.95 for flow in flows) else None


# What to try, what was not looked at.


def _prescriptions(prescriptions: Sequence[Prescription], page: Page) -> list[Line]:
    if not prescriptions:
        return []
    first, *others = prescriptions
    lines = heading("What to try first", page)
    lines += wrap(remedies(first), page, lead="  ", hang="    ", style="bold")
    if first.expected:
        lines += wrap(f"expected: {first.expected}", page, lead="  ", hang="    ")
    lines += code_lines(first.in_your_code, page)
    for other in others:
        lines += wrap(f"or: {_join(remedies(other), other.expected)}", page, lead="  ", hang="    ")
    return lines


def code_lines(code: str, page: Page) -> list[Line]:
    """Lines to paste, never broken."""
    lines = [clean(line, ascii=page.ascii) for line in code.expandtabs(4).splitlines()]
    return [Line(f"      {line}".rstrip(), "cyan") for line in lines]


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _not_checked(diagnosis: Diagnosis, page: Page) -> list[Line]:
    reasons = not_checked(diagnosis)
    if not reasons:
        return []
    lines = heading("Not checked", page)
    for reason, symptoms in reasons:
        lines += wrap(f"{', '.join(symptoms)}: {reason}", page, lead="  ", hang="    ")
    return lines


def _notes(diagnosis: Diagnosis, page: Page) -> list[Line]:
    if not diagnosis.notes:
        return []
    lines = heading("Notes", page)
    for note in diagnosis.notes:
        lines += wrap(note, page, lead="  ", hang="    ")
    return lines


def _origin(diagnosis: Diagnosis, page: Page) -> list[Line]:
    lines = wrap(overhead_words(diagnosis), page, hang="  ", style="dim")
    return lines + wrap(", ".join(origin(diagnosis)), page, hang="  ", style="dim")


# Letters and lines.


def shorten(text: str, width: int, *, ascii: bool = False, head: float = 0.5) -> str:
    """At most `width` terminal cells: the middle goes first, because both ends of a name tell more.

    `head` is the part of the room that the beginning gets, 0 for a file:line, whose end says most.

    >>> shorten("encoder.layers.11.attention.out_proj", 20)
    'encoder.l…n.out_proj'
    """
    if cell_len(text) <= width:
        return text
    mark = ("..." if ascii else "…")[: max(width, 0)]
    room = width - cell_len(mark)
    before = int(room * head)
    start = chop_cells(text, before)[0] if before > 0 else ""
    end = chop_cells(text[::-1], room - before)[0][::-1] if room > before else ""
    return start + mark + end


def wrap(text: str, page: Page, *, lead: str = "", hang: str = "", style: str = "") -> list[Line]:
    """The text broken at spaces; `lead` stands before the first line, `hang` before the others. Runs of spaces
    inside a line stay, so that columns of numbers line up."""
    lines: list[str] = []
    current, empty = lead, True
    for word in _pieces(clean(text, ascii=page.ascii), page.width - max(len(lead), len(hang))):
        if not empty and cell_len(current + word.rstrip()) > page.width:
            lines.append(current.rstrip())
            current, empty = hang, True
            if word.isspace():
                continue
        current, empty = current + word, False
    lines.append(current.rstrip())
    return [Line(line, style) for line in lines if line]


def _pieces(text: str, width: int) -> list[str]:
    """Words with the spaces that follow them; a word wider than `width` cells is cut."""
    pieces: list[str] = []
    for word in text.split(" "):
        pieces += [*(chop_cells(word, width) if cell_len(word) > width else [word])]
        pieces[-1] += " "
    return pieces


def clean(text: str, *, ascii: bool = False) -> str:
    """Without control characters (a name may hold an escape sequence), in ASCII where asked for."""
    text = "".join(ch if ch.isprintable() else " " if ch.isspace() else "?" for ch in text)
    if not ascii:
        return text
    plain = "".join(PLAIN.get(ch, ch) for ch in text)
    return plain.encode("ascii", "backslashreplace").decode("ascii")


def heading(text: str, page: Page) -> list[Line]:
    """A line that opens a block."""
    return wrap(text, page, style="bold")


def _stop(sentence: str) -> str:
    """The sentence with exactly one full stop."""
    return sentence.rstrip().rstrip(".") + "."


def _number(value: float | None) -> str:
    return "-" if value is None else size(value)


def _two(value: float) -> str:
    """Two significant digits without an exponent where people expect none."""
    return f"{float(f'{value:.2g}'):g}"


def paint(line: Line) -> str:
    """The line with its style as ANSI codes."""
    return Style.parse(line.style).render(line.text, color_system=ColorSystem.STANDARD) if line.style else line.text
