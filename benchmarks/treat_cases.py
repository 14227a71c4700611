"""Cases that `gw.treat` is to cure: each is treated, its record kept, and docs/treatments.md written from the records.

Nothing is told to the trial but the training itself, except in the XOR case, which names its arms: the lesson's cures
and two that are none. A case is cured when the trial says so on fresh seeds.

`--control N` treats N small trainings, healthy and sick, with one arm that changes nothing, and counts how often the
interval of the baseline against itself, and that arm's, holds 0.

    python benchmarks/treat_cases.py [CASE ...] [--minutes 1.5] [--records runs/treat_cases] [--doc docs/treatments.md]
    python benchmarks/treat_cases.py --control 100
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from gradwell.journeys.treat import treat
from gradwell.lab.data import adding
from gradwell.lab.nets import build
from gradwell.lab.tasks import batches, loss_fn
from gradwell.records.net import NetConfig
from gradwell.records.text import remedy as told
from gradwell.records.treatment_text import number, span
from gradwell.records.verdict import Remedy
from gradwell.surgery.setup import TrainSetup
from gradwell.trial.arms import Arm

Net = NetConfig


class Case(NamedTuple):
    """A sick training; `arms` None: what the diagnosis asks for."""

    name: str
    what: str
    setup: Callable[[], TrainSetup]
    minutes: float = 1.0
    arms: tuple[Arm, ...] | None = None


def of(config: NetConfig, *, steps: int = 300) -> TrainSetup:
    """A net of the lab as a training."""
    extra = {"momentum": config.momentum} if config.optimizer == "SGD" else {}
    make = partial(getattr(torch.optim, config.optimizer), lr=config.lr, **extra)
    return TrainSetup(build(config), make, loss_fn(config), partial(_seeded, config), steps=steps)


def _seeded(config: NetConfig, seed: int) -> Iterator[Any]:
    return batches(msgspec.structs.replace(config, seed=seed))


# XOR as in the lesson: U(0, 1) weights and biases, one sample an update, in a fixed order, float64: the residual net
# starts with an output of 1 - 1e-9, which is 1 in float32, and has then no gradient at all.

XOR = [([0.0, 0.0], 0.0), ([0.0, 1.0], 1.0), ([1.0, 0.0], 1.0), ([1.0, 1.0], 0.0)]


def xor(depth: int = 10, width: int = 4) -> TrainSetup:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(2, width), nn.Sigmoid()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(width, 1), nn.Sigmoid()).double()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(0, 1)
    make = partial(torch.optim.Adam, lr=1e-3, eps=1e-7, fused=True)
    return TrainSetup(model, make, _half_square, _in_order, steps=24_000)


def _half_square(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return 2 * (model(x) - y).square().mean()  # four samples together: the lesson's sum of (y - t)^2 / 2


def _in_order(_: int) -> Iterator[Any]:
    while True:
        for x, y in XOR:
            yield torch.tensor([x], dtype=torch.double), torch.tensor([[y]], dtype=torch.double)


def arm(*remedies: tuple[str, dict[str, Any]]) -> Arm:
    return Arm(tuple(Remedy(name, settings) for name, settings in remedies))


XOR_ARMS = (
    arm(("add_shortcut", {"form": "identity", "over": 1})),
    arm(("swap_activation", {"to": "leaky_relu"}), ("reinit", {"init": "he"})),
    arm(("swap_activation", {"to": "elu"}), ("reinit", {"init": "xavier"})),
    arm(("reinit", {"init": "centred_sigmoid"})),
    arm(("reinit", {"init": "xavier"})),
    arm(("swap_activation", {"to": "relu"})),
)


# The adding problem at T = 100.


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(2, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(x)[0][:, -1])
        return out


def adding_100() -> TrainSetup:
    torch.manual_seed(0)
    return TrainSetup(Reader(), partial(torch.optim.Adam, lr=3e-3), _square, _sums, clip_norm=1.0, steps=2500)


def _square(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def _sums(seed: int) -> Iterator[Any]:
    return adding(100).stream(Net(batch_size=32, seed=seed))


CASES = (
    Case("deep_sigmoid", "8 sigmoid layers, PyTorch's init, SGD", lambda: of(Net(depth=8, activation="sigmoid"))),
    Case("default_relu", "14 ReLU layers, PyTorch's init, SGD", lambda: of(Net(depth=14))),
    Case("bn_relu_60", "60 layers of batch norm and ReLU without shortcuts, SGD",
         lambda: of(Net(depth=60, norm="batch", width=32, batch_size=32, lr=0.01), steps=200), 9.0),
    Case("he_times_3", "10 ReLU layers, He's weights times 3, SGD", lambda: of(Net(depth=10, init="he", gain=3.0))),
    Case("dead_units", "4 ReLU layers, biases of -4, SGD", lambda: of(Net(depth=4, init="he", bias_value=-4.0))),
    Case("unscaled_input", "3 tanh layers, inputs 0 to 255, SGD",
         lambda: of(Net(depth=3, activation="tanh", init="xavier", input_scale=255.0))),
    Case("rate_too_high", "4 ReLU layers with He, learning rate 100 times too high",
         lambda: of(Net(depth=4, init="he", lr=5.0))),
    Case("rate_too_low", "4 ReLU layers with He, learning rate 10,000 times too low",
         lambda: of(Net(depth=4, init="he", lr=5e-6))),
    Case("conv_30", "30 plain convolutions, PyTorch's init, SGD",
         lambda: of(Net(kind="cnn", depth=30, width=8, batch_size=16), steps=200), 10.0),
    Case("post_ln", "post-LN transformer of 12 blocks without warm-up, Adam",
         lambda: of(Net(kind="transformer", depth=12, width=32, norm_place="post", optimizer="Adam", lr=3e-3,
                        batch_size=32), steps=200), 6.0),
    Case("zero_init", "3 tanh layers, all weights 0, SGD", lambda: of(Net(depth=3, activation="tanh", init="zeros"))),
    Case("adding_100", "tanh RNN of 32 units on the adding problem, T = 100, Adam, clipped at 1", adding_100, 15.0),
    Case("xor", "XOR with ten hidden sigmoid layers, as in the lesson, Adam", xor, 30.0, XOR_ARMS),
    Case("healthy", "4 ReLU layers with He, SGD: healthy", lambda: of(Net(depth=4, init="he"))),
)  # fmt: skip


# Trainings for the control: each of these nets with ten inits of its own.

CONTROLS = (
    Net(depth=2), Net(depth=4, init="he"), Net(depth=8, activation="sigmoid"), Net(depth=10, init="he", gain=3.0),
    Net(depth=4, activation="tanh", optimizer="Adam", lr=1e-3), Net(depth=6, norm="batch"),
    Net(depth=4, activation="gelu", norm="layer"), Net(kind="residual", depth=6), Net(kind="cnn", depth=3, width=8),
    Net(kind="rnn", task="recent", depth=1, width=16, lr=0.02),
)  # fmt: skip
SHORT = 40
"""Steps of a training of the control."""


def controls(count: int, records: Path) -> None:
    """Whole treatments with an arm that changes nothing; one line of JSON for each in `control.jsonl`."""
    nothing = (arm(("weight_decay", {"decay": 0.0})),)
    with (records / "control.jsonl").open("w") as file:
        for k in range(count):
            config = msgspec.structs.replace(CONTROLS[k % len(CONTROLS)], seed=k // len(CONTROLS), batch_size=32)
            found = treat(of(config, steps=SHORT), minutes=2, arms=nothing, argv=["control"])
            own = [outcome for outcome in found.outcomes if outcome.remedies[0].id == "weight_decay"]
            line = {
                "net": msgspec.to_builtins(config), "seeds": found.seeds, "steps": found.steps,
                "control": found.control.interval, "nothing": own[0].interval, "verdict": own[0].verdict,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            file.flush()


def control_words(records: Path) -> list[str]:
    """The section on the control, nothing where it was not run."""
    path = records / "control.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    held = [sum(line[name][0] <= 0 <= line[name][1] for line in lines) for name in ("control", "nothing")]
    words = [line["verdict"] for line in lines]
    return [
        "\n## The control\n",
        f"{len(lines)} whole treatments (`--control {len(lines)}`) of ten small nets with inits of their own, "
        f"{lines[0]['steps']} steps, {lines[0]['seeds']} seeds, and one arm that changes nothing (weight decay of 0). "
        f"The interval of the baseline against itself on other seeds held 0 in {held[0]}, the interval of the arm in "
        f"{held[1]}; its verdicts: {', '.join(f'{words.count(w)} {w}' for w in sorted(set(words)))}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="default: all")
    parser.add_argument("--control", type=int, metavar="N", help="so many treatments with an arm that changes nothing")
    parser.add_argument("--minutes", type=float, help="for each case, instead of its own")
    parser.add_argument("--records", type=Path, default=Path("runs/treat_cases"))
    parser.add_argument("--doc", type=Path, default=Path("docs/treatments.md"))
    args = parser.parse_args()
    args.records.mkdir(parents=True, exist_ok=True)
    if args.control:
        controls(args.control, args.records)
    for case in CASES:
        if case.name in args.cases or not (args.cases or args.control):
            run(case, args.minutes or case.minutes, args.records)
    args.doc.write_text(document(args.records))


def run(case: Case, minutes: float, records: Path) -> None:
    """Treat a case and keep its record."""
    started = time.perf_counter()
    treatment = treat(case.setup(), minutes=minutes, arms=case.arms, argv=[case.name])
    print(f"{case.name}: {time.perf_counter() - started:.0f} s of {60 * minutes:.0f}\n{treatment}\n", file=sys.stderr)
    (records / f"{case.name}.json").write_bytes(treatment.to_json())


HEAD = """# What `gw.treat` cured

