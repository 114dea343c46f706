"""Fits a polynomial to a sine wave by gradient descent, and reports with the helper.

    python polynomial.py --steps 2000 --sleep 0.01

As a job it needs nothing else. By hand, put backend/training on PYTHONPATH so that the helper is
found; it then writes no files.
"""

import argparse
import math
import time

import signalbox
import torch

parser = argparse.ArgumentParser(description="Fit a polynomial to a sine wave.")
parser.add_argument("--steps", type=int, default=2000, help="steps of gradient descent")
parser.add_argument("--sleep", type=float, default=0.01, help="seconds to wait after each step")
options = parser.parse_args()

torch.manual_seed(1)
x = torch.rand(600, 1) * 2 - 1
y = torch.sin(math.pi * x) + 0.05 * torch.randn_like(x)
powers = torch.cat([x**n for n in range(6)], dim=1)
train, held_out = slice(0, 500), slice(500, 600)

model = torch.nn.Linear(6, 1, bias=False)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loss_of = torch.nn.functional.mse_loss

with signalbox.start(total_steps=options.steps, samples_per_step=500) as run:
    for step in range(1, options.steps + 1):
        loss = loss_of(model(powers[train]), y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(step, train_loss=loss, learning_rate=0.01)  # also the sign of life

        if step % 100 == 0:
            with torch.no_grad():
                eval_loss = loss_of(model(powers[held_out]), y[held_out])
            run.log(step, eval_loss=eval_loss)
            print(f"step {step}: loss {loss.item():.4f}, held out {eval_loss.item():.4f}")
        if run.should_stop:  # a pause or a cancel: the moment to save
            print(f"asked to stop after step {step}")
            break
        time.sleep(options.sleep)

print("sin(πx) ≈ " + " ".join(f"{w:+.2f}x^{n}" for n, w in enumerate(model.weight[0].tolist())))
