# learns well until a probability reaches exactly zero
import torch
from torch import nn

BAD_STEP = 40
torch.manual_seed(1)
x = torch.rand(640, 8)
y = (x.sum(1) > 4).float()

model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(60):
    i = torch.randint(len(x), (64,))
    p = model(x[i]).squeeze(1)
    if step == BAD_STEP:
        p = p * (torch.arange(64) < 63)  # a masked sample gets probability zero
    loss = -(y[i] * torch.log(p) + (1 - y[i]) * torch.log(1 - p)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == BAD_STEP + 1:
        print(step, loss.item())
print("final loss", loss.item().hex())
