"""What torch knows of the devices of this machine, whatever their type: random states, memory, clocks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

RandomStates = dict[str, list[Any]]
"""Device type → the state of the random number generator of each device, (bytes,) of uint8 on the CPU."""


def device_module(kind: str) -> Any:
    """The module of torch for a device type, as `torch.xpu`; None where it has none.

    Args:
        kind: as in `torch.device(kind)`.
    """
    import torch

    return getattr(torch, kind, None)


def built_for() -> str | None:
    """The device type other than the CPU that torch was built for; asking touches no device."""
    import torch

    device = torch.accelerator.current_accelerator()
    return None if device is None else str(device.type)


def devices_in_use() -> str | None:
    """The type of this machine's devices other than the CPU; None before this process has used one."""
    import torch

    kind = built_for()
    is_used = kind is not None and ask(kind, "is_initialized", default=True)
    return kind if is_used and torch.accelerator.is_available() else None


def ask(kind: str, name: str, *args: object, default: Any = None) -> Any:
    """Call a function of torch's module for a device type.

    Args:
        kind: the device type.
        name: the function.
        args: its arguments.
        default: the result where torch has no such function.
    """
    function = getattr(device_module(kind), name, None)
    return default if function is None else function(*args)


def random_states() -> RandomStates:
    """The states of the devices' random number generators; empty before this process has used a device."""
    kind = devices_in_use()
    if kind is None:
        return {}
    states = ask(kind, "get_rng_state_all")
    if states is None:
        # Of the current device: the module has no functions for all of them, as `torch.mps`.
        state = ask(kind, "get_rng_state")
        states = [] if state is None else [state]
    return {kind: list(states)} if states else {}


def restore_random_states(states: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Restore the states of the devices' random number generators.

    States of another number of devices, or of devices that this machine has not, are left out.

    Args:
        states: the result of `random_states`.
    """
    for kind, found in states.items():
        if len(found) != len(random_states().get(kind, ())):
            continue
        if hasattr(device_module(kind), "set_rng_state_all"):
            ask(kind, "set_rng_state_all", list(found))
        else:
            ask(kind, "set_rng_state", found[0])


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Restore the states of the devices' random number generators at the end of the block."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
