# layers kept in a plain list, because why not
import torch
from torch import nn, tanh

torch.manual_seed(0)
sizes = [16] + [48] * 8 + [3]
layers = []
for a, b in zip(sizes, sizes[1:]):
    layer = nn.Linear(a, b)
    nn.init.xavier_normal_(layer.weight, gain=5 / 3 if b != 3 else 1)
    nn.init.zeros_(layer.bias)
    layers.append(layer)
params = [p for layer in layers for p in layer.parameters()]

X = torch.randn(900, 16)
Y = torch.bucketize(X[:, :4].sum(1), torch.tensor([-1.0, 1.0]))


def net(h):
    for layer in layers[:-1]:
        h = tanh(layer(h))
    return layers[-1](h)


opt = torch.optim.SGD(params, lr=0.02, momentum=0.9)
for epoch in range(12):
    for i in torch.randperm(len(X)).split(60):
        loss = nn.functional.cross_entropy(net(X[i]), Y[i])
        for p in params:
            p.grad = None
        loss.backward()
        opt.step()
    if epoch % 3 == 0:
        print("epoch", epoch, "loss", loss.item())
print("final loss", loss.item().hex())
