"""What `check` costs beside a bare forward and backward pass, in pairs side by side in one process.

Run: `python benchmarks/check_cost.py [--pairs 30]`. Prints a Markdown table for docs/benchmarks.md.
The aim: at most 1.5 bare passes where a bare pass takes 25 ms or more, else at most 40 microseconds a site and pass
(a forward and a backward pass are two). The floor is what no such tool in Python can do without: a call of torch's
hooks around every module and behind every output, one read of every output, of the gradient there, of every weight and
its gradient, and the random numbers put back; no names, no wiring, no record, no rule.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (as the field writes it)
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradwell.journeys.check import check, measure
from gradwell.probe.preserve import preserved
from gradwell.probe.sizes import SMALL, measured


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


def mlp(depth: int, width: int) -> nn.Module:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *stem, *[Block(32) for _ in range(4)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(256, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x))).mean(1)


CASES = {
    "MLP 20 x 512, batch 256": lambda: (mlp(20, 512), torch.randn(256, 512), 10),
    "ResNet-like, 9 convolutions, batch 32": lambda: (resnet(), torch.randn(32, 3, 32, 32), 10),
    "transformer, 6 layers x 256, batch 8 x 64": lambda: (Transformer(), torch.randint(0, 1000, (8, 64)), 1000),
    "MLP 20 x 64, batch 128": lambda: (mlp(20, 64), torch.randn(128, 64), 10),
    "MLP 2 x 32, batch 32": lambda: (mlp(2, 32), torch.randn(32, 32), 10),
}


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def bare(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    loss_fn(model, batch).backward()


def floor(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A bare pass, and what nobody can do without."""
    small: list[torch.Tensor] = []
    handles = []

    def see(tensor: torch.Tensor) -> None:
        if tensor.numel() > SMALL:
            measured([tensor])
        else:
            small.append(tensor)

    def after(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if not module._modules:
            see(output.detach())
            handles.append(output.grad_fn.register_prehook(lambda grads: see(grads[0])))

    with preserved(model):
        handles.append(register_module_forward_pre_hook(lambda *_: None))
        handles.append(register_module_forward_hook(after, always_call=True))
        loss_fn(model, batch).backward()
        for handle in handles:
            handle.remove()
        weights = [p for p in model.parameters() if p.grad is not None]
        measured([*small, *weights, *(p.grad for p in weights)])


def timed(work: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        "| network | bare pass, ms | check, ms | check / bare | measuring alone / bare | floor / bare "
        "| sites | us a site and pass | of these the floor |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in CASES.items():
        model, x, classes = make()
        batch = (x, torch.randint(0, classes, (x.shape[0],)))
        sites = len(measure(model, batch, loss_fn).sites)
        for work in (check, bare, floor):
            timed(work, model, batch, *([loss_fn] if work is check else []))
        times: dict[str, list[float]] = {"bare": [], "check": [], "measure": []}
        for _ in range(options.pairs):
            times["bare"].append(timed(bare, model, batch))
            times["check"].append(timed(check, model, batch, loss_fn))
            times["measure"].append(timed(measure, model, batch, loss_fn))
        least = [(timed(bare, model, batch), timed(floor, model, batch)) for _ in range(options.pairs)]
        pairs = {kind: list(zip(times["bare"], times[kind], strict=True)) for kind in ("check", "measure")}
        pairs["floor"] = least
        ratio = {kind: statistics.median(t / b for b, t in found) for kind, found in pairs.items()}
        extra = {kind: statistics.median(t - b for b, t in found) / (2 * sites) * 1e6 for kind, found in pairs.items()}
        b, c = statistics.median(times["bare"]) * 1e3, statistics.median(times["check"]) * 1e3
        print(
            f"| {name} | {b:.1f} | {c:.1f} | {ratio['check']:.2f} | {ratio['measure']:.2f} | {ratio['floor']:.2f} "
            f"| {sites} | {extra['check']:.0f} | {extra['floor']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
