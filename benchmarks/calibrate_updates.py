"""Which update sizes learn, and how much of a gradient may be lost below float16's smallest number.

`python benchmarks/calibrate_updates.py` (four minutes on one core) prints three tables of `docs/calibration.md`. First
small nets at rates from a millionth to a thousand times the usual one; a net counts as learning when its loss falls at
least half as far as at the best of the rates; below the table, how many learn after a step three times as large as
their weights. Then how many learn whose outputs large steps have made alike. Then float32 weights with gradients from a
float16 copy, the loss multiplied by ever smaller numbers.
"""

from __future__ import annotations

import copy
import math
from itertools import islice
from statistics import median_low

import msgspec
import torch

from gradwell.journeys.check import measure
from gradwell.lab.tasks import batches, setup
from gradwell.records.net import NetConfig
from gradwell.records.run import Step
from gradwell.symptoms.oversized_update import oversized_update

NETS = (
    NetConfig(depth=3, init="he"),
    NetConfig(depth=6, activation="tanh", init="lecun"),
    NetConfig(depth=4, init="he", norm="batch"),
    NetConfig(kind="residual", depth=6, norm="layer"),
    NetConfig(kind="cnn", depth=3, width=16, init="he"),
    NetConfig(kind="transformer", depth=2, width=32),
    NetConfig(kind="lstm", depth=1, width=32),
)
RATES = {"SGD": 0.05, "Adam": 1e-3}
TIMES = (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
STEPS = 80
ONCE = 3.0


def train(config: NetConfig) -> tuple[float, list[float]]:
    """Loss that was gained, and update / weight of each step."""
    model, _, loss_fn, optimizer = setup(config)
    losses: list[float] = []
    ratios: list[float] = []
    for batch in islice(batches(config), STEPS):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return -math.inf, ratios
        loss.backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        pairs = [(p.detach(), q) for p, q in zip(model.parameters(), before, strict=True) if p.dim() >= 2]
        ratios.append(median_low(float((p - q).norm() / q.norm()) for p, q in pairs))
    return losses[0] - sum(losses[-5:]) / 5, ratios


SMALLEST = 2.0**-24


def underflow(config: NetConfig, scale: float) -> tuple[float, float]:
    """Share of the gradient that is lost in the first three steps, and the loss at the end."""
    model, _, loss_fn, optimizer = setup(config)
    half = copy.deepcopy(model).half()
    losses: list[float] = []
    shares: list[float] = []
    for x, y in islice(batches(config), 120):
        for parameter, mirror in zip(model.parameters(), half.parameters(), strict=True):
            mirror.data.copy_(parameter.data)
        half.zero_grad()
        loss = loss_fn(half, (x.half(), y)) * scale
        loss.backward()
        lost = count = 0.0
        for parameter, mirror in zip(model.parameters(), half.parameters(), strict=True):
            parameter.grad = mirror.grad.float() / scale
            if mirror.dim() >= 2:
                rms = float(mirror.grad.float().square().mean().sqrt())
                lost += mirror.numel() * (math.erf(SMALLEST / (rms * math.sqrt(2))) if rms else 1.0)
                count += mirror.numel()
        optimizer.step()
        losses.append(float(loss.detach()) / scale)
        shares.append(lost / count)
    return sum(shares[:3]) / 3, sum(losses[-5:]) / 5


def updates() -> None:
    """The first table, and how many nets learn after one step of `ONCE`."""
    print("| optimizer | rate, times the usual | learn | largest step / weight | third largest |")
    print("|---|---|---|---|---|")
    once: list[str] = []
    for kind, rate in RATES.items():
        gains: dict[float, list[float]] = {times: [] for times in TIMES}
        sizes: dict[float, list[list[float]]] = {times: [] for times in TIMES}
        for net in NETS:
            for times in TIMES:
                gain, ratios = train(msgspec.structs.replace(net, optimizer=kind, lr=rate * times))
                gains[times].append(gain)
                sizes[times].append(sorted(ratios, reverse=True))
        best = [max(gains[times][n] for times in TIMES) for n in range(len(NETS))]
        for n, net in enumerate(NETS):
            large = [gains[times][n] >= best[n] / 2 for times in TIMES if max(sizes[times][n], default=0.0) >= ONCE]
            once.append(f"{kind}, {net.kind} {net.norm or net.activation}: {sum(large)} of {len(large)}")
        for times in TIMES:
            learn = sum(gain >= top / 2 for gain, top in zip(gains[times], best, strict=True))
            spans = [sorted(ratios[place] for ratios in sizes[times]) for place in (0, 2)]
            told = " | ".join(f"{found[0]:.1e} to {found[-1]:.1e}" for found in spans)
            print(f"| {kind} | {times:g} | {learn} of {len(NETS)} | {told} |")
    print("\nlearn after a step of 300 %:", "; ".join(once))


LOOKS = (0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 63)


def made_alike(config: NetConfig) -> bool:
    """Whether steps were serious at some look only because the outputs had become alike."""
    model, _, loss_fn, optimizer = setup(config)
    taken: list[Step] = []
    for number, batch in enumerate(islice(batches(config), STEPS)):
        if number in LOOKS:
            run = measure(model, batch, loss_fn, optimizer)
            taken.append(msgspec.structs.replace(run.steps[0], step=number))
            whole = msgspec.structs.replace(run, steps=list(taken))
            sizes = [finding.severity for finding in oversized_update(whole, alike=math.inf, constant=math.inf)]
            if "serious" in sizes:
                return False
            if "serious" in [finding.severity for finding in oversized_update(whole)]:
                return True
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        if not math.isfinite(float(loss.detach())):
            return False
    return False


def outputs() -> None:
    """The third table: nets whose outputs became alike, and how many of them learnt."""
    print("\n| optimizer | rate, times the usual | outputs made alike | of these learn |\n|---|---|---|---|")
    for kind, rate in RATES.items():
        best = [max(train(msgspec.structs.replace(net, optimizer=kind, lr=rate * times))[0] for times in TIMES)
                for net in NETS]  # fmt: skip
        for times in (time for time in TIMES if time >= 1):
            nets = [msgspec.structs.replace(net, optimizer=kind, lr=rate * times) for net in NETS]
            told = [n for n, net in enumerate(nets) if made_alike(net)]
            learn = sum(train(nets[n])[0] >= best[n] / 2 for n in told)
            print(f"| {kind} | {times:g} | {len(told)} of {len(nets)} | {learn} |", flush=True)


def scales() -> None:
    """The second table."""
    nets = {"ReLU 3, He": NetConfig(depth=3, init="he"), "tanh 4, LeCun": NetConfig(activation="tanh", init="lecun")}
    print("\n| net | loss times | lost at the start | loss after 120 steps |\n|---|---|---|---|")
    for name, net in nets.items():
        for scale in (1, 1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6):
            share, loss = underflow(net, scale)
            print(f"| {name} | {scale:g} | {share:.3f} | {loss:.3f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    updates()
    outputs()
    scales()
