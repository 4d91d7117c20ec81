"""HF arguments, completed by the settings of `accelerate launch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.translate.strategy import fsdp_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainingArguments

    from compat.translate.accelerate_env.override import LauncherOverride


class AsLaunched:
    """The effective HF arguments of a run: with the launcher's values where they set nothing.

    Attributes:
        overrides: all settings of the launcher.
        defaults: argument → default, of the arguments that the installed release has.
    """

    def __init__(
        self, args: TrainingArguments, overrides: tuple[LauncherOverride, ...], defaults: Mapping[str, Any]
    ) -> None:
        self.overrides = overrides
        self.defaults = defaults
        self._args = args
        self._values: dict[str, Any] = {}
        entries: dict[str, Any] = {}
        for override in overrides:
            if override.holds and not override.because:
                name, _, entry = override.field.partition(".")
                (entries if entry else self._values)[entry or name] = override.value
        if entries:
            own = fsdp_config(args) if args.fsdp else {}
            self._values["fsdp_config"] = {**own, **entries}

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__["_values"]
        return values[name] if name in values else getattr(self.__dict__["_args"], name)

    def is_from_launcher(self, name: str) -> bool:
        """Whether the value of an argument is from the launcher."""
        return name in self._values
