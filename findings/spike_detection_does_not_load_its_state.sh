#!/usr/bin/env bash
# lightning 2.6.6: a run with the callback SpikeDetection writes checkpoints that it cannot be resumed from.
#
# `SpikeDetection.state_dict` keeps its running mean under "running"; `load_state_dict` puts that into an attribute
# `running`, which the class does not have (its own is `running_mean`). `Trainer.fit(ckpt_path=...)` with the same callback
# ends in the AttributeError; without the callback the checkpoint loads.
#
# Seen with torch 2.13.0, Python 3.11, four steps, checkpoint after the epoch:
#   with SpikeDetection:    AttributeError: 'SpikeDetection' object has no attribute 'running'
#   without SpikeDetection: resumed to step 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 "numpy<2.5" lightning==2.6.6

cat > resume.py <<'PY'
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.spike import SpikeDetection


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return {"loss": self.layer(batch).pow(2).mean()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)


def trainer(epochs, callbacks):
    return Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


first = trainer(1, [SpikeDetection()])
first.fit(Line())
first.save_checkpoint("one.ckpt")
try:
    trainer(2, [SpikeDetection()]).fit(Line(), ckpt_path="one.ckpt")
except AttributeError as error:
    print(f"with: {error}")
again = trainer(2, [])
again.fit(Line(), ckpt_path="one.ckpt")
print(f"without: step {again.global_step}")
PY

found=$(venv/bin/python -W ignore resume.py 2> log || { cat log; exit 1; })
echo "$found"
test "$found" = "with: 'SpikeDetection' object has no attribute 'running'
without: step 8"
