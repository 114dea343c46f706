"""A small convolutional network learns the UCI handwritten digits.

    python -m backend.training.recipes.digits --epochs 5

1,797 images of 8×8 pixels, of which 360 are held out; on two CPU cores the default run takes well
under a minute. `--help` lists all parameters. It saves in the folder SIGNALBOX_CHECKPOINT_DIR, and
goes on from SIGNALBOX_RESUME_FROM, a folder in there.
"""

import csv
import gzip
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.recipes import DigitsParams
from backend.training import signalbox
from backend.training.recipes.checkpoints import Checkpoints, Training
from backend.training.recipes.lifecycle import device_for, params_from_command_line, set_seeds

DATA = Path(__file__).parent / "data" / "digits.csv.gz"
HELD_OUT = 360
SPLIT_SEED = 1998  # not the run's: runs with different seeds are measured on the same images


@dataclass(frozen=True)
class Images:
    """Pictures (n, 1, 8, 8) with values from 0 to 1, and their digits (n,)."""

    pixels: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)

    def take(self, indices: Tensor) -> "Images":
        return Images(self.pixels[indices], self.digits[indices])

    def to(self, device: torch.device) -> "Images":
        return Images(self.pixels.to(device), self.digits.to(device))


def load() -> tuple[Images, Images]:
    """The images to learn from, and the held-out ones."""
    with gzip.open(DATA, "rt", newline="") as file:
        table = torch.tensor([[int(cell) for cell in row] for row in csv.reader(file)])
    images = Images(table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return images.take(order[HELD_OUT:]), images.take(order[:HELD_OUT])


def build_model() -> nn.Module:
    """Two convolutions at full size, one at half, and a linear layer; 58,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 2 * 2, 10),
    )


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> tuple[float, float]:
    """Loss and accuracy on the images."""
    model.eval()
    scores = model(images.pixels)
    model.train()
    loss = F.cross_entropy(scores, images.digits).item()
    return loss, (scores.argmax(1) == images.digits).float().mean().item()


def main(params: DigitsParams) -> None:
    device = device_for(params.device)
    set_seeds(params.seed, device)
    train, held_out = (images.to(device) for images in load())
    model = build_model().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
    )
    steps_per_epoch = math.ceil(len(train) / params.batch_size)
    total_steps = params.epochs * steps_per_epoch
    # From the peak down to zero: late steps settle what the early ones found.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
    data = hashlib.sha256(DATA.read_bytes()).hexdigest()
    training = Training(model, optimizer, data, schedule)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{len(train)} images, {len(held_out)} held out; {weights:,} weights on {device}.")

    with signalbox.start(total_steps, params.epochs, params.batch_size) as run:
        checkpoints = Checkpoints(run, params, training)
        step = checkpoints.resume()
        while step < total_steps:
            if run.should_stop and checkpoints.stop():
                return
            epoch, position = 1 + step // steps_per_epoch, step % steps_per_epoch
            if position == 0:  # else it is the order of the epoch that was left in the middle
                training.place["order"] = torch.randperm(len(train))
            order = training.place["order"]
            batch = order[position * params.batch_size : (position + 1) * params.batch_size]
            images = train.take(batch.to(device))
            loss = F.cross_entropy(model(images.pixels), images.digits)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            grad_norm = nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            step += 1
            run.log(step, epoch, train_loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)

            eval_loss = None
            if step % steps_per_epoch == 0:
                run.phase("evaluating")
                eval_loss, accuracy = evaluate(model, held_out)
                run.log(step, epoch, eval_loss=eval_loss, eval_accuracy=accuracy)
                print(
                    f"epoch {epoch:3d}/{params.epochs}  step {step:5d}  "
                    f"train loss {loss.item():.4f}  held-out loss {eval_loss:.4f}  "
                    f"accuracy {accuracy:.2%}",
                    flush=True,
                )
                run.phase("training")
            checkpoints.after(step, eval_loss)
        checkpoints.finish()


if __name__ == "__main__":
    main(params_from_command_line(DigitsParams))
