"""Checks of the machine: devices, backends and packages that arguments require and that are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import shown
from compat.arguments.files import is_on
from compat.arguments.fsdp_entries import config_of, is_first
from compat.arguments.lightning import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import TrainingArguments

    from compat.upstream.environment import Here

XLA = "xla"
"""The kind of devices that torch_xla drives: TPUs, which Lightning calls "tpu", and others. A device whose
type is "tpu" in torch itself is not among them."""

BY_LIGHTNINGS_NAME = {"gpu": {"cuda", "mps"}, "tpu": {XLA, "tpu"}}
"""Lightning's name of an accelerator → the kinds of devices that it may mean, where these differ."""

WITHOUT_FIRST = frozenset({"cpu", "mps"})
"""Kinds of devices that version 1 of FSDP does not run on."""


def machine_problems(args: TrainingArguments, device_type: str, here: Here | None) -> Iterator[str]:
    """Yield a problem for each requirement of the arguments that this machine does not meet.

    Args:
        args: HF arguments, initialized or not.
        device_type: kind of the device of the run.
        here: this machine; None where the run is elsewhere, and only the kind of its devices is known.
    """
    given = getattr(args, "lightning", None)
    flags = given if isinstance(given, Mapping) else {}
    yield from _other_device(flags, device_type)
    yield from _unfit_for_sharding(args, device_type)
    if here is None:
        return
    if not here.is_distributed and device_type == here.device_type:
        yield from _too_many_devices(flags, here)
    if args.ddp_backend == "nccl" and device_type != "cuda":
        yield (
            f"`ddp_backend='nccl'`: NCCL connects CUDA devices, and the device of this run is "
            f"{device_type!r}. Give 'gloo', or leave the argument out: the device decides then."
        )
    yield from _against_xla(args, device_type, here)
    yield from _missing_packages(args, here)


def _other_device(flags: Mapping[str, Any], device_type: str) -> Iterator[str]:
    wanted = flags.get("accelerator")
    known = {**BY_LIGHTNINGS_NAME, "auto": {device_type}}
    if isinstance(wanted, str) and device_type not in known.get(wanted, {wanted}):
        lacks = ", which takes torch_xla (`pip install torch_xla`)" if wanted in {"tpu", XLA} else ""
        yield (
            f"`lightning={{'accelerator': {wanted!r}}}`: the device of this run is {device_type!r}. "
            f"Start it where there is such a device{lacks}, or remove the flag."
        )


def _unfit_for_sharding(args: TrainingArguments, device_type: str) -> Iterator[str]:
    """Yield the problems of FSDP with these devices."""
    if not args.fsdp or wants_xla(args):
        return
    if device_type == XLA:
        yield (
            f"`{shown('fsdp', args.fsdp)}`: torch's own FSDP does not run on {device_type!r}. Give "
            "fsdp_config={'xla': True}."
        )
    elif device_type in WITHOUT_FIRST and is_first(args.fsdp, args.fsdp_config):
        yield (
            f"`{shown('fsdp', args.fsdp)}` with `fsdp_config={{'version': 1}}`: version 1 of FSDP needs a "
            f"GPU, and the device of this run is {device_type!r}. Give 'full_shard' or 'shard_grad_op' with "
            "'version': 2, which also run on a CPU."
        )


def _against_xla(args: TrainingArguments, device_type: str, here: Here) -> Iterator[str]:
    """Yield the arguments that request another kind of device than torch_xla leaves to a run."""
    stays_on_cpu = args.use_cpu or device_type == "cpu"
    if here.device_type == XLA and stays_on_cpu:
        cause = "`use_cpu=True`" if args.use_cpu else "`ACCELERATE_USE_CPU`"
        yield (
            f"{cause}: where torch_xla is installed, transformers trains on its device all the same. Set the "
            "variable USE_TORCH_XLA=0 before Python starts to train without torch_xla."
        )
    elif wants_xla(args) and "torch_xla" in here.packages and device_type != XLA:
        yield (
            f"`fsdp_config={{'xla': True}}`: torch_xla is installed and switched off, and the device of this "
            f"run is {device_type!r}. Start without USE_TORCH_XLA=0, or remove the entry to shard with "
            "torch's own FSDP."
        )


def _too_many_devices(flags: Mapping[str, Any], here: Here) -> Iterator[str]:
    wanted = flags.get("devices")
    listed = (
        [index for index in wanted if isinstance(index, int)] if isinstance(wanted, (list, tuple)) else []
    )
    number = max(count(wanted) or 1, *(index + 1 for index in listed), 1)
    if here.devices is not None and number > here.devices:
        yield (
            f"`lightning={{'devices': {wanted!r}}}`: this machine has {here.devices} of kind "
            f"{here.device_type!r}. Give no more than that, or `use_cpu=True`, where any number will do."
        )


def _missing_packages(args: TrainingArguments, here: Here) -> Iterator[str]:
    if getattr(args, "deepspeed", None) and "deepspeed" not in here.packages:
        yield (
            f"`{shown('deepspeed', args.deepspeed)}`: DeepSpeed is not installed. "
            'Run `pip install "lightning-hf-compat[deepspeed]"`, or remove the argument.'
        )
    if wants_xla(args) and "torch_xla" not in here.packages:
        yield (
            "`fsdp_config={'xla': True}`: torch_xla is not installed. Run `pip install torch_xla` where "
            "there are TPUs, or remove the entry to shard with torch's own FSDP."
        )


def wants_xla(args: TrainingArguments) -> bool:
    """Whether `fsdp_config` requests torch_xla's FSDP."""
    return bool(args.fsdp and is_on(_fsdp_config(args).get("xla")))


def _fsdp_config(args: TrainingArguments) -> dict[str, Any]:
    try:
        return config_of(args.fsdp, args.fsdp_config)
    except ValueError:  # reported with the arguments
        return {}


def one_process_problems(args: TrainingArguments, here: Here | None) -> Iterator[str]:
    """Yield a problem for each argument that needs several processes, if there is only one.

    Args:
        args: HF arguments.
        here: this machine; None where the run is elsewhere.
    """
    if here is not None and not here.is_distributed and args.fsdp and not wants_xla(args):
        yield (
            f"`{shown('fsdp', args.fsdp)}`: a model is sharded over the processes of a job, and this is a "
            "single one. Start it with torchrun, `accelerate launch` or `compat run --devices N`, or give "
            "`lightning={'devices': N}`."
        )


def processes_for(gpus: int, *, is_told: bool, is_launched: bool, has_script: bool) -> int | None:
    """Return how many processes to start where HF would use `DataParallel` over all GPUs.

    Lightning has no such strategy; a process for each GPU computes the same batches.

    Args:
        gpus: number of GPUs that this process sees.
        is_told: whether the number of devices is specified.
        is_launched: whether a launcher has started this process.
        has_script: whether there is a script that can be started again.

    Returns:
        The number of processes, including this one; None if several are needed but cannot be started.
    """
    if gpus <= 1 or is_told or is_launched:
        return 1
    return gpus if has_script else None
