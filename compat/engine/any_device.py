"""Lightning's accelerator of a device: its own where it has one, and otherwise by what torch knows of it."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import get_grad_scaler
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry, XLAAccelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy as _DDPStrategy
from lightning.pytorch.strategies import SingleDeviceStrategy
from typing_extensions import override

from compat.arguments.lightning import count
from compat.upstream.devices import ask

if TYPE_CHECKING:
    from collections.abc import Mapping

ALONE = ("auto", "single_device")
"""Lightning's names for the strategy of one process on one device."""

MIXED = ("16-mixed", "bf16-mixed")
"""Lightning's names of precisions that use autocast."""


class AnyDevice(Accelerator):
    """The accelerator of a device type that torch knows and Lightning does not: xpu, npu, mlu, musa, ….

    There is a class for each type, since Lightning asks the class. Each answer comes from torch's module for
    the type (`torch.xpu`), where it has one.
    """

    kind: ClassVar[str]
    """The device type."""

    @classmethod
    def _ask(cls, name: str, *args: Any, default: Any = None) -> Any:
        """Call a function of torch's module for the device type; the default where there is none."""
        return ask(cls.kind, name, *args, default=default)

    @override
    def setup_device(self, device: torch.device) -> None:
        if device.index is not None:
            self._ask("set_device", device)

    @override
    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return self._ask("memory_stats", device, default={}) or {}

    @override
    def teardown(self) -> None:
        self._ask("empty_cache")

    @classmethod
    @override
    def parse_devices(cls, devices: Any) -> Any:
        return cls.auto_device_count() if devices in {-1, "-1", "auto"} else devices

    @classmethod
    @override
    def get_parallel_devices(cls, devices: Any) -> list[torch.device]:
        indices = range(int(devices)) if isinstance(devices, (int, str)) else devices
        return [torch.device(cls.kind, index) for index in indices]

    @classmethod
    @override
    def auto_device_count(cls) -> int:
        return int(cls._ask("device_count", default=1))

    @classmethod
    @override
    def is_available(cls) -> bool:
        return bool(cls._ask("is_available", default=True))

    @classmethod
    @override
    def name(cls) -> str:
        return cls.kind


class XLADevice(AnyDevice, XLAAccelerator):  # type: ignore[misc]
    """The accelerator of XLA devices of any PJRT client; Lightning's own knows TPUs only."""

    kind = "xla"

    @override
    def get_device_stats(self, device: Any) -> dict[str, Any]:
        # Clients without a memory of their own, such as the CPU's, report none.
        with contextlib.suppress(RuntimeError):
            return XLAAccelerator.get_device_stats(self, device)
        return {}


@functools.cache
def _class_of(kind: str) -> type[AnyDevice]:
    return type(f"{kind.title()}Accelerator", (AnyDevice,), {"kind": kind})


def accelerator_of(kind: str) -> Accelerator:
    """The accelerator of a device type.

    Args:
        kind: as in `torch.device(kind)`.
    """
    if kind == XLADevice.kind:
        return XLADevice()
    if is_lightnings(kind):
        accelerator: Accelerator = AcceleratorRegistry.get(kind)
        return accelerator
    return _class_of(kind)()


class DDPStrategy(_DDPStrategy):
    """DDP on devices of any type; Lightning's takes each device but the CPU for one of CUDA."""

    @override
    def determine_ddp_device_ids(self) -> list[int] | None:
        # With an index, Lightning wraps the model within a stream of CUDA.
        return super().determine_ddp_device_ids() if self.root_device.type == "cuda" else None


def is_lightnings(kind: str) -> bool:
    """Whether Lightning has an accelerator of its own for a device type.

    Args:
        kind: as in `torch.device(kind)`.
    """
    # A device that torch calls "tpu" is not driven by torch_xla, as the one that Lightning calls so.
    return kind in AcceleratorRegistry and kind != XLAAccelerator.name()


def trainer_flags(device: torch.device, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the flags of a Lightning Trainer for a device that Lightning does not know.

    Lightning takes such a device as an object only, places models on the CPU unless told otherwise, and
    computes mixed precision as for CUDA.

    Args:
        device: the device, as `TrainingArguments.device`.
        flags: of `lightning.pytorch.Trainer`, as `compat.plan(args).flags`.

    Returns:
        The flags; those that were passed where Lightning knows the device.
    """
    kind, found = device.type, dict(flags)
    if is_lightnings(kind) or kind == XLADevice.kind:
        return found
    found["accelerator"] = accelerator_of(kind)
    if found.get("strategy", "auto") in ALONE and count(found.get("devices", 1)) == 1:
        found["strategy"] = SingleDeviceStrategy(device, accelerator=found["accelerator"])
        found["accelerator"] = "auto"
    elif found.get("strategy") == "ddp":
        found["strategy"] = DDPStrategy()
    return {**found, **mixed_flags(kind, found, MixedPrecision)}


def mixed_flags(kind: str, flags: Mapping[str, Any], plugin: type) -> dict[str, Any]:
    """Return the flags of a mixed precision on such a device; none for another precision.

    Args:
        kind: the device type.
        flags: of a Trainer or of Fabric.
        plugin: Lightning's `MixedPrecision` for one of the two.
    """
    precision = flags.get("precision")
    if precision not in MIXED:
        return {}
    scaler = get_grad_scaler() if precision == "16-mixed" else None
    plugins = flags.get("plugins") or []
    listed = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    return {"precision": None, "plugins": [*listed, plugin(precision, kind, scaler)]}
