"""Which loss curves are sick: trainings at all rates, their curves judged at every stage, and healthy oddities.

`python benchmarks/calibrate_curves.py [SEED]` (five minutes on one core) prints the tables of `docs/calibration.md`.
First small nets on digits at rates from a ten-thousandth to a hundred times the usual one. A run's truth is how many
times sooner the same net gets to a smoothed loss of 0.5 at the best of these rates. Then trainings that only look odd
(small batches, schedules, noise, a resumed training, a GAN), and trainings with one bad batch.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from gradwell.errors import NotMeasurable
from gradwell.journeys.log import Log
from gradwell.lab.tasks import batches, setup
from gradwell.probe.clock import Monitor
from gradwell.probe.names import Names
from gradwell.records.net import NetConfig
from gradwell.records.run import Run
from gradwell.records.verdict import RANK, Finding
from gradwell.shelf import shelf

CURVES = ("slow_loss", "loss_plateau", "oscillating_loss", "loss_spike", "diverging_loss")
NETS = {
    "ReLU 3, He": NetConfig(depth=3, init="he"),
    "tanh 5, LeCun": NetConfig(depth=5, activation="tanh", init="lecun"),
    "batch norm ReLU 4": NetConfig(depth=4, init="he", norm="batch"),
    "residual 6, layer norm": NetConfig(kind="residual", depth=6, norm="layer"),
    "transformer 2": NetConfig(kind="transformer", depth=2, width=32),
    "LSTM 1": NetConfig(kind="lstm", depth=1, width=32),
}
RATES = {"SGD": 0.05, "Adam": 1e-3}
TIMES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
BATCHES = (1, 8, 32, 128)
STEPS = 300
STAGES = (3, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)
TARGET = 0.5
CLASSES = (("mild", 1.5), ("serious", 5.0), ("fatal", 20.0))

Batch = tuple[Tensor, Tensor]
Change = Callable[[int, torch.optim.Optimizer, Batch], Batch]


def keep(_step: int, _optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
    return batch


def record(config: NetConfig, steps: int = STEPS, change: Change = keep) -> Run:
    """A training under the monitor, every tenth step sampled."""
    model, _, loss_fn, _ = setup(config)
    with Recorded() as log:
        optimizer = setup_optimizer(config, model)
        for step, batch in enumerate(islice(batches(config), steps)):
            pair = change(step, optimizer, batch)
            optimizer.zero_grad()
            loss_fn(model, pair).backward()
            optimizer.step()
    return log.run()


def setup_optimizer(config: NetConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "SGD":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    return torch.optim.Adam(model.parameters(), lr=config.lr)


class Recorded:
    """A monitor that is on within a `with`; gives the log."""

    def __enter__(self) -> Log:
        self.log = Log(None, argv=[], say=print)
        self.log.monitor = Monitor(Names(), sink=self.log, every=10).install()
        return self.log

    def __exit__(self, *_: Any) -> None:
        assert self.log.monitor is not None
        self.log.monitor.remove()


def judged(run: Run) -> list[Finding]:
    """What the curve's symptoms find."""
    found: list[Finding] = []
    for symptom in CURVES:
        try:
            found += shelf("gradwell.symptoms")[symptom](run)
        except NotMeasurable:
            continue
    return found


def until(run: Run, end: int) -> Run:
    """The run as it stood after so many steps."""
    events = []
    for event in run.events:
        if event.step < end:
            detail = {k: v[: end - event.step] if isinstance(v, list) else v for k, v in event.detail.items()}
            events.append(msgspec.structs.replace(event, detail=detail))
    return msgspec.structs.replace(run, steps=[step for step in run.steps if step.step < end], events=events)


def arrival(run: Run) -> int | None:
    """The first step (from 1) at which the running mean of the loss is below the target."""
    mean = 0.0
    for curve in run.losses():
        for step, loss in enumerate(curve.values, start=1):
            mean = 0.9 * mean + 0.1 * loss if math.isfinite(loss) else math.inf
            if mean / (1 - 0.9**step) < TARGET:
                return step
    return None


# ------------------------------------------------------------------ rates


class Trial(msgspec.Struct):
    """One training: its net, how many times the usual rate, its record, and how many times slower than the best."""

    net: str
    times: float
    run: Run
    reached: int | None
    slower: float = math.inf
    sure: bool = True


def trials(seed: int) -> Iterator[list[Trial]]:
    """All rates of one net and optimizer at a time."""
    for name, net in NETS.items():
        for kind, rate in RATES.items():
            if kind == "SGD" and net.kind in ("transformer", "lstm"):
                continue
            for size in BATCHES if name.startswith("ReLU") else (128,):
                group = []
                for times in TIMES:
                    config = msgspec.structs.replace(net, optimizer=kind, lr=rate * times, batch_size=size, seed=seed)
                    run = record(config)
                    group.append(Trial(f"{name}, {kind}, batches of {size}", times, run, arrival(run)))
                best = min((t.reached for t in group if t.reached), default=None)
                for trial in group:
                    trial.slower = (trial.reached or STEPS) / best if best else math.nan
                    trial.sure = trial.reached is not None
                yield group


