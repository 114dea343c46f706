"""Trains on two ranks, of which the first is asked to pause before its step 4."""

import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import signalbox
import torch
from signalbox_lightning import SignalboxCallback
from torch.utils.data import DataLoader

LEADS = os.environ.get("LOCAL_RANK", "0") == "0"
signalbox.STOP_LOOK_SECONDS = 0 if LEADS else float("inf")


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.linear(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class AskTheFirst(lightning.Callback):
    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3 and LEADS:
            pause = {"asked_at": "2026-11-23T18:02:45Z", "pause": True, "ending": None}
            Path(os.environ["SIGNALBOX_RUN_DIR"], "stop.json").write_text(json.dumps(pause))


callback = SignalboxCallback()
trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[callback, AskTheFirst()],
)  # fmt: skip
trainer.fit(Module(), DataLoader(torch.randn(24, 4), 4))
print(f"rank {trainer.global_rank} stopped: {callback.stopped}, at step {trainer.global_step}\n")
