"""The trainings that the curves are drawn of: the same numbers for every tool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

EVAL_EVERY: Final = 1000
STEP_SECONDS: Final = 0.01
BEGUN_AT: Final = 1_790_000_000.0  # seconds since 1970
SPIKES: Final = 20_000
"""One step in so many has a loss of several times its neighbours'."""

CHUNK: Final = 200_000

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """A synthetic training, step by step from 1 on; every array has a number for each step, but
    `eval_loss`, which has one for each thousandth."""

    train_loss: Numbers
    eval_loss: Numbers
    learning_rate: Numbers
    grad_norm: Numbers

    @property
    def steps(self) -> int:
        return len(self.train_loss)

    def save(self, path: Path) -> None:
        """For a tool whose writer runs in another interpreter."""
        np.savez(path, **vars(self))


def training(steps: int, seed: int) -> Training:
    """The same for the same arguments: a power law with noise and spikes, a warm-up and a cosine.

    Loss as a power of the steps: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361.
    """
    random = np.random.default_rng((steps, seed))
    done = np.arange(1, steps + 1) / steps
    smooth = 0.4 + (0.9 + 0.02 * (seed % 50)) * (done + 0.02) ** -0.4
    train_loss = smooth * (1 + 0.04 * random.standard_normal(steps))
    spiked = random.integers(0, steps, max(1, steps // SPIKES))
    train_loss[spiked] *= random.uniform(2, 5, len(spiked))
    held_out = smooth[EVAL_EVERY - 1 :: EVAL_EVERY]
    return Training(
        train_loss,
        held_out * 1.05 + 0.01 * random.standard_normal(len(held_out)),
        3e-4 * np.minimum(1, done / 0.02) * (0.55 + 0.45 * np.cos(np.pi * done)),
        0.5 + 0.3 * random.lognormal(0, 0.4, steps),
    )


def metrics_lines(points: Training) -> Iterator[str]:
    """The text of its metrics.jsonl, many lines at a time, as the helper `signalbox` writes it but
    for floats of six digits: some 115 bytes a line."""
    for begin in range(0, points.steps, CHUNK):
        end = min(points.steps, begin + CHUNK)
        numbers = np.arange(begin + 1, end + 1)
        milliseconds = (1000 * (BEGUN_AT + numbers * STEP_SECONDS)).astype("datetime64[ms]")
        lines = [
            f'{{"step": {step}, "train_loss": {loss:.6g}, "learning_rate": {rate:.6g}, '
            f'"grad_norm": {norm:.6g}, "timestamp": "{at}Z"}}\n'
            for step, loss, rate, norm, at in zip(
                numbers.tolist(),
                points.train_loss[begin:end].tolist(),
                points.learning_rate[begin:end].tolist(),
                points.grad_norm[begin:end].tolist(),
                np.datetime_as_string(milliseconds).tolist(),
                strict=True,
            )
        ]
        for position in range(EVAL_EVERY - 1, len(lines), EVAL_EVERY):
            held_out = points.eval_loss[(begin + position) // EVAL_EVERY]
            lines[position] = lines[position].replace(
                '"learning_rate"', f'"eval_loss": {held_out:.6g}, "learning_rate"'
            )
        yield "".join(lines)
