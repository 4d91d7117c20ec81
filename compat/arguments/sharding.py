"""Checks of the arguments that shard a model over processes, alone and together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compat.arguments import deepspeed_entries, fsdp_entries
from compat.arguments.fields import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

READ = frozenset(
    {
        *("fsdp", "fsdp_config", "deepspeed", "parallelism_config"),
        *("auto_find_batch_size", "save_only_model", "load_best_model_at_end"),
        *("activation_checkpointing", "gradient_checkpointing"),
        "label_smoothing_factor",
        *(field for filled in deepspeed_entries.FILLED.values() for field in filled.fields),
    }
)
"""The arguments that are checked."""

SIZES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
"""Sizes of the mesh of a `ParallelismConfig`."""

WITH_SEQUENCES = ("dp_replicate_size", "dp_shard_size", "sp_size")
"""Sizes that go together where processes share sequences."""

UNUSED_WITH_SEQUENCES = {"label_smoothing_factor": 0.0}
"""Argument → the value without effect, of those that HF does not apply where processes share sequences."""


def mesh_sizes(config: object) -> dict[str, int]:
    """Return the sizes of a mesh by name, 1 by default.

    Args:
        config: accelerate's `ParallelismConfig`, its sizes by name, or None.
    """
    if config is None:
        return dict.fromkeys(SIZES, 1)
    given = config if isinstance(config, Mapping) else {name: getattr(config, name, None) for name in SIZES}
    return {name: given.get(name) or 1 for name in SIZES}


def sharding_problems(values: Mapping[str, Any], processes: int | None = None) -> Iterator[str]:
    """Yield every problem of the arguments that shard a model.

    Args:
        values: the arguments by today's names.
        processes: number of processes of the job, where it is known.
    """
    sharded = [name for name in ("fsdp", "deepspeed") if values.get(name)]
    if len(sharded) > 1:
        both = " and ".join(f"`{shown(name, values[name])}`" for name in sharded)
        yield f"{both}: both shard the model. Give one of them."
    yield from fsdp_entries.problems(values)
    yield from deepspeed_entries.problems(values, processes)
    if sharded and values.get("save_only_model") and values.get("load_best_model_at_end"):
        yield (
            f"`save_only_model=True` and `load_best_model_at_end=True` with `{sharded[0]}`: the best model "
            "is loaded from a whole checkpoint. Give one of the two."
        )


def context_problems(values: Mapping[str, Any], device_type: str) -> Iterator[str]:
    """Yield the problems of a mesh whose processes share the context of attention, of the arguments of a run.

    Args:
        values: the arguments by today's names, with what a launcher has set.
        device_type: kind of the devices.
    """
    size = mesh_sizes(values.get("parallelism_config"))["cp_size"]
    if size == 1:
        return
    told = f"`parallelism_config` with cp_size={size}"
    if device_type == "cpu":
        yield (
            f"{told}: context parallel runs on GPUs only, since torch has no kernels for it on a CPU. Give "
            "cp_size=1; with `deepspeed`, `sp_size` shares sequences out."
        )
    fsdp, given = values.get("fsdp"), values.get("fsdp_config")
    if not fsdp or fsdp_entries.is_first(fsdp, given):
        yield f"{told}: it needs FSDP of version 2. Give `fsdp='full_shard'` with it, or cp_size=1."


def sequence_problems(values: Mapping[str, Any], processes: int | None = None) -> Iterator[str]:
    """Yield the problems of a mesh whose processes share sequences, of the arguments of a run.

    Args:
        values: the arguments by today's names, with what a launcher has set.
        processes: number of processes of the job, where it is known.
    """
    sizes = mesh_sizes(values.get("parallelism_config"))
    size = sizes["sp_size"]
    if size == 1:
        return
    told = f"`parallelism_config` with sp_size={size}"
    if not values.get("deepspeed"):
        yield (
            f"{told}: sequence parallel is DeepSpeed's (Ulysses), and `deepspeed` is not given. Give it a "
            "configuration such as {'zero_optimization': {'stage': 2}, 'train_micro_batch_size_per_gpu': "
            "'auto'}, or sp_size=1."
        )
    for name in SIZES:
        if sizes[name] > 1 and name not in (*WITH_SEQUENCES, "cp_size"):
            yield f"{told} and {name}={sizes[name]}: they do not go together. Give one of them."
    total = math.prod(sizes[name] for name in WITH_SEQUENCES)
    if processes is not None and total != processes:
        yield f"{told}: {_how_many(size, total, processes)}"
    for name, unused in UNUSED_WITH_SEQUENCES.items():
        if values.get(name) not in (None, unused):
            yield (
                f"{told} and `{shown(name, values[name])}`: HF does not apply it to the loss of a sequence "
                f"that processes share. Give `{shown(name, unused)}`."
            )


def _how_many(size: int, total: int, processes: int) -> str:
    if processes % size:
        return (
            f"{processes} processes are no multiple of it. Start a multiple of {size}, or change `sp_size`."
        )
    return (
        f"its sizes multiply to {total}, and the job has {processes} processes. Give "
        f"dp_replicate_size={processes // size}, or start {total} processes."
    )
