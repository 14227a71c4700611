import torch

torch.manual_seed(11)
x = torch.linspace(-3, 3, 200).unsqueeze(1)
y = torch.sin(2 * x) * x

model = torch.nn.Sequential(torch.nn.Linear(1, 30), torch.nn.Tanh(), torch.nn.Linear(30, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
for m in model:
    if isinstance(m, torch.nn.Linear):
        torch.nn.init.xavier_normal_(m.weight, gain=5 / 3)
optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=10, line_search_fn="strong_wolfe")
calls = 0


def closure():
    global calls
    calls += 1
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss


for i in range(11):
    loss = optimizer.step(closure)
    if i % 5 == 0:
        print("step", i, "loss", float(loss), "closure calls", calls)
print("final loss", closure().item().hex())
