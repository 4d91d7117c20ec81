"""The one file that reads and writes `os.environ`, and the process-wide state of accelerate."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from accelerate.state import AcceleratorState

CONFIGURATION_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
"""Variables by which transformers hands settings to accelerate."""

LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
"""Variables by which launchers tell how many processes they have started on this machine."""


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
        main_address: where the first process is reached.
        main_port: its port.
        mixed_precision: what `accelerate launch` has asked for: "no", "fp16" or "bf16".
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
    mixed_precision: str = "no"

    @classmethod
    def of(cls, args: Any) -> Facts:
        """Read the facts from HF arguments, which have chosen a device by the time they exist."""
        world_size: int = args.world_size
        devices = min(_first_number(LOCAL_SIZES, world_size), world_size)
        return cls(
            device_type=args.device.type,
            device_index=args.device.index,
            devices=devices,
            num_nodes=max(1, world_size // devices),
            world_size=world_size,
            process_index=args.process_index,
            local_process_index=args.local_process_index,
            main_address=os.environ.get("MASTER_ADDR", cls.main_address),
            main_port=_first_number(("MASTER_PORT",), cls.main_port),
            mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION", cls.mixed_precision),
        )

    @staticmethod
    def device_type_here() -> str:
        """Kind of the device that HF would choose on this machine."""
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"


def _first_number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def _configuration() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(CONFIGURATION_PREFIXES)}


@contextlib.contextmanager
def contained() -> Iterator[dict[str, str]]:
    """Undo what the block does to accelerate's variables, and fill the yielded dict with it at the end."""
    before = _configuration()
    written: dict[str, str] = {}
    try:
        yield written
    finally:
        after = _configuration()
        written.update({k: v for k, v in after.items() if before.get(k) != v})
        for name in after.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def overlaid(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` for the block alone."""
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
    """Let the block build an accelerator as if no trainer of ours had built one before it.

    accelerate keeps one state for the process, and refuses a second accelerator of another precision. A state
    that the user has configured is left to HF, which has an argument for it (`use_configured_state`).
    """
    from accelerate.state import AcceleratorState

    if _MARK in AcceleratorState._shared_state:
        AcceleratorState._reset_state()
    was_empty = not AcceleratorState._shared_state
    yield
    if was_empty:
        AcceleratorState._shared_state[_MARK] = True


def detached(state: AcceleratorState) -> AcceleratorState:
    """A copy of accelerate's process-wide state, for one trainer alone."""
    copy = object.__new__(type(state))
    copy.__dict__ = dict(state.__dict__)
    return copy