Written by `python benchmarks/treat_cases.py` from its records; nothing here is typed in. Each case is a sick training
on real digits (scikit-learn), on XOR or on the adding problem; the trial is told the training and nothing else, except
for XOR, whose arms are named. Effects are decades of log10 loss on fixed held batches in eval mode against the baseline
at its own best learning rate, paired by seed, on fresh seeds: -1 is a tenth of the loss. Intervals are Student's, 95 %.
`rate`: the arm's learning rate over the one in the setup. `failed`: share of runs that diverged or raised; they count
as having learnt nothing. The control is the baseline against itself on other seeds. An arm without an interval left in
the screening or had no time.
"""


def document(records: Path) -> str:
    """The page, from the records that are there."""
    found = [(case, json.loads(path.read_text())) for case in CASES if (path := records / f"{case.name}.json").exists()]
    rows = [_row(case, record) for case, record in found]
    table = [
        "| case | worst symptom | verdict | by | effect | interval | rate | steps | seconds |",
        "|" + "---|" * 9,
        *rows,
    ]
    missing = [case.name for case in CASES if case.name not in {done.name for done, _ in found}]
    left = [f"Not run: {', '.join(missing)}."] if missing else []
    logs = (_log(case, record) for case, record in found)
    return "\n".join([HEAD, *table, "", *left, *control_words(records), *logs]) + "\n"


def _row(case: Case, record: dict[str, Any]) -> str:
    findings, outcomes = record["diagnosis"]["findings"], record["outcomes"]
    worst = findings[0]["symptom"] if findings else record["diagnosis"]["verdict"]
    if not outcomes:
        return f"| {case.what} | {worst} | nothing to cure | | | | | | {record['seconds']:.0f} |"
    best = outcomes[0]
    cells = [case.what, worst, best["verdict"], _name(best), number(best["effect_log10_loss"]), span(best["interval"]),
             f"x{best['lr_scale']:g}", str(record["steps"]), f"{record['seconds']:.0f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _name(outcome: dict[str, Any]) -> str:
    return " + ".join(told(Remedy(**remedy)) for remedy in outcome["remedies"])


def _log(case: Case, record: dict[str, Any]) -> str:
    """All arms of a case."""
    symptoms = ", ".join(f"{f['severity']} {f['symptom']}" for f in record["diagnosis"]["findings"]) or "none"
    lines = [f"\n## {case.name}\n", f"{case.what}. Symptoms: {symptoms}."]
    if record["outcomes"]:
        base, control = record["baseline"], record["control"]
        itself = f"{number(control['effect_log10_loss'])} ({span(control['interval'])})"
        lines.append(
            f"{record['steps']} steps, {record['seeds']} seeds; baseline at x{base['lr_scale']:g} of its rate, "
            f"{round(100 * base['infeasible_frac'])} % failed; control {itself}.\n"
        )
        lines += ["| verdict | arm | effect | interval | rate | failed | gone | new |", "|" + "---|" * 8]
        lines += [_arm(outcome) for outcome in record["outcomes"]]
    lines += [f"\n{note}" for note in record["notes"]]
    return "\n".join(lines)


def _arm(outcome: dict[str, Any]) -> str:
    failed = outcome["infeasible_frac"]
    cells = [outcome["verdict"], _name(outcome), number(outcome["effect_log10_loss"]), span(outcome["interval"]),
             f"x{outcome['lr_scale']:g}", "-" if failed is None else f"{round(100 * failed)} %",
             ", ".join(outcome["cured"]) or "-", ", ".join(outcome["caused"]) or "-"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
