"""Lightning's strategies beside an HFModule: one job for HF's arguments too, and what cannot be computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from compat.errors import ArgumentError
from compat.upstream.group import is_alone_in_group, join_group
from compat.upstream.started import HOW_TO_START

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from transformers import TrainingArguments


def share_job(args: TrainingArguments, trainer: pl.Trainer) -> None:
    """Have HF's arguments take part in the job of a Lightning Trainer, whoever has started its processes.

    Args:
        args: HF's arguments.
        trainer: the Lightning Trainer, with its process group.

    Raises:
        ArgumentError: the arguments were made for another job.
    """
    if is_alone_in_group(args):
        join_group(
            args,
            rank=trainer.global_rank,
            local_rank=trainer.local_rank,
            world_size=trainer.world_size,
            local_world_size=trainer.world_size // trainer.num_nodes,
        )
    if args.world_size != trainer.world_size:
        msg = (
            f"`devices`: the Lightning Trainer has {trainer.world_size} processes, and HF's "
            f"arguments were made for {args.world_size}. {HOW_TO_START}"
        )
        raise ArgumentError(msg)


def check_strategy(trainer: pl.Trainer, *, is_training: bool) -> None:
    """Refuse what an HFModule cannot compute under the strategy of a Lightning Trainer.

    Raises:
        ArgumentError: lists every such flag, with the alternative.
    """
    problems = list(_problems(trainer, trainer.strategy, is_training=is_training))
    if problems:
        raise ArgumentError("\n".join(problems))


def _problems(trainer: pl.Trainer, strategy: Any, *, is_training: bool) -> Iterator[str]:
    size = trainer.accumulate_grad_batches
    if is_training and isinstance(strategy, DeepSpeedStrategy) and size != 1:
        yield (
            f"`accumulate_grad_batches={size}`: DeepSpeed's engine divides losses by itself, and an "
            "HFModule could not undo it. Train with `compat.Trainer` and `deepspeed`."
        )
    is_meshed = isinstance(strategy, ModelParallelStrategy)
    if is_meshed and (sharing := strategy.device_mesh["tensor_parallel"].size()) > 1:
        sizes = f"data_parallel_size={trainer.world_size}, tensor_parallel_size=1"
        yield (
            f"`ModelParallelStrategy(tensor_parallel_size={sharing})`, as the default 'auto' on one machine: "
            "these processes would share the tensors of a model, and HF's data gives each of them other "
            f"rows. Give `ModelParallelStrategy({sizes})` to shard with FSDP 2; for tensor parallel, train "
            "with `compat.Trainer` and a model loaded with `tp_plan='auto'`."
        )
