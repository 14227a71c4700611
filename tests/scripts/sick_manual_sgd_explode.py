# no torch.optim, weights three times too large
import torch
import torch.nn.functional as F

torch.manual_seed(0)
X = torch.randn(600, 32)
Y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).long()

weights = [torch.randn(32, 32) * (2 / 32) ** 0.5 * 3 for _ in range(12)]
head = torch.randn(2, 32) * (1 / 32) ** 0.5
params = [p.requires_grad_() for p in [*weights, head]]


def model(x):
    for w in weights:
        x = torch.relu(x @ w.t())
    return x @ head.t()


lr = 1e-8
for step in range(60):
    i = torch.randint(0, len(X), (64,))
    loss = F.cross_entropy(model(X[i]), Y[i])
    for p in params:
        p.grad = None
    loss.backward()
    norm = sum(p.grad.double().square().sum() for p in params).sqrt().item()
    with torch.no_grad():
        for p in params:
            p -= lr * p.grad
    if step < 5 or step % 20 == 0:
        print("step %d loss %.4g gradient norm %.4g" % (step, loss.item(), norm))
print("final loss", loss.item().hex())
