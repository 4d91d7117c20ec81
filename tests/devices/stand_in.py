"""A device made of the CPU: its tensors hold those of the CPU, its random numbers are its own.

Each process sees one such device of its own.

Its type is `npu`, or what the variable STAND_IN names.

Imported before transformers, it makes torch, transformers and accelerate believe in such a device, so that
placement, random states, autocast and the gradient scaler can be tried on any machine. Needs torch 2.13.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections import Counter
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = os.environ.get("STAND_IN", "npu")
BACKEND = "hccl"
"""The backend that accelerate takes for `npu`: here gloo, as the tensors in disguise are the CPU's."""

COUNTS: Counter[str] = Counter()
"""Copies from the device: "item" for a number, "copy" for a tensor."""

DRAWING = ("bernoulli", "dropout", "multinomial", "normal_", "rand", "uniform_")
"""Parts of the names of operators that draw random numbers."""

LOWERED = ("addmm", "baddbmm", "bmm", "linear", "matmul", "mm", "scaled_dot_product_attention")
RAISED = ("cross_entropy_loss", "layer_norm", "nll_loss")
"""Operators that autocast runs in the lower precision, and in fp32."""


class Generator:
    """The random numbers of the device."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(0)

    @contextlib.contextmanager
    def drawing(self) -> Any:
        """Have the CPU draw from this generator."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self.own.get_state())
        try:
            yield
        finally:
            self.own.set_state(torch.get_rng_state())
            torch.set_rng_state(outer)


GENERATOR = Generator()


class Scaler(torch.amp.GradScaler):
    """Scales gradients without a check for CUDA."""

    def __init__(self, **options: Any) -> None:
        super().__init__("cpu", **options)


def _random() -> dict[str, Any]:
    return {
        "get_rng_state": lambda *_: GENERATOR.own.get_state(),
        "set_rng_state": lambda state, *_: GENERATOR.own.set_state(state),
        "get_rng_state_all": lambda: [GENERATOR.own.get_state()],
        "set_rng_state_all": lambda states: GENERATOR.own.set_state(states[0]),
    }


class Device(contextlib.nullcontext):  # type: ignore[type-arg]
    """The context of a chosen device; there is one."""

    def __init__(self, *_: object) -> None:
        super().__init__()


MODULE = types.SimpleNamespace(
    **_random(),
    random=types.SimpleNamespace(**_random()),
    amp=types.SimpleNamespace(GradScaler=Scaler),
    device=Device,
    is_available=lambda: True,
    is_initialized=lambda: True,
    is_bf16_supported=lambda *_: True,
    _is_in_bad_fork=lambda: False,
    device_count=lambda: 1,
    current_device=lambda: 0,
    set_device=lambda *_: None,
    synchronize=lambda *_: None,
    empty_cache=lambda: None,
    manual_seed=GENERATOR.own.manual_seed,
    manual_seed_all=GENERATOR.own.manual_seed,
    get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
)


class OnDevice(torch.Tensor):
    """A tensor of the device.

    Args:
        held: the tensor of the CPU that has its values.
    """

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:  # noqa: PYI034 (a static method, as torch's)
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(KIND, 0),
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{KIND}({self.held})"

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        COUNTS["copy"] += 1
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As torch pickles tensors of devices whose storage it cannot.
        values = (self.detach().cpu(), self.dtype, f"{KIND}:0", self.requires_grad)
        return (torch._utils._rebuild_device_tensor_from_cpu_tensor, values)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, and give its results the disguise."""
    name, target = func._schema.name, kwargs.get("device")
    COUNTS["item"] += "_local_scalar_dense" in name
    held_args, held_kwargs = tree_map(_bare, args), tree_map(_bare, kwargs)
    held_kwargs.pop("pin_memory", None)
    if "allgather_base" in name:
        # gloo compares shapes, unlike the backends of other devices.
        held_args = tree_map(
            lambda value: value.view(-1) if type(value) is torch.Tensor else value, held_args
        )
    with GENERATOR.drawing() if any(part in name for part in DRAWING) else contextlib.nullcontext():
        result = func(*held_args, **held_kwargs)
    if target is not None and torch.device(target).type != KIND:
        COUNTS["copy"] += 1
        return result
    if (written := _written(func, args, kwargs)) is not None:
        return written
    return tree_map(lambda value: OnDevice(value) if type(value) is torch.Tensor else value, result)


def _bare(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == KIND else value


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The tensor that an operator writes to and returns; None for operators that return new ones."""
    schema = func._schema
    (result,) = schema.returns if len(schema.returns) == 1 else (None,)
    if result is None or result.alias_info is None or not result.alias_info.is_write:
        return None
    place, written = next(
        (place, argument)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return args[place] if place < len(args) else kwargs[written.name]


def _cast(value: Any, dtypes: tuple[torch.dtype, ...], dtype: torch.dtype) -> Any:
    is_meant = isinstance(value, torch.Tensor) and value.device.type == KIND and value.dtype in dtypes
    return value.to(dtype) if is_meant else value


def _autocast(operator: Any, *, lowers: bool) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            low = torch.get_autocast_dtype(KIND)
            dtypes, dtype = (
                ((torch.float32,), low) if lowers else ((torch.bfloat16, torch.float16), torch.float32)
            )
            args, kwargs = tree_map(lambda value: _cast(value, dtypes, dtype), (args, kwargs))
            return operator(*args, **kwargs)

    return kernel


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    _bare(target).copy_(_bare(source))
    return target


def _register() -> list[torch.library.Library]:
    _setup_privateuseone_for_python_backend(KIND, backend_module=MODULE)
    plain = torch.library.Library("aten", "IMPL")
    plain.impl(
        "empty.memory_format",
        lambda size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None: OnDevice(
            torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
        ),
        "PrivateUse1",
    )
    plain.impl(
        "empty_strided",
        lambda size, stride, dtype=None, layout=None, device=None, pin_memory=None: OnDevice(
            torch.empty_strided(size, stride, dtype=dtype)
        ),
        "PrivateUse1",
    )
    plain.impl("_copy_from", _copy_from, "PrivateUse1")
    rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel)
    cast = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, lowers in ((LOWERED, True), (RAISED, False)):
        for name in names:
            cast.impl(name, _autocast(getattr(torch.ops.aten, name).default, lowers=lowers))
    torch.accelerator.set_device_index = lambda *_: None
    # A file that is loaded to the device: storages stay on the CPU, and optimizers move what they load.
    torch.serialization.register_package(
        0,
        lambda storage: None,
        lambda storage, location: storage if location.startswith(KIND) else None,
    )
    torch.distributed.Backend.register_backend(
        BACKEND,
        torch.distributed.ProcessGroupGloo,
        devices=[KIND, "cpu"],
    )
    # Libraries end with their objects.
    return [plain, rest, cast]


LIBRARIES = _register()
