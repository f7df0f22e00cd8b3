"""Ten lines: train a small network with one optimizer for all of its parameters."""

import torch
from torch import nn

import schattor

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
inputs = torch.randn(512, 16)
targets = inputs[:, :8].prod(dim=1, keepdim=True).sign()

optimizer = schattor.Schattor(model, lr=1e-2, p=3.0)  # p=2: SGD's direction, p=inf: Muon's
print(schattor.route(model))
for step in range(200):
    loss = nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == 199:
        print(f"step {step:>3}  loss {loss.item():.4f}")
