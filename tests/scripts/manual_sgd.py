# no torch.optim at all
import torch
import torch.nn.functional as F

torch.manual_seed(0)
g = torch.Generator().manual_seed(5)
X = torch.randn(600, 12, generator=g)
Y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).long()

w1 = torch.empty(48, 12)
w2 = torch.empty(48, 48)
w3 = torch.empty(2, 48)
for w in (w1, w2):
    torch.nn.init.kaiming_normal_(w, nonlinearity="relu")
torch.nn.init.xavier_normal_(w3)
params = [w1, torch.zeros(48), w2, torch.zeros(48), w3, torch.zeros(2)]
for p in params:
    p.requires_grad_(True)


def model(x):
    a, b, c, d, e, f = params
    x = (x @ a.t() + b).relu()
    x = F.linear(x, c, d).clamp(min=0)
    return F.linear(x, e, f)


lr = 0.1
for step in range(500):
    i = torch.randint(0, len(X), (64,))
    loss = F.cross_entropy(model(X[i]), Y[i])
    loss.backward()
    with torch.no_grad():
        for p in params:
            p -= lr * p.grad
            p.grad.zero_()
    if step % 100 == 0:
        print(step, loss.item())
print("final loss", loss.item().hex())
