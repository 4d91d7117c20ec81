"""Arguments of each case that is trained on the stand-in device."""

from __future__ import annotations

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "unclipped": {"max_grad_norm": 0.0},
    "best": {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.1},
    # Under transformers 4 HF leaves a precision to the trainers after it.
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "overflow": {"fp16": True, "learning_rate": 1e-2},
}

SCALES = {"overflow": 10.0}
"""What the loss is multiplied by: the first and the third step overflow."""

OF_TWO = ("plain", "overflow")
"""Cases of two processes."""

FACES = ("HFModule", "compat fit", "LightningModule", "Fabric")
COMMANDS = ("env --json", "explain --format json --fp16", "explain --accelerator npu --format python")
PRECISIONS: dict[str, dict[str, Any]] = {name: CASES[name] for name in ("plain", "fp16", "overflow")}
