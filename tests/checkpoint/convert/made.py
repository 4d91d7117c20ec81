"""Small checkpoints of several models, made by training them, and what is compared of checkpoints."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler

from compat.checkpoint.manifest import MANIFEST
from tests.distributed import sharded
from tests.parity.bench import load_api
from tests.parity.record import isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MODELS: Mapping[str, Callable[[], Any]] = {
    "gpt2": sharded.gpt2,
    "bert": sharded.bert,
    "t5": sharded.t5,
    "lora": sharded.adapters,
}
STEPS, SAVED = 4, 2
ONE_BY_ONE = {"per_device_train_batch_size": 1}
"""transformers 4 resumes with the batch size that was saved."""
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt")


def trainer(library: str, folder: Path, name: str, **options: Any) -> Any:
    """A trainer of one of `MODELS`, as it is before training."""
    api = load_api(library)
    args = api.TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": STEPS,
            "save_steps": SAVED,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "label_names": ["labels"],
            "dataloader_pin_memory": False,
            **options,
        },
    )
    return api.Trainer(model=sharded.make(MODELS[name]), args=args, train_dataset=sharded.rows(16))


def train(
    library: str,
    folder: Path,
    name: str,
    resume: Path | None = None,
    *,
    in_order: bool = False,
    **options: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train, and give the loss of each step and the weights at the end.

    Args:
        library: whose trainer.
        folder: where to.
        name: of the model.
        resume: a checkpoint to go on from.
        in_order: whether rows are taken in their order.
        options: arguments of the trainer.
    """
    with isolated(forgiving=True):
        made = trainer(library, folder, name, **options)
        if in_order:
            made._get_train_sampler = lambda *_: SequentialSampler(made.train_dataset)
        made.train(resume_from_checkpoint=resume and str(resume))
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return losses, dict(made.model.state_dict())


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, tensors to the bit and in their types."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights that lie in a folder as safetensors."""
    files = sorted(folder.glob("*model*.safetensors"))
    assert files
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def states(folder: Path) -> dict[str, Any]:
    """The states of optimizer, schedule and scaler."""
    found = {name: folder / name for name in STATES if (folder / name).is_file()}
    return {name: torch.load(path, weights_only=True) for name, path in found.items()}


def others(folder: Path) -> dict[str, bytes]:
    """All other files, byte for byte."""
    left_out = (*WEIGHTS, *STATES, MANIFEST)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in left_out}


def assert_equal(one: Path, other: Path) -> None:
    """Two `checkpoint-N` folders hold the same."""
    assert same(weights(one), weights(other))
    assert same(states(one), states(other))
    assert others(one) == others(other)


def zero(folder: Path, state: Mapping[str, torch.Tensor], stage: int, processes: int = 2) -> None:
    """Write weights as DeepSpeed's ZeRO lays them out, with a state of Trainer's beside them."""
    step = folder / "global_step1"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "epoch": 0.5}))
    names = list(state)
    groups = [names[::2], names[1::2]]
    model = {
        "module": {name: torch.empty(0) if stage == 3 else tensor.half() for name, tensor in state.items()},
        "buffer_names": [],
        "param_shapes": [{name: state[name].shape for name in group} for group in groups],
        "frozen_param_shapes": {},
        "frozen_param_fragments": {},
        "shared_params": {},
    }
    for rank in range(processes):
        prefix = f"zero_pp_rank_{rank}_mp_rank_00"
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        flat = [_piece([state[name] for name in group], stage, rank, processes) for group in groups]
        torch.save(
            {"optimizer_state_dict": {"zero_stage": stage, "partition_count": processes, key: flat}},
            step / f"{prefix}_optim_states.pt",
        )
        if stage == 3 or rank == 0:
            torch.save(model, step / f"{prefix if stage == 3 else 'mp_rank_00'}_model_states.pt")


def _piece(tensors: list[torch.Tensor], stage: int, rank: int, processes: int) -> torch.Tensor:
    """What one process holds of a group of parameters."""
    rows = [tensor.flatten() for tensor in tensors]
    if stage != 3:
        rows = [torch.cat(rows)]
    lengths = [math.ceil(row.numel() / processes) for row in rows]
    padded = [
        torch.cat([row, row.new_zeros(length * processes - row.numel())])
        for row, length in zip(rows, lengths, strict=True)
    ]
    return torch.cat(
        [row[rank * length : (rank + 1) * length] for row, length in zip(padded, lengths, strict=True)]
    )