def rates(seed: int) -> None:
    """The table of rates, and how often each stage of each run was judged right."""
    rows: dict[float, list[tuple[Trial, list[Finding]]]] = {times: [] for times in TIMES}
    early: Counter[str] = Counter()
    for group in trials(seed):
        for trial in group:
            rows[trial.times].append((trial, judged(trial.run)))
            if trial.sure and trial.slower < 1.5:
                early["stages"] += len(STAGES)
                for stage in STAGES:
                    for finding in judged(until(trial.run, stage)):
                        early["alarms"] += 1
                        print(f"at {stage}: {trial.net} x {trial.times:g}: {finding.severity} {finding.summary}")
    everything = [pair for row in rows.values() for pair in row]
    print(f"\n| rate, times the usual | times slower | {' | '.join(CURVES)} | none |\n|{'---|' * (len(CURVES) + 3)}")
    for times, row in rows.items():
        said = Counter(finding.symptom for _, found in row for finding in found)
        slower = median(trial.slower for trial, _ in row if not math.isnan(trial.slower))
        none = sum(not found for _, found in row)
        print(f"| {times:g} | {slower:.1f} | {' | '.join(str(said[s] or '') for s in CURVES)} | {none} of {len(row)} |")
    print("\n| class | runs in it | found | runs surely not in it | false alarms |\n|---|---|---|---|---|")
    for severity, bound in CLASSES[:2]:
        inside = [(t, f) for t, f in everything if t.slower >= bound]
        outside = [(t, f) for t, f in everything if t.sure and t.slower < bound]
        hit, false = (sum(any(RANK[f.severity] >= RANK[severity] for f in found) for _, found in part)
                      for part in (inside, outside))  # fmt: skip
        print(f"| {severity} | {len(inside)} | {hit} | {len(outside)} | {false} |")
    for trial, found in everything:
        for finding in found:
            if trial.sure and trial.slower < (1.5 if finding.severity == "mild" else 5.0):
                told = f"{trial.slower:.1f} times slower: {finding.severity} {finding.symptom}: {finding.summary}"
                print(f"too hard: {trial.net} x {trial.times:g}, {told}")
    print(f"\nhealthy runs at {len(STAGES)} stages: {early['alarms']} alarms in {early['stages']}")


# ------------------------------------------------------------------ healthy oddities


