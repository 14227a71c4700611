"""Classify scikit-learn's handwritten digits with a deep fully connected network."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 10


class DigitNet(nn.Module):
    def __init__(self, width: int = 64, hidden: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden):
            layers += [nn.Linear(width, width), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def load_data() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    y = torch.tensor(labels)
    order = torch.randperm(len(x))
    held_out, train = order[:360], order[360:]
    return TensorDataset(x[train], y[train]), TensorDataset(x[held_out], y[held_out])


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    model.eval()
    x, y = data.tensors
    logits = model(x)
    model.train()
    loss = nn.functional.cross_entropy(logits, y)
    accuracy = (logits.argmax(1) == y).float().mean()
    return loss.item(), accuracy.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, help="stop after this many optimizer steps")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=8, help="number of hidden layers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = load_data()
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    model = DigitNet(hidden=args.hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

    step = 0
    for epoch in range(1, args.epochs + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            step += 1
            if step == args.steps:
                break
        held_loss, accuracy = evaluate(model, held_out)
        print(f"epoch {epoch:3d}  step {step:4d}  train loss {loss.item():.4f}  "
              f"held-out loss {held_loss:.4f}  accuracy {accuracy:.1%}")  # fmt: skip
        if step == args.steps:
            break


if __name__ == "__main__":
    main()
