"""A small GPT learns to write, byte by byte.

    python -m backend.training.recipes.char_lm --text_path /home/me/book.txt --steps 500

Without a text it reads the source of Python's own standard library. The last tenth of the text is
held out; at each evaluation a sample of what the model writes goes to the log. `--help` lists all
parameters. It saves in the folder SIGNALBOX_CHECKPOINT_DIR, and goes on from SIGNALBOX_RESUME_FROM,
a folder in there.
"""

import hashlib
import math
import sys
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.recipes import CharLmParams
from backend.training import signalbox
from backend.training.recipes.checkpoints import Checkpoints, Training
from backend.training.recipes.lifecycle import device_for, params_from_command_line, set_seeds

VOCABULARY = 256  # every byte is a token
MAX_TEXT_BYTES = 4 * 2**20
EVAL_BATCHES = 8
EVAL_SEED = 7  # not the run's: every measurement of every run sees the same windows
TEMPERATURE = 0.8


def read_text(path: Path | None) -> bytes:
    """The whole text at `path`; without one, 4 MiB of the standard library's modules."""
    if path is not None:
        return path.read_bytes()
    # Single modules only: packages hold tests and tables, which are dull to learn.
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return b"".join(module.read_bytes() for module in modules)[:MAX_TEXT_BYTES]


def split(text: bytes, context: int) -> tuple[Tensor, Tensor]:
    """The bytes to learn from, and the last tenth, each as a tensor (n,) of uint8."""
    held_out = len(text) // 10
    if held_out <= context:
        sys.exit(
            f"The text is too short: it has {len(text):,} bytes, and a context of {context} bytes "
            f"needs at least {10 * (context + 1):,}."
        )
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tokens[:-held_out], tokens[-held_out:]


def sample_batch(
    tokens: Tensor, params: CharLmParams, random_starts: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random windows of the text and, as targets, the same ones shifted by a byte; (b, t) each."""
    starts = torch.randint(
        len(tokens) - params.context, (params.batch_size, 1), generator=random_starts
    )
    windows = tokens[(starts + torch.arange(params.context + 1)).to(tokens.device)].long()
    return windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        mixed = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + F.dropout(mixed, self.dropout, self.training)
        wider: Tensor = self.feed_forward(x)
        return x + wider


class Gpt(nn.Module):
    """A decoder-only transformer over bytes, with learned positions and tied embeddings."""

    def __init__(self, params: CharLmParams) -> None:
        super().__init__()
        self.context = params.context
        self.tokens = nn.Embedding(VOCABULARY, params.width)
        self.positions = nn.Embedding(params.context, params.width)
        self.blocks = nn.Sequential(
            *(Block(params.width, params.heads, params.dropout) for _ in range(params.layers))
        )
        self.norm = nn.LayerNorm(params.width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What writes into the residual stream starts smaller, as in GPT-2.
                writes = name.endswith(("attention_out.weight", "feed_forward.3.weight"))
                depth = math.sqrt(2 * params.layers) if writes else 1.0
                nn.init.normal_(weight, std=0.02 / depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes (b, t) to scores of the next byte (b, t, 256)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats per byte."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def build_optimizer(model: nn.Module, params: CharLmParams) -> torch.optim.Optimizer:
    """AdamW that decays matrices only; biases and norms are left free."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.99))


def learning_rate_at(step: int, params: CharLmParams) -> float:
    """For step 1, 2, …: a linear rise to the peak, then half a cosine down to a tenth of it."""
    if step <= params.warmup_steps:
        return params.learning_rate * step / params.warmup_steps
    share = (step - params.warmup_steps) / max(1, params.steps - params.warmup_steps)
    return params.learning_rate * (0.55 + 0.45 * math.cos(math.pi * share))


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, params: CharLmParams) -> float:
    """The held-out loss, over the same windows each time."""
    random_starts = torch.Generator().manual_seed(EVAL_SEED)
    model.eval()
    losses = [
        loss_of(model, *sample_batch(tokens, params, random_starts)) for _ in range(EVAL_BATCHES)
    ]
    model.train()
    return torch.stack(losses).mean().item()


@torch.no_grad()
def write(model: Gpt, prompt: Tensor, length: int) -> str:
    """`length` bytes that the model writes after the prompt (t,)."""
    random_bytes = torch.Generator(prompt.device).manual_seed(EVAL_SEED)
    tokens = prompt.long()[None]
    model.eval()
    for _ in range(length):
        scores = model(tokens[:, -model.context :])[:, -1] / TEMPERATURE
        chosen = torch.multinomial(scores.softmax(-1), 1, generator=random_bytes)
        tokens = torch.cat([tokens, chosen], 1)
    model.train()
    return bytes(tokens[0, len(prompt) :].tolist()).decode("utf-8", "replace")


def main(params: CharLmParams) -> None:
    device = device_for(params.device)
    set_seeds(params.seed, device)
    text = read_text(params.text_path)
    train, held_out = (part.to(device) for part in split(text, params.context))
    model = Gpt(params).to(device)
    optimizer = build_optimizer(model, params)
    random_starts = torch.Generator().manual_seed(params.seed)
    training = Training(
        model,
        optimizer,
        hashlib.sha256(text).hexdigest(),
        generators={"starts": random_starts},
    )
    weights = sum(p.numel() for p in model.parameters())
    print(f"{len(train):,} bytes, {len(held_out):,} held out; {weights:,} weights on {device}.")

    began = time.perf_counter()
    with signalbox.start(params.steps, samples_per_step=params.batch_size) as run:
        checkpoints = Checkpoints(run, params, training)
        step = checkpoints.resume()
        while step < params.steps:
            if run.should_stop and checkpoints.stop():
                return
            step += 1
            learning_rate = learning_rate_at(step, params)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss = loss_of(model, *sample_batch(train, params, random_starts))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), params.grad_clip or math.inf)
            optimizer.step()
            epoch = step * params.batch_size * params.context / len(train)
            run.log(step, epoch, train_loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)

            eval_loss = None
            if step % params.eval_every == 0 or step == params.steps:
                run.phase("evaluating")
                eval_loss = evaluate(model, held_out, params)
                run.log(step, epoch, eval_loss=eval_loss)
                print(
                    f"step {step:6d}/{params.steps}  train loss {loss.item():.4f}  "
                    f"held-out loss {eval_loss:.4f}  learning rate {learning_rate:.2e}  "
                    f"{time.perf_counter() - began:.0f} s"
                )
                sample = write(model, held_out[: params.context // 2], params.sample_bytes)
                print("    | " + "\n    | ".join(sample.splitlines()), flush=True)
                run.phase("training")
            checkpoints.after(step, eval_loss)
        checkpoints.finish()


if __name__ == "__main__":
    main(params_from_command_line(CharLmParams))
