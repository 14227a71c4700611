"""A treatment as plain text: what cures first, the evidence for every arm, the change to make.

Effects are decades of log10 loss against the baseline at its own best learning rate: -1 is a tenth of the loss.
"""

from __future__ import annotations

import math

from gradwell.records.text import (
    NARROWEST,
    Column,
    Line,
    Page,
    clean,
    code_lines,
    heading,
    joined,
    render_line,
    short_remedies,
    table,
    wrap,
)
from gradwell.records.treatment import Interval, Outcome, Treatment

STYLES = {"cures": "bold green", "helps": "green", "no effect": "yellow", "undecided": "bold", "harms": "bold red"}


def render_treatment(treatment: Treatment, *, width: int = 80, color: bool = False, ascii: bool = False) -> str:
    """The whole treatment as text, at most `width` terminal cells wide (at least 40), ending without a newline."""
    page = Page(max(width, NARROWEST), ascii)
    blocks = (
        _verdict(treatment, page),
        _arms(treatment, page),
        _change(treatment, page),
        _notes(treatment, page),
        _method(treatment, page),
    )
    return joined(blocks, color=color)


def verdict_words(treatment: Treatment) -> str:
    """The result in one sentence."""
    if treatment.diagnosis.verdict == "undecided" and not treatment.outcomes:
        return render_line(treatment.diagnosis)
    if not treatment.sick and not treatment.outcomes:
        return f"NOTHING TO CURE: {render_line(treatment.diagnosis)}"
    best = treatment.best
    if best is None:
        return f"NOTHING CURES: {_nothing(treatment)}"
    word = "CURED" if best.verdict == "cures" else "HELPED, NOT CURED"
    gone = f"; gone: {', '.join(best.cured)}" if best.cured else ""
    new = f"; new: {', '.join(best.caused)}" if best.caused else ""
    return f"{word} by {best.name}: {effect_words(best)}{gone}{new}"


def effect_words(outcome: Outcome) -> str:
    """The effect on the loss with its interval, as a ratio and in decades."""
    effect = outcome.effect_log10_loss
    if effect is None:
        return "not measured"
    return f"the loss becomes {ratio_words(effect)} ({number(effect)} decades, 95 % interval {span(outcome.interval)})"


def ratio_words(effect: float) -> str:
    """A ratio of two losses from its log10.

    >>> ratio_words(-1.0), ratio_words(-0.1), ratio_words(0.3)
    ('10 times smaller', '21 % smaller', '2.0 times larger')
    """
    ratio = 10 ** abs(effect)
    if effect < 0 and ratio < 1.5:
        return f"{round(100 * (1 - 1 / ratio))} % smaller"
    if ratio < 1.5:
        return f"{round(100 * (ratio - 1))} % larger"
    text = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return f"{text} times {'smaller' if effect < 0 else 'larger'}"


def number(value: float | None) -> str:
    """Decades with a sign and two decimals, `-` for what was not measured."""
    if value is None:
        return "-"
    return f"{value:+.2f}" if math.isfinite(value) else f"{value}"


def span(interval: Interval) -> str:
    """An interval as `-1.90 to -1.30`, `-` where there is none."""
    low, high = interval
    return "-" if low is None or high is None else f"{number(low)} to {number(high)}"


def _nothing(treatment: Treatment) -> str:
    judged = [outcome for outcome in treatment.outcomes if outcome.interval[0] is not None]
    if not treatment.outcomes:
        return "no remedy that is known fits this training."
    if not judged:
        return f"the time was too short to judge any of the {len(treatment.outcomes)} arms; give more minutes."
    return f"none of the {len(judged)} arms that were judged on fresh seeds lowers the loss for certain."


def _verdict(treatment: Treatment, page: Page) -> list[Line]:
    best = treatment.best
    healthy = not treatment.sick and not treatment.outcomes
    style = "bold green" if healthy else STYLES[best.verdict] if best else "bold red"
    lines = wrap(verdict_words(treatment), page, hang="  ", style=style)
    if not healthy:
        lines += wrap(f"diagnosed: {render_line(treatment.diagnosis)}", page, hang="  ")
    return lines


def _arms(treatment: Treatment, page: Page) -> list[Line]:
    if not treatment.outcomes:
        return []
    shown = treatment.outcomes

    def cells(texts: list[str]) -> list[str]:
        return [clean(text, ascii=page.ascii) for text in texts]

    columns = [
        Column("verdict", cells([o.verdict for o in shown]), 9),
        Column("remedies", cells([short_remedies(o.remedies) for o in shown]), min(max(12, page.width - 46), 34)),
        Column("effect", cells([number(o.effect_log10_loss) for o in shown])),
        Column("95 % interval", cells([span(o.interval) for o in shown])),
        Column("rate", cells([f"x{o.lr_scale:g}" for o in shown])),
        Column("time", cells(["-" if o.step_time_ratio is None else f"x{o.step_time_ratio:.2f}" for o in shown])),
        Column("failed", cells([_failed(o) for o in shown])),
    ]
    title = "What was tried, best first (decades of loss against the baseline; negative is better)"
    return heading(title, page) + table(columns, page, dropped_first=("time", "failed", "rate", "95 % interval"))


def _failed(outcome: Outcome) -> str:
    return "-" if outcome.infeasible_frac is None else f"{round(100 * outcome.infeasible_frac)} %"


def _change(treatment: Treatment, page: Page) -> list[Line]:
    best = treatment.best
    if best is None or not best.in_your_code:
        return []
    return heading(f"The change to make ({best.verdict})", page) + code_lines(best.in_your_code, page)


def _notes(treatment: Treatment, page: Page) -> list[Line]:
    noted = [*treatment.notes, *(f"{o.name}: {o.note}" for o in treatment.outcomes if o.note)]
    if not noted:
        return []
    lines = heading("Notes", page)
    for note in dict.fromkeys(noted):
        lines += wrap(note, page, lead="  ", hang="    ")
    return lines


def _method(treatment: Treatment, page: Page) -> list[Line]:
    words = method_words(treatment)
    return wrap(words, page, hang="  ", style="dim") if words else []


def method_words(treatment: Treatment) -> str:
    """How it was tried: steps, seeds, rates, control and time; empty where nothing was."""
    if treatment.baseline is None:
        return ""
    control, itself = treatment.control, "; there was no time for the control"
    if control is not None and control.effect_log10_loss is not None:
        itself = f"; the baseline against itself: {number(control.effect_log10_loss)} ({span(control.interval)})"
    left = any(outcome.interval[0] is None for outcome in treatment.outcomes)
    screened = " An arm without an interval left in the screening, or had no time." if left else ""
    return (
        f"{treatment.steps} steps a run, {treatment.seeds} fresh seeds, each arm at its own best learning rate, the "
        f"baseline at x{treatment.baseline.lr_scale:g} of its rate{itself}. "
        f"{treatment.seconds:.0f} seconds.{screened}"
    )
