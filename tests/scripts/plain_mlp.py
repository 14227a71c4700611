# regression with a little MLP
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.fc1 = nn.Linear(10, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 1)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


x = torch.randn(512, 10)
y = (x[:, :3].sum(1) + torch.sin(2 * x[:, 3]))[:, None]

net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
first = None
for epoch in range(25):
    perm = torch.randperm(len(x))
    for i in range(0, len(x), 64):
        idx = perm[i:i + 64]
        opt.zero_grad()
        loss = F.mse_loss(net(x[idx]), y[idx])
        loss.backward()
        opt.step()
        if first is None:
            first = loss.item()
    if epoch % 5 == 4:
        print("epoch %d loss %.4f" % (epoch, loss.item()))
print("first loss", first)
print("final loss", loss.item().hex())
