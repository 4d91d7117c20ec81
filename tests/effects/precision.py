"""Types, devices, seeds and flags of torch."""

from __future__ import annotations

import torch
from transformers import training_args

from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect, differ

DETERMINISM = (
    "ASCEND_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "FLASH_ATTENTION_DETERMINISTIC",
    "HCCL_DETERMINISTIC",
)
HERE = "cuda" if torch.cuda.is_available() else "cpu"


def computed_in(bench: Bench) -> tuple[torch.dtype, torch.dtype]:
    """The type of the training's products, and that of the weights."""
    trainer = bench.trained(model=parts.Telling())
    (product,) = set(trainer.model.types)
    return product, trainer.model.out.weight.dtype


def evaluated_in(bench: Bench) -> set[torch.dtype]:
    """The type that an evaluation without training computes in."""
    trainer = bench.trainer(model=parts.Words(), eval_dataset=parts.words(4))
    trainer.evaluate()
    return set(trainer.model.types)


def place(bench: Bench) -> tuple[str, str, bool]:
    """Where the model and the engine are, and whether batches are pinned for a faster way there."""
    trainer = bench.trainer()
    device = next(trainer.model.parameters()).device.type
    return device, trainer.lightning.strategy.root_device.type, trainer.get_train_dataloader().pin_memory


def order(bench: Bench) -> list[int]:
    """The rows in the order that the model saw them in."""
    return bench.trained(model=parts.Telling(), train_dataset=parts.numbered()).model.seen


def losses(bench: Bench) -> list[float]:
    """The logged losses of a model with dropout, always on the same rows."""
    return small.losses(bench.trained(train_dataset=small.rows(1)))


def determinism(bench: Bench) -> bool:
    """Whether torch was held to deterministic algorithms during the run."""
    for name in DETERMINISM:
        # Set by transformers, and unset with the run.
        bench.patch.setenv(name, "")
    seen: list[bool] = []
    note = parts.At("on_step_end", lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    bench.trained(callbacks=[note])
    return all(seen)


def tf32(bench: Bench) -> str:
    """The precision of products on a GPU of a kind that may choose."""
    bench.patch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    if hasattr(training_args, "enable_tf32"):
        # Kept by transformers from the first call on, whatever others have set since.
        bench.patch.setattr(training_args, "enable_tf32", training_args.enable_tf32.__wrapped__)
    try:
        bench.arguments()
        return torch.backends.cuda.matmul.fp32_precision
    finally:
        torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"


ON_DEVICE = {"use_cpu": False, "dataloader_pin_memory": False}
HALF = (torch.bfloat16, torch.float32)
HALF_16 = (torch.float16, torch.float32)
FULL = (torch.float32, torch.float32)

PRECISION = (
    Effect("bf16", True, computed_in, (FULL, HALF)),
    # Nothing on a CPU, there as here.
    Effect("fp16", True, computed_in, (FULL, HALF_16 if HERE == "cuda" else FULL), base=ON_DEVICE),
    Effect("bf16_full_eval", True, evaluated_in, ({torch.float32}, {torch.bfloat16})),
    Effect("fp16_full_eval", True, evaluated_in, ({torch.float32}, {torch.float16})),
    Effect("use_cpu", True, place, ((HERE, HERE, True), ("cpu", "cpu", False)), base={"use_cpu": False}),
    Effect(
        "no_cuda",
        True,
        place,
        ((HERE, HERE, True), ("cpu", "cpu", False)),
        base={"use_cpu": False},
        replaced_by="use_cpu",
        warns=True,
    ),
    Effect("tf32", True, tf32, ("none", "tf32")),
    Effect("full_determinism", True, determinism, (False, True)),
    Effect("seed", 7, order, differ, note="order"),
    Effect("seed", 7, losses, differ, note="dropout"),
)
