"""What was measured: the header of a run, its sampled steps and its events, and their JSON lines.

Sizes are per element (RMS) except `delta_norm`, the L2 norm of dLoss/d(site output) per sample, root mean
square over the batch. A missing number is None. `run.jsonl`: line 1 the header, then one line a sampled
step (columnar: one array for each column over the sites or params), a line for each site, parameter or
optimizer that appears later, and a line for each event. Every line is written whole and flushed, so that
a kill loses at most the step in flight; a torn last line is ignored when reading.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gradwell.errors import UnreadableInput
from gradwell.records.numbers import from_json, to_json

if TYPE_CHECKING:
    import pandas as pd

    from gradwell.records.verdict import Diagnosis

SCHEMA = 1
SITE_COLUMNS = (
    "act_rms", "act_mean", "delta_norm", "zero_frac", "dead_frac", "saturated_frac", "nonfinite",
    "spread", "leaf_gain", "isotropic", "flow",
)  # fmt: skip
"""Columns over the sites. `leaf_gain`: log10 of |gradient into the leaf's input| / |gradient at its output|,
by this call alone. `isotropic`: the part of it that a random direction would see. `flow`: share of the
gradient's flow from the deepest site to the loss that passes here, 0 to 1. `spread`: variance between the
samples of the batch over the mean square. `nonfinite`: number of NaN and infinite outputs."""
PARAM_COLUMNS = ("weight_rms", "grad_rms", "update_rms", "grad_nonfinite", "grad_underflow_frac", "twin_frac")
"""Columns over the parameters. `update_rms`: weight after the optimizer's step minus before. `twin_frac`: share of a
weight's rows (units) that another row equals in weight and in gradient."""


DEEP_SITE_COLUMNS = ("path_flow", "chi", "random_gain", "forward_gain", "rank")
"""Columns over the sites at level deep. `path_flow`: mean flow along the Aumann-Shapley path (`measure.attribution`).
`chi`: |J^T v|^2 / |v|^2 of this call alone for a random v, a fresh one at each site. `random_gain`: log10 |v here| /
|v at the output| of a random gradient that is sent into the model's output. `forward_gain`: log10 of the RMS of what a
small random change of the deepest site's output becomes here, over its own. `rank`: participation ratio of the outputs
(`measure.spectrum`)."""
DEEP_PARAM_COLUMNS = ("gsnr",)
"""Columns over the parameters at level deep. `gsnr`: |E g|^2 / Var g of the gradient of one sample."""


class Site(msgspec.Struct, frozen=True):
    """A place where dLoss/d(output) is measured: one call of a leaf module or of a functional activation.

    `role`: "weight", "activation", "norm", "source" (an embedding: the gradient ends there), "loss" or "other".
    `order`: place in the forward order of one backward. `fan_in`, `fan_out`: units in and out, where known.
    """

    site: str
    kind: str
    call: int = 0
    order: int = 0
    root: str = ""
    source: str | None = None
    role: str = "other"
    fan_in: int | None = None
    fan_out: int | None = None


class Param(msgspec.Struct, frozen=True):
    """A parameter: its name, the site that owns it, its shape and its optimizer group (None: in none).

    `frozen`: it asked for no gradient when it was first seen.
    """

    name: str
    site: str
    shape: list[int]
    group: str | None = None
    frozen: bool = False


class OptimizerInfo(msgspec.Struct, frozen=True):
    """An optimizer as it was seen: class name and the settings of its first group."""

    kind: str
    settings: dict[str, float | bool | str | None] = {}

    @property
    def adaptive(self) -> bool:
        """True when the step is rescaled per parameter (Adam and its kin), so that small gradients still move."""
        name = self.kind.lower()
        return any(word in name for word in ("adam", "rms", "adagrad", "adadelta", "lion", "rprop", "sign", "lamb"))


class Header(msgspec.Struct, frozen=True, weakref=True):
    """Line 1 of a run: the tool, the machine, the sites and the parameters."""

    tool: str
    torch: str = ""
    python: str = ""
    device: str = ""
    dtype: str = ""
    argv: list[str] = []
    started: str = ""
    seed: int | None = None
    optimizers: list[OptimizerInfo] = []
    sites: list[Site] = []
    params: list[Param] = []
    columns: list[str] = msgspec.field(default_factory=lambda: [*SITE_COLUMNS, *PARAM_COLUMNS])
    schema: int = SCHEMA


