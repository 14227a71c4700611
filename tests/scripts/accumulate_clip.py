"""Gradient accumulation, clipping and a schedule."""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Config:
    accumulate: int = 4
    micro_batch: int = 16
    epochs: int = 12
    lr: float = 0.1
    max_norm: float = 1.0


cfg = Config()
torch.manual_seed(2)
x = torch.randn(1024, 20)
teacher = torch.randn(20, 5)
y = (x @ teacher).argmax(1)
loader = DataLoader(TensorDataset(x, y), batch_size=cfg.micro_batch, shuffle=True, drop_last=True)

model = nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=0.9, nesterov=True)
total = cfg.epochs * len(loader) // cfg.accumulate
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=cfg.lr, total_steps=total)

updates = 0
for epoch in range(cfg.epochs):
    running = 0.0
    for i, (xb, yb) in enumerate(loader):
        loss = nn.functional.cross_entropy(model(xb), yb) / cfg.accumulate
        loss.backward()
        running += loss.item()
        if (i + 1) % cfg.accumulate == 0:
            norm = clip_grad_norm_(model.parameters(), cfg.max_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            updates += 1
            last, running = running, 0.0
    if epoch % 3 == 0:
        print(f"epoch {epoch} updates {updates} loss {last:.4f} norm {norm:.3f} lr {scheduler.get_last_lr()[0]:.4f}")
print(f"final loss {last.hex()}")
