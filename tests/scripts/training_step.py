"""A training object with hooks and a tiny trainer, as frameworks do it."""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitModel(nn.Module):
    def __init__(self, hidden=64, lr=3e-3):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.SiLU(),
                                 nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.SiLU(), nn.Linear(hidden, 4))
        self.loss = nn.CrossEntropyLoss()
        self.logged = {}

    def log(self, name, value):
        self.logged.setdefault(name, []).append(float(value))

    def training_step(self, batch, batch_idx):
        x, y = batch
        for child in self.net:  # forward() is never called
            x = child(x)
        loss = self.loss(x, y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
        return [optimizer], [scheduler]

    def on_train_epoch_end(self, epoch):
        print(f"epoch {epoch}: train_loss {self.logged['train_loss'][-1]:.4f}")


class Trainer:
    def __init__(self, max_epochs):
        self.max_epochs = max_epochs

    def fit(self, model, loader):
        (optimizer,), schedulers = model.configure_optimizers()
        model.train()
        for epoch in range(self.max_epochs):
            for batch_idx, batch in enumerate(loader):
                def closure():
                    optimizer.zero_grad()
                    loss = model.training_step(batch, batch_idx)
                    loss.backward()
                    return loss

                optimizer.step(closure)
            for scheduler in schedulers:
                scheduler.step()
            model.on_train_epoch_end(epoch)


def data():
    y = torch.randint(4, (1000,))
    x = torch.randn(4, 8, 8)[y] * 0.5 + torch.randn(1000, 8, 8)
    return TensorDataset(x, y)


if __name__ == "__main__":
    torch.manual_seed(42)
    model = LitModel()
    Trainer(max_epochs=8).fit(model, DataLoader(data(), batch_size=100, shuffle=True))
    print("final loss", model.logged["train_loss"][-1].hex())