Column = list[float | None]


class Deep(msgspec.Struct, frozen=True):
    """What level deep measures of a step as a whole; null was not measured, and `not_measured` says why.

    Decades, log10 |delta at the source| / |delta at the output|: `wiring` of a net in which every layer has gain 1;
    `rest` of the quadrature over `nodes` nodes, so that wiring + sum of path_flow * leaf_gain + rest is the total;
    `random_total` of a random gradient that is sent into the model's output, `alignment` what the loss's own gradient
    has more than that.
    `hidden_rank`: participation ratio of what the output layer takes in, `hidden_rank_most` the largest possible.
    """

    wiring: float | None = None
    rest: float | None = None
    nodes: int | None = None
    random_total: float | None = None
    alignment: float | None = None
    hidden_rank: float | None = None
    hidden_rank_most: int | None = None
    not_measured: dict[str, str] = {}


class Step(msgspec.Struct, frozen=True, weakref=True):
    """One sampled step. `sites` and `params` map a column's name to its numbers, in the header's order.

    `total`: log10 |delta at the deepest site| / |delta at the model's output|, None where there is no such path;
    `source` and `output` are the indices of these two sites. `batch`: samples (axis 0 of the output site).
    `input_rms`, `input_mean`: of the first floating tensor that the outermost module was given. `deep`: only at level
    deep, whose columns are in `sites` and `params` too. `lags`: for each
    fused recurrent layer (`name`, and `name:reverse`) log10 of the gradient that its last output sends to each lag,
    lag 0 first. `heard`: log10 of the size of dLoss/d(output) at each step before the end, relative to the largest.
    `links`: by lag, how alike the samples differ in that gradient and in the input so long before, 0 (chance) to 1;
    also for recurrent cells, from their last call.
    """

    step: int
    micro_steps: int = 1
    time_s: float = 0.0
    loss: float | None = None
    loss_scale: float | None = None
    grad_norm: float | None = None
    total: float | None = None
    source: int | None = None
    output: int | None = None
    batch: int | None = None
    input_rms: float | None = None
    input_mean: float | None = None
    lags: dict[str, Column] = {}
    heard: dict[str, Column] = {}
    links: dict[str, Column] = {}
    deep: Deep | None = None
    sites: dict[str, Column] = {}
    params: dict[str, Column] = {}

    def at(self, column: str, index: int) -> float | None:
        """One number of a site, None where it was not measured."""
        values = self.sites.get(column)
        return values[index] if values is not None and index < len(values) else None

    def of(self, column: str, index: int) -> float | None:
        """One number of a parameter, None where it was not measured."""
        values = self.params.get(column)
        return values[index] if values is not None and index < len(values) else None

    def all_at(self, column: str, count: int) -> Column:
        """The numbers of so many sites at least, None where they were not measured. Do not change the list."""
        return _filled(self.sites.get(column), count)

    def all_of(self, column: str, count: int) -> Column:
        """The numbers of so many parameters at least, None where they were not measured. Do not change the list."""
        return _filled(self.params.get(column), count)


def _filled(values: Column | None, count: int) -> Column:
    """A column of at least that length; what it lacks is None."""
    if values is None:
        return [None] * count
    return values if len(values) >= count else [*values, *[None] * (count - len(values))]


class Event(msgspec.Struct, frozen=True):
    """Something that happened between samples: `nonfinite_loss`, `rescue`, `instrument_failed`, `ended`, ...

    `losses`: the loss of each step from `step` on (`values`, None where there was none to read) and, where there are
    several, the optimizer that took it (`optimizers`). `unusual_loss`: a loss far above the usual one, with the RMS of
    its batch and the norm of its gradient. `rescue`: a step that was `skipped`, and the parameters whose gradient was
    not finite; `not_rescued`: steps that cannot be guarded, with the reason.
    """

    event: str
    step: int
    detail: dict[str, Any] = {}


class Curve(msgspec.Struct, frozen=True):
    """The loss of each step that one optimizer took; `optimizer`: its place in the header."""

    optimizer: int
    steps: list[int]
    values: list[float]


