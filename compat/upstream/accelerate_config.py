"""Reads a file written by `accelerate config` with accelerate's own launcher code."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.errors import ArgumentError
from compat.upstream.environment import CONFIGURATION_PREFIXES, concealed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

DEVICE_TYPES = {
    "MULTI_CPU": "cpu",
    "MULTI_GPU": "cuda",
    "MULTI_HPU": "hpu",
    "MULTI_NPU": "npu",
    "MULTI_XPU": "xpu",
    "DEEPSPEED": "cuda",
    "FSDP": "cuda",
    "MEGATRON_LM": "cuda",
    "XLA": "tpu",
    "TPU": "tpu",
}
"""accelerate's distribution type → the kind of its devices; this machine's for any other type."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What `accelerate launch --config_file FILE` would start.

    Attributes:
        variables: the variables that it sets for the script.
        device_type: kind of the devices; this machine's if None.
        devices: processes on a machine.
        num_nodes: machines.
    """

    variables: dict[str, str]
    device_type: str | None
    devices: int
    num_nodes: int


def read_accelerate_config(path: str | os.PathLike[str]) -> Launch:
    """Determine what `accelerate launch` would start from a configuration file. Nothing is started.

    Mirrors `accelerate.commands.launch.launch_command`, up to the start.

    Args:
        path: YAML or JSON, as `accelerate config` writes it.

    Raises:
        ArgumentError: the file does not exist, or accelerate does not accept it as a configuration.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    given = f"`accelerate_config={os.fspath(path)!r}`"
    if not os.path.isfile(path):
        msg = f"{given}: no such file. Write one with `accelerate config --config_file FILE`."
        raise ArgumentError(msg)
    words = ["--config_file", os.fspath(path), "script.py"]
    try:
        with concealed(CONFIGURATION_PREFIXES), _silent():
            args, config, _ = _validate_launch_command(launch_command_parser().parse_args(words))
            variables = _variables(args, config)
    except Exception as error:
        # accelerate checks little: a mistake may raise any kind of error.
        msg = (
            f"{given}: not a configuration as `accelerate config` writes it. In accelerate's words: "
            f"{type(error).__name__}: {error}"
        )
        raise ArgumentError(msg) from error
    if config.compute_environment.value != "LOCAL_MACHINE":
        msg = f"{given}: it is for {config.compute_environment.value}. Give one for machines of your own."
        raise ArgumentError(msg)
    nodes = int(args.num_machines or 1)
    return Launch(
        variables=variables,
        device_type="cpu" if config.use_cpu else DEVICE_TYPES.get(str(config.distributed_type.value)),
        devices=max(1, int(args.num_processes) // nodes),
        num_nodes=nodes,
    )


def _variables(args: argparse.Namespace, config: Any) -> dict[str, str]:
    """Return the variables that the launcher chosen by accelerate would set."""
    from accelerate.utils import launch

    args.main_process_port = 0  # otherwise it would check whether its default port is free
    if args.use_deepspeed:
        fields = [*config.deepspeed_config, *(["mixed_precision"] if config.mixed_precision else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, told = launch.prepare_deepspeed_cmd_env(args)
    elif args.use_fsdp or args.use_megatron_lm or args.multi_gpu:
        told = launch.prepare_multi_gpu_env(args)
    elif args.tpu:
        _, told = launch.prepare_tpu(args, {})
    else:
        _, told = launch.prepare_simple_launcher_cmd_env(args)
    return {name: value for name, value in told.items() if name.startswith(CONFIGURATION_PREFIXES)}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress accelerate's messages about defaults that it has filled in."""
    logger = logging.getLogger("accelerate.commands.launch")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
