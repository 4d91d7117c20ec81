"""Arguments of each case that is trained on the stand-in device."""

from __future__ import annotations

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "unclipped": {"max_grad_norm": 0.0},
    # Under transformers 4 HF leaves a precision to the trainers after it.
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "overflow": {"fp16": True, "learning_rate": 1e-2},
}