class Run(msgspec.Struct, frozen=True):
    """A training as it was recorded. `folder` is None for a run that lives in memory only."""

    header: Header
    steps: list[Step] = []
    events: list[Event] = []
    folder: str | None = None
    overhead: float | None = None

    @property
    def sites(self) -> list[Site]:
        """All sites, in the order of the columns."""
        return self.header.sites

    @property
    def optimizer(self) -> OptimizerInfo | None:
        """The first optimizer seen, None for a training without one."""
        return self.header.optimizers[0] if self.header.optimizers else None

    def losses(self) -> list[Curve]:
        """The loss of every step, a curve for each optimizer that stepped on a loss, in the order of the first steps.

        The mean over the backward passes of a step, without the loss scale. Of a run that has no such lines (a check,
        a record of before) the loss of its sampled steps.
        """
        found: dict[int, Curve] = {}
        lines = [event for event in self.events if event.event == "losses"]
        for event in lines:
            values = event.detail["values"]
            optimizers = event.detail.get("optimizers", [0] * len(values))
            for step, (optimizer, value) in enumerate(zip(optimizers, values, strict=True), start=event.step):
                if value is not None:
                    curve = found.setdefault(optimizer, Curve(optimizer, [], []))
                    curve.steps.append(step)
                    curve.values.append(value)
        if not lines:
            known = [(step.step, step.loss) for step in self.steps if step.loss is not None]
            found = {0: Curve(0, [step for step, _ in known], [loss for _, loss in known])} if known else {}
        return list(found.values())

    def diagnose(self, **options: Any) -> Diagnosis:
        """Symptoms, causes and what to try first, from the records alone.

        The rules live above the records, so they are loaded by name.
        """
        diagnosis: Diagnosis = importlib.import_module("gradwell.journeys.diagnose").diagnose(self, **options)
        return diagnosis

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # Pictures live above the records, so they are loaded by name.
        bundle: dict[str, Any] = importlib.import_module("gradwell.report.notebook").run_mimebundle(self)
        return bundle

    def to_frame(self) -> pd.DataFrame:
        """The site columns as a table: one row for each sampled step and site."""
        import pandas as pd

        rows = [
            {"step": step.step, "loss": step.loss, **msgspec.structs.asdict(site),
             **{column: step.at(column, i) for column in SITE_COLUMNS}}
            for step in self.steps
            for i, site in enumerate(self.sites)
        ]  # fmt: skip
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame


def header_line(header: Header) -> bytes:
    """Line 1 of `run.jsonl`."""
    fields = msgspec.to_builtins(header)
    return msgspec.json.encode(to_json({"schema": fields.pop("schema"), **fields})) + b"\n"


def step_line(step: Step) -> bytes:
    """One sampled step as a line: scalars first, then one array for each column."""
    fields = msgspec.to_builtins(step)
    columns = {**fields.pop("sites"), **fields.pop("params")}
    return msgspec.json.encode(to_json({**fields, **columns})) + b"\n"


def event_line(event: Event) -> bytes:
    """One event as a line."""
    return msgspec.json.encode(to_json(msgspec.to_builtins(event))) + b"\n"


def site_line(site: Site) -> bytes:
    """A site that appeared after the header was written."""
    return msgspec.json.encode({"new_site": msgspec.to_builtins(site)}) + b"\n"


def param_line(param: Param) -> bytes:
    """A parameter that appeared after the header was written."""
    return msgspec.json.encode({"new_param": msgspec.to_builtins(param)}) + b"\n"


def optimizer_line(optimizer: OptimizerInfo) -> bytes:
    """An optimizer that appeared after the header was written."""
    return msgspec.json.encode(to_json({"new_optimizer": msgspec.to_builtins(optimizer)})) + b"\n"


def load(path: str | Path) -> Run:
    """Read a run from its folder or from its `run.jsonl`, also while it is still being written.

    Raises `UnreadableInput` when there is no such file, when line 1 is not a header or when a later line is damaged.
    """
    file = Path(path)
    try:
        file = file / "run.jsonl" if file.is_dir() else file
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UnreadableInput(
            f"No run at {path}: there is no {file.name}; name a folder written by `gradwell run`."
        ) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UnreadableInput(f"Cannot read {file}: {reason}; name a folder written by `gradwell run`.") from None
    if lines == [b""]:
        raise UnreadableInput(f"{file} is still empty: no step has been recorded yet; wait for the first one.")
    header = _read_header(lines[0], file)
    steps: list[Step] = []
    events: list[Event] = []
    for number, line in enumerate(lines[1:-1], start=2):  # what follows the last newline is torn or empty
        try:
            _read_line(line, header, steps, events)
        except (msgspec.MsgspecError, TypeError, ValueError, KeyError, AttributeError) as problem:
            raise UnreadableInput(
                f"{file}, line {number} is damaged ({problem}); remove that line to read the others."
            ) from None
    return Run(header, steps, events, folder=str(file.parent), overhead=_overhead(events))


