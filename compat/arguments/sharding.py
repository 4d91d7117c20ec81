"""Checks of the arguments that shard a model over processes, alone and together."""

from __future__ import annotations

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
        *(field for filled in deepspeed_entries.FILLED.values() for field in filled.fields),
    }
)
"""The arguments that are checked."""

SIZES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
"""Sizes of the mesh of a `ParallelismConfig`."""

NOT_YET = {"cp_size": "context parallel", "sp_size": "sequence parallel"}
"""Sizes of a mesh that are not supported."""


def mesh_sizes(config: object) -> dict[str, int]:
    """Return the sizes of a mesh by name, 1 by default.

    Args:
        config: accelerate's `ParallelismConfig`, its sizes by name, or None.
    """
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
    yield from _mesh_problems(values.get("parallelism_config"))


def _mesh_problems(config: object) -> Iterator[str]:
    sizes = mesh_sizes(config)
    for name, what in NOT_YET.items():
        if sizes[name] > 1:
            yield (
                f"`parallelism_config` with {name}={sizes[name]}: {what} is not supported yet. Give "
                f"{name}=1; `dp_replicate_size`, `dp_shard_size` and `tp_size` are there."
            )
