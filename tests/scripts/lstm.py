import torch
import torch.nn as nn

torch.manual_seed(3)
HIDDEN, STEPS = 32, 20


class Smoother(nn.Module):
    """Learns a leaky sum of a noisy signal; only the last step is read."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(input_size=2, hidden_size=HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, seq, state=None):
        hs, (h, c) = self.lstm(seq, state)
        return self.out(hs[:, -1, :]).squeeze(-1)


decay = 0.8 ** torch.arange(STEPS - 1, -1, -1.0)


def batch(n=64):
    seq = torch.randn(n, STEPS, 2)
    return seq, ((seq[..., 0] + seq[..., 1].clamp(min=0)) * decay).sum(1)


model = Smoother()
optim = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(250):
    seq, target = batch()
    loss = ((model(seq) - target) ** 2).mean()
    optim.zero_grad()
    loss.backward()
    optim.step()
    if step % 40 == 0:
        print(step, round(loss.item(), 4))
print("final loss", loss.item().hex())