def _read_header(line: bytes, file: Path) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, ValueError) as problem:
        raise UnreadableInput(f"{file} is no run: line 1 is not a header ({problem}); name a `run.jsonl`.") from None
    if header.schema > SCHEMA:
        raise UnreadableInput(
            f"{file} has schema {header.schema}, this gradwell reads up to {SCHEMA}; update gradwell."
        )
    return header


def _read_line(line: bytes, header: Header, steps: list[Step], events: list[Event]) -> None:
    fields = msgspec.json.decode(line, type=dict[str, Any])
    if "new_site" in fields:
        header.sites.append(msgspec.convert(fields["new_site"], Site))
    elif "new_param" in fields:
        header.params.append(msgspec.convert(fields["new_param"], Param))
    elif "new_optimizer" in fields:
        header.optimizers.append(msgspec.convert(fields["new_optimizer"], OptimizerInfo))
    elif "event" in fields:
        event = msgspec.convert(fields, Event)
        events.append(msgspec.structs.replace(event, detail={k: _number(v) for k, v in event.detail.items()}))
    else:
        by_lag = {
            field: {name: [from_json(x) for x in column] for name, column in fields.pop(field, {}).items()}
            for field in ("lags", "heard", "links")
        }
        columns = {name: [from_json(x) for x in fields.pop(name)] for name in list(fields) if _is_column(fields[name])}
        step = msgspec.convert({name: _number(value) for name, value in fields.items()}, Step)
        of_params = (*PARAM_COLUMNS, *DEEP_PARAM_COLUMNS)
        sites = {name: columns[name] for name in columns if name not in of_params}
        params = {name: columns[name] for name in columns if name in of_params}
        steps.append(msgspec.structs.replace(step, **by_lag, sites=sites, params=params))


def _number(value: Any) -> Any:
    """A non-finite number back from its name, also in a list; everything else as it is."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return from_json(value) if value in ("nan", "inf", "-inf") else value


def _is_column(value: Any) -> bool:
    return isinstance(value, list)


def _overhead(events: Iterable[Event]) -> float | None:
    return next((event.detail.get("overhead") for event in events if event.event == "ended"), None)


class RunWriter:
    """Writes `run.jsonl` line by line; a failing disk is told once and never stops the training."""

    def __init__(self, file: Path, on_failure: Callable[[str], None] | None = None) -> None:
        self._file = file
        self._on_failure = on_failure
        self._stream: io.FileIO | None = None
        self._failed = False

    def write(self, line: bytes) -> None:
        """Append one whole line; it is with the operating system when this returns."""
        if self._failed:
            return
        try:
            if self._stream is None:
                self._stream = self._file.open("wb", buffering=0)
            while line:  # a disk that is filling up takes a part and refuses the rest
                line = line[self._stream.write(line) :]
        except OSError as problem:
            self._fail(problem)

    def close(self) -> None:
        """Close the file."""
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                stream.close()
        except OSError as problem:
            self._fail(problem)

    def _fail(self, problem: OSError) -> None:
        told, self._failed = self._failed, True
        if self._on_failure is not None and not told:
            self._on_failure(f"Cannot write {self._file}: {problem.strerror}; the training goes on unrecorded.")


def finite(values: Sequence[float | None]) -> list[float]:
    """The measured, finite numbers of a column."""
    return [value for value in values if value is not None and math.isfinite(value)]


__all__ = [
    "DEEP_PARAM_COLUMNS", "DEEP_SITE_COLUMNS", "PARAM_COLUMNS", "SCHEMA", "SITE_COLUMNS", "Column", "Curve", "Deep",
    "Event", "Header", "OptimizerInfo", "Param", "Run", "RunWriter", "Site", "Step", "event_line", "finite",
    "header_line", "load", "optimizer_line", "param_line", "site_line", "step_line",
]  # fmt: skip
