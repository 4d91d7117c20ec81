"""The setting of a launcher for one argument, and the names of its variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compat.upstream.environment import TRUE

if TYPE_CHECKING:
    from collections.abc import Mapping

USE_FSDP, USE_DEEPSPEED, USE_PARALLELISM, USE_MEGATRON = (
    f"ACCELERATE_USE_{kind}" for kind in ("FSDP", "DEEPSPEED", "PARALLELISM_CONFIG", "MEGATRON_LM")
)
PRECISION, DYNAMO, DEEPSPEED_FILE = (
    f"ACCELERATE_{what}" for what in ("MIXED_PRECISION", "DYNAMO_BACKEND", "DEEPSPEED_CONFIG_FILE")
)


def is_true(text: str | None) -> bool:
    """Whether a variable is true."""
    return (text or "").lower() in TRUE


@dataclass(frozen=True)
class LauncherOverride:
    """What a launcher has said about one argument.

    Attributes:
        field: the argument; `fsdp_config.` and an entry for one of those.
        value: the launcher's value.
        variables: the variables that set it, as NAME=value.
        holds: whether it applies; otherwise the arguments set another value, which takes precedence.
        because: why it has no effect, if it has none.
    """

    field: str
    value: object
    variables: tuple[str, ...]
    holds: bool = True
    because: str = ""

    @property
    def note(self) -> str:
        """The source of the value, for display."""
        said = ", ".join(self.variables)
        if self.because:
            return f"`accelerate launch` asks for it ({said}): {self.because}"
        return (
            f"`accelerate launch` asks for it: {said}"
            if self.holds
            else f"wins over `accelerate launch`: {said}"
        )


def named(variables: Mapping[str, str], *names: str) -> tuple[str, ...]:
    """Return the variables that are set, as NAME=value."""
    return tuple(f"{name}={variables[name]}" for name in names if name in variables)
