"""HF's arguments in a process group that was formed after them, as by a Lightning Trainer's launcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from compat.upstream.environment import overlaid

if TYPE_CHECKING:
    from transformers import TrainingArguments

DEVICE_OF_ARGUMENTS = ("_setup_devices", "__cached__setup_devices")
"""Attributes in which arguments keep the device that they found: functools' name, and transformers 4's."""


def is_alone_in_group(args: TrainingArguments) -> bool:
    """Whether there is a process group of several that HF's arguments do not know of."""
    return dist.is_available() and dist.is_initialized() and args.world_size == 1 < dist.get_world_size()


def join_group(
    args: TrainingArguments, *, rank: int, local_rank: int, world_size: int, local_world_size: int
) -> None:
    """Have HF's arguments find their device and their process group once more.

    Args:
        args: HF's arguments, made before the group.
        rank: of this process.
        local_rank: its rank on this machine.
        world_size: the number of processes.
        local_world_size: that on this machine.
    """
    for name in DEVICE_OF_ARGUMENTS:
        args.__dict__.pop(name, None)
    told = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": local_world_size,
    }
    with overlaid({name: str(number) for name, number in told.items()}):
        _ = args._setup_devices
