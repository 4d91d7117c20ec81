#!/usr/bin/env bash
# transformers 5.24.0: the same eight samples, in one batch, in two and in four.
#
# `Trainer` leaves the division by `num_items_in_batch` to a model whose `forward` takes keyword arguments.
# `BertForSequenceClassification` takes them since transformers 5 and returns the mean of its batch all the same, so
# that losses and gradients grow with `gradient_accumulation_steps`.
#
# Seen with torch 2.13.0, accelerate 1.15.0, Python 3.11, on a CPU:
#   accumulation 1: loss 1.1; accumulation 2: 2.2; accumulation 4: 4.4, gradient norms likewise.
# transformers 4.53.1 gives 1.1 in each case: its classifier takes no keyword arguments.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > steps.py <<'PY'
import sys

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

config = BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
samples = [{"input_ids": torch.arange(5) + i, "labels": torch.tensor(i % 3)} for i in range(8)]


def first_step(size):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=8 // size, gradient_accumulation_steps=size, max_steps=1,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=samples)
    trainer.train()
    step = trainer.state.log_history[0]
    return step["loss"], float(step["grad_norm"])


steps = {size: first_step(size) for size in (1, 2, 4)}
print("transformers", transformers.__version__, steps)
grows = sys.argv[1] == "grows"
for size, (loss, norm) in steps.items():
    times = size if grows else 1
    assert abs(loss - times * steps[1][0]) < 1e-3 * times, steps
    assert abs(norm - times * steps[1][1]) < 2e-3 * times, steps
PY

try() {
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet torch==2.13.0 "numpy<2.5" accelerate==1.15.0 "transformers==$1"
    "$1/bin/python" -W ignore steps.py "$2"
}
try 5.24.0 grows
try 4.53.1 stays
echo "as described"
