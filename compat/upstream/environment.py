"""The one file that reads and writes `os.environ`, and the process-wide state of accelerate."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from transformers import TrainingArguments

CONFIGURATION_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
"""Prefixes of variables with which transformers and `accelerate launch` pass settings to accelerate."""

TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
"""The values that accelerate treats as true, in lower case."""

LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
"""Variables in which launchers set the number of processes on this machine."""

LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Variables in which launchers set the local rank of a process."""


class _Installed:
    """The packages that are installed, each looked for when it is asked for: a search reads folders."""

    def __contains__(self, package: object) -> bool:
        return importlib.util.find_spec(str(package)) is not None


@dataclass(frozen=True, kw_only=True)
class Here:
    """Properties of this machine and process; a plan for another machine does not use them.

    Attributes:
        device_type: kind of the device that HF would choose: "cpu", "cuda", "mps", "xla", "npu", …
        devices: how many of them a job can use; None if there is no limit.
        packages: holds the names of the packages that are installed.
        is_distributed: whether a launcher has started this process as part of a job, possibly of one process.
    """

    device_type: str = "cpu"
    devices: int | None = None
    packages: Container[str] = frozenset()
    is_distributed: bool = False

    @classmethod
    def look(cls, *, is_distributed: bool = False) -> Here:
        """Inspect the machine without initializing a device."""
        import torch

        kind = Facts.device_type_here()
        return cls(
            device_type=kind,
            devices=None if kind in {"cpu", "xla"} else torch.accelerator.device_count(),
            packages=_Installed(),
            is_distributed=is_distributed,
        )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a plan may know of the machine and the process, read once.

    Attributes:
        device_type: kind of the device that the arguments chose: "cpu", "cuda", "mps", …
        device_index: its index, or None where the kind has no index.
        devices: number of devices of that kind on this machine that the job may use.
        num_nodes: number of machines of the job.
        world_size: number of processes of the job.
        process_index: rank of this process among them.
        local_process_index: its rank among those of this machine.
        main_address: the address of the first process.
        main_port: its port.
        launched: the variables that `accelerate launch` has set. Those of our arguments are not included,
            because our arguments do not leave them in the environment.
        here: this machine and process; None in a plan for another machine.
    """

    device_type: str = "cpu"
    device_index: int | None = None
    devices: int = 1
    num_nodes: int = 1
    world_size: int = 1
    process_index: int = 0
    local_process_index: int = 0
    main_address: str = "127.0.0.1"
    main_port: int = 29500
    launched: Mapping[str, str] = field(default_factory=dict)
    here: Here | None = None

    @property
    def mixed_precision(self) -> str:
        """The precision that `accelerate launch` requests: "no", "fp8", "fp16" or "bf16"."""
        return self.launched.get("ACCELERATE_MIXED_PRECISION", "no")

    @classmethod
    def of(cls, args: TrainingArguments) -> Facts:
        """Read the facts from HF arguments, which have chosen a device by the time they exist."""
        is_distributed = args.parallel_mode.value in {"distributed", "tpu"}
        return cls._of(args, args.world_size, Here.look(is_distributed=is_distributed))

    @classmethod
    def of_state(cls, state: PartialState) -> Facts:
        """Read the facts from the state that accelerate keeps of this process."""
        return cls._of(state, state.num_processes, Here.look(is_distributed=state.num_processes > 1))

    @classmethod
    def _of(cls, process: TrainingArguments | PartialState, world_size: int, here: Here) -> Facts:
        devices = told_local_size(world_size)
        if devices <= process.local_process_index:
            # Not set by the launcher; accelerate then writes 1.
            devices = world_size
        return cls(
            device_type=process.device.type,
            device_index=process.device.index,
            devices=devices,
            num_nodes=max(1, world_size // devices),
            world_size=world_size,
            process_index=process.process_index,
            local_process_index=process.local_process_index,
            main_address=os.environ.get("MASTER_ADDR", cls.main_address),
            main_port=_first_number(("MASTER_PORT",), cls.main_port),
            launched=configuration(),
            here=here,
        )

    @staticmethod
    def device_type_here() -> str:
        """Return the kind of the device that HF would choose on this machine."""
        import torch
        from transformers.utils import is_torch_xla_available

        if is_torch_xla_available():
            return "xla"
        if torch.cuda.is_available():
            return "cuda"
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return "cpu" if device is None else device.type


def told_local_size(world_size: int) -> int:
    """Return the number of processes on this host that the launcher has set.

    If the launcher has not set it, accelerate writes 1.

    Args:
        world_size: the number of processes of the job.
    """
    return 1 if world_size == 1 else min(_first_number(LOCAL_SIZES, world_size), world_size)


def _first_number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def configuration() -> dict[str, str]:
    """Return the variables that configure accelerate."""
    return {name: os.environ[name] for name in os.environ if name.startswith(CONFIGURATION_PREFIXES)}


def local_rank() -> int:
    """Return the local rank of this process from its launcher; 0 without a launcher."""
    return _first_number(LOCAL_RANKS, 0)


def is_kept_on_cpu() -> bool:
    """Whether `accelerate launch` restricts the job to the CPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE


@contextlib.contextmanager
def contained() -> Iterator[dict[str, str]]:
    """Undo the block's changes to accelerate's variables; at the end, the yielded dict contains them."""
    before = configuration()
    written: dict[str, str] = {}
    try:
        yield written
    finally:
        after = configuration()
        written.update({k: v for k, v in after.items() if before.get(k) != v})
        for name in after.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def concealed(prefixes: tuple[str, ...]) -> Iterator[None]:
    """Hide the variables with these prefixes from the block, and undo its changes to them."""
    before = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    try:
        for name in before:
            del os.environ[name]
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(prefixes)]:
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def overlaid(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` only within the block."""
    before = {name: os.environ.get(name) for name in variables}
    with contained():
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


_MARK = "_made_for_a_compat_trainer"


@contextlib.contextmanager
def own_accelerator_state() -> Iterator[None]:
    """Let the block build an accelerator as if no `compat` trainer had built one before.

    accelerate keeps one state for the process, and refuses a second accelerator of another precision. A state
    that the user has configured is left to HF, which has an argument for it (`use_configured_state`).
    """
    from accelerate.state import AcceleratorState

    forget_own_accelerator_state()
    was_empty = not AcceleratorState._shared_state
    try:
        yield
    except BaseException:
        if was_empty:
            # An incomplete state would break every later accelerator.
            AcceleratorState._reset_state()
        raise
    if was_empty:
        AcceleratorState._shared_state[_MARK] = True


def forget_own_accelerator_state() -> None:
    """Remove the process-wide state that a `compat` trainer has left; the trainer has a copy."""
    from accelerate.state import AcceleratorState

    if _MARK in AcceleratorState._shared_state:
        AcceleratorState._reset_state()


def detached(state: AcceleratorState) -> AcceleratorState:
    """Copy accelerate's process-wide state for a single trainer."""
    copy = object.__new__(type(state))
    copy.__dict__ = dict(state.__dict__)
    return copy
