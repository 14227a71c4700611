# sigmoid layers kept in a plain list
import torch
from torch import nn, sigmoid

torch.manual_seed(0)
layers = [nn.Linear(16, 48)] + [nn.Linear(48, 48) for _ in range(19)] + [nn.Linear(48, 3)]
params = [p for layer in layers for p in layer.parameters()]

X = torch.randn(900, 16)
Y = torch.bucketize(X[:, :4].sum(1), torch.tensor([-1.0, 1.0]))


def net(h):
    for layer in layers[:-1]:
        h = sigmoid(layer(h))
    return layers[-1](h)


opt = torch.optim.SGD(params, lr=0.05, momentum=0.9)
for epoch in range(8):
    for i in torch.randperm(len(X)).split(60):
        loss = nn.functional.cross_entropy(net(X[i]), Y[i])
        for p in params:
            p.grad = None
        loss.backward()
        opt.step()
    if epoch % 2 == 0:
        with torch.no_grad():
            print("epoch", epoch, "loss", nn.functional.cross_entropy(net(X), Y).item())
print("final loss", loss.item().hex())
