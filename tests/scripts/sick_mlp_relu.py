# regression with a much deeper MLP, default init
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, depth=24):
        super(Net, self).__init__()
        self.inp = nn.Linear(10, 64)
        self.hidden = nn.ModuleList([nn.Linear(64, 64) for _ in range(depth)])
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        x = F.relu(self.inp(x))
        for fc in self.hidden:
            x = F.relu(fc(x))
        return self.out(x)


x = torch.randn(512, 10)
y = (x[:, :3].sum(1) + torch.sin(2 * x[:, 3]))[:, None]

net = Net()
opt = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
for epoch in range(20):
    perm = torch.randperm(len(x))
    for i in range(0, len(x), 64):
        idx = perm[i:i + 64]
        opt.zero_grad()
        loss = F.mse_loss(net(x[idx]), y[idx])
        loss.backward()
        opt.step()
    if epoch % 5 == 4:
        print("epoch %d loss %.4f" % (epoch, F.mse_loss(net(x), y).item()))
print("final loss", loss.item().hex())