def schedule(rate: Callable[[int], float]) -> Change:
    def change(step: int, optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
        optimizer.param_groups[0]["lr"] = rate(step)
        return batch

    return change


def wrong_labels(_step: int, _optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
    x, y = batch
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(int(y.sum()))) < 0.3
    return x, torch.where(wrong, (y + 3) % 10, y)


def last_of_epoch(step: int, _optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
    return (batch[0][:3], batch[1][:3]) if step % 14 == 13 else batch


def in_order(_step: int, _optimizer: torch.optim.Optimizer, batch: Batch) -> Batch:
    """Each batch holds few classes, and they come in turn."""
    x, y = batch
    order = torch.argsort((y + 3 * _step) % 10)[: len(y) // 4]
    return x[order], y[order]


def odd(seed: int) -> Iterator[tuple[str, Run]]:
    """Trainings that are well and look odd."""
    plain = NetConfig(depth=3, init="he", seed=seed)
    adam = msgspec.structs.replace(plain, optimizer="Adam", lr=1e-3)
    half = math.pi / 100
    yield "cosine with restarts", record(plain, 400, schedule(lambda s: 0.1 * (1 + math.cos(half * (s % 100))) / 2))
    yield "step schedule", record(plain, 400, schedule(lambda s: 0.1 * 0.1 ** (s // 120)))
    yield "warmup of 500 steps, 150 done", record(adam, 150, schedule(lambda s: 1e-3 * (s + 1) / 500))
    yield "cyclic rate", record(plain, 400, schedule(lambda s: 0.01 + 0.1 * abs((s % 80) / 40 - 1)))
    yield "done long ago", record(adam, 2000)
    for size, rate in ((1, 1e-3), (2, 1e-3), (4, 1e-3)):
        small = msgspec.structs.replace(adam, batch_size=size, lr=rate)
        yield f"batches of {size}", record(small, 1500)
    yield "3 samples in each 14th batch", record(plain, 400, last_of_epoch)
    yield "30 % wrong labels", record(adam, 600, wrong_labels)
    yield "classes in turn", record(adam, 400, in_order)
    yield "dropout 0.5", record(msgspec.structs.replace(adam, dropout=0.5, batch_size=16), 600)
    yield "regression", record(msgspec.structs.replace(adam, loss="mse", task="regression"), 500)
    yield "resumed at its optimum", resumed(adam)
    yield "likelihood of a density, below 0", likelihood(seed)
    yield "GAN", gan(seed)
    yield "policy gradient", bandit(seed)
    yield "LBFGS", lbfgs(plain)


def resumed(config: NetConfig) -> Run:
    """A trained net, trained further."""
    model, _, loss_fn, optimizer = setup(config)
    stream = batches(config)
    for _, batch in zip(range(600), stream, strict=False):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    with Recorded() as log:
        again = torch.optim.Adam(model.parameters(), lr=3e-4)
        for batch in islice(stream, 300):
            again.zero_grad()
            loss_fn(model, batch).backward()
            again.step()
    return log.run()


def likelihood(seed: int) -> Run:
    """Negative log-likelihood of a narrow normal distribution: it crosses zero on its way down."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    with Recorded() as log:
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(600):
            x = torch.randn(64, 2)
            y = x.sum(1) + 0.05 * torch.randn(64)
            mean, log_sd = net(x).unbind(1)
            loss = (0.5 * ((y - mean) / log_sd.exp()) ** 2 + log_sd).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return log.run()


def gan(seed: int) -> Run:
    torch.manual_seed(seed)
    maker = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    compare = nn.functional.binary_cross_entropy_with_logits
    one, zero = torch.ones(64, 1), torch.zeros(64, 1)
    with Recorded() as log:
        first = torch.optim.Adam(judge.parameters(), lr=2e-3)
        second = torch.optim.Adam(maker.parameters(), lr=1e-3)
        for _ in range(300):
            fake = maker(torch.randn(64, 4))
            first.zero_grad()
            (compare(judge(torch.randn(64, 2) + 3), one) + compare(judge(fake.detach()), zero)).backward()
            first.step()
            second.zero_grad()
            compare(judge(fake), one).backward()
            second.step()
    return log.run()


def bandit(seed: int) -> Run:
    """REINFORCE on ten arms: the loss hovers around zero while the reward rises."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 10))
    with Recorded() as log:
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        usual = 0.0
        for _ in range(600):
            x = torch.randn(32, 4)
            choice = torch.distributions.Categorical(logits=net(x))
            arm = choice.sample()
            reward = (arm == x.argmax(1)).float()
            loss = -(choice.log_prob(arm) * (reward - usual)).mean()
            usual = 0.9 * usual + 0.1 * float(reward.mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return log.run()


def lbfgs(config: NetConfig) -> Run:
    model, batch, loss_fn, _ = setup(config)
    with Recorded() as log:
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        for _ in range(60):
            optimizer.step(closure)
    return log.run()


# ------------------------------------------------------------------ one bad batch


def spoiled(at: int, spoil: Callable[[Tensor, Tensor], Batch]) -> Change:
    return lambda step, _, batch: spoil(*batch) if step == at else batch


BAD = {
    "input times 100": lambda x, y: (100 * x, y),
    "input times 1000": lambda x, y: (1000 * x, y),
    "labels shifted": lambda x, y: (x, (y + 1) % 10),
    "input of noise": lambda x, y: (10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y),
    "input NaN": lambda x, y: (x * math.nan, y),
}


def bad_batches(seed: int) -> None:
    print("\n| bad batch at step 150 | net | named 10 steps later | causes | at the end |\n|---|---|---|---|---|")
    nets = {name: NETS[name] for name in ("ReLU 3, He", "batch norm ReLU 4", "residual 6, layer norm")}
    for what, spoil in BAD.items():
        for name, net in nets.items():
            for kind, rate in RATES.items():
                config = msgspec.structs.replace(net, optimizer=kind, lr=rate, seed=seed, batch_size=32)
                run = record(config, STEPS, spoiled(150, spoil))
                told = [until(run, 160).diagnose(), run.diagnose()]
                named, end = ([f"{f.severity} {f.symptom} at {f.first_step}" for f in d.findings
                               if f.symptom in (*CURVES, "nonfinite_value")] for d in told)  # fmt: skip
                causes = sorted({a.cause for a in told[0].attributions if a.kind == "condition"})
                print(f"| {what} | {name}, {kind} | {'; '.join(named)} | {', '.join(causes)} | {'; '.join(end)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    rates(chosen)
    print("\n| looks odd, is well | found |\n|---|---|")
    for what, run in odd(chosen):
        print(f"| {what} | {'; '.join(f'{f.severity} {f.symptom}: {f.summary}' for f in judged(run))} |")
    bad_batches(chosen)
