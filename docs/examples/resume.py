"""Learns a plane from noisy samples; can be paused, and goes on as if it had never stopped.

    python resume.py --steps 2000 --sleep 0.01

A checkpoint holds all that the next step depends on: the weights, the optimizer's state, and the
place in the stream of random numbers that the samples come from.
"""

import argparse
import time

import signalbox
import torch

parser = argparse.ArgumentParser(description="Learn a plane.")
parser.add_argument("--steps", type=int, default=2000, help="steps of gradient descent")
parser.add_argument("--sleep", type=float, default=0.01, help="seconds to wait after each step")
options = parser.parse_args()

torch.manual_seed(1)
slopes = torch.tensor([[2.0, -3.0, 0.5]])
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

with signalbox.start(total_steps=options.steps, samples_per_step=32) as run:
    if run.resume_from:
        state = torch.load(run.resume_from / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])

    for step in range(run.resume_step + 1, options.steps + 1):
        x = torch.randn(32, 3)
        y = x @ slopes.T + 0.1 * torch.randn(32, 1)
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(step, train_loss=loss)

        stop = run.should_stop  # read once: a pause may be withdrawn while this saves
        if run.checkpoint_dir and (stop or step % 500 == 0):
            folder = run.checkpoint_dir / f"step-{step:08d}"
            folder.mkdir(exist_ok=True)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(),
            }
            torch.save(state, folder / "state.pt")
            run.saved(folder)
        if stop:
            print(f"asked to stop after step {step}")
            break
        time.sleep(options.sleep)

print("slopes: " + ", ".join(map(str, model.weight[0].tolist())))
