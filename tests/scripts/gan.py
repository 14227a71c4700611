# vanilla GAN on a ring of points
import torch
from torch import nn, optim

torch.manual_seed(7)
nz = 8

netG = nn.Sequential(
    nn.Linear(nz, 64), nn.LeakyReLU(0.2, True),
    nn.Linear(64, 64), nn.LeakyReLU(0.2, True),
    nn.Linear(64, 2),
)
netD = nn.Sequential(
    nn.Linear(2, 64), nn.LeakyReLU(0.2, True),
    nn.Linear(64, 64), nn.LeakyReLU(0.2, True),
    nn.Linear(64, 1),
)
criterion = nn.BCEWithLogitsLoss()
optimizerD = optim.Adam(netD.parameters(), lr=1e-3, betas=(0.5, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=1e-3, betas=(0.5, 0.999))


def real_batch(n):
    angle = torch.rand(n) * 6.2831853
    return torch.stack([angle.cos(), angle.sin()], 1) * 2 + 0.05 * torch.randn(n, 2)


def radius_error():
    with torch.no_grad():
        return (netG(torch.randn(500, nz)).norm(dim=1) - 2).abs().mean().item()


n = 128
before = radius_error()
for it in range(300):
    # (1) update D
    netD.zero_grad()
    errD_real = criterion(netD(real_batch(n)), torch.ones(n, 1))
    errD_real.backward()
    fake = netG(torch.randn(n, nz))
    errD_fake = criterion(netD(fake.detach()), torch.zeros(n, 1))
    errD_fake.backward()
    optimizerD.step()
    # (2) update G
    netG.zero_grad()
    errG = criterion(netD(fake), torch.ones(n, 1))
    errG.backward()
    optimizerG.step()
    if it % 100 == 0:
        print("[%d] D %.3f G %.3f" % (it, (errD_real + errD_fake).item(), errG.item()))
print("radius error %.3f -> %.3f" % (before, radius_error()))
print("final loss", (errD_real + errD_fake + errG).item().hex())
