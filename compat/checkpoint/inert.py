"""Reading a pickle without running anything that it names."""

from __future__ import annotations

import pickle
import zipfile
from enum import Enum
from typing import IO, Any

from typing_extensions import Self

from compat.errors import CompatError


class Inert:
    """Stands for an object of any class: holds what it was made from, and does nothing.

    Attributes:
        named: `module.name` of the class or function that the pickle names.
        args: what it was called with.
        state: the attributes that it was given.
    """

    named = ""

    def __new__(cls, *args: Any, **_: Any) -> Self:
        """Take whatever the pickle passes."""
        instance = super().__new__(cls)
        instance.args, instance.state = args, {}
        return instance

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(self.state, dict):
            self.state[key] = value

    def append(self, item: Any) -> None:
        """An element, where the object is a list of some kind."""
        self.args = (*self.args, item)

    def extend(self, items: Any) -> None:
        """Elements, where the object is a list of some kind."""
        self.args = (*self.args, *items)

    def plain(self) -> Any:
        """What it holds, as plain data: an enum by its value, other objects by their attributes."""
        if isinstance(self.state, dict) and self.state:
            return {key: plain(value) for key, value in self.state.items()}
        return plain(self.args[0]) if len(self.args) == 1 else [plain(arg) for arg in self.args]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (Inert,), {"named": f"{module}.{name}", "__module__": __name__})

    def persistent_load(self, pid: Any) -> Any:
        return None


def plain(value: Any) -> Any:
    """`value` without stand-ins."""
    if isinstance(value, Inert):
        return value.plain()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def read_arguments(path: str) -> dict[str, Any]:
    """The attributes of the arguments that a Trainer has saved as `training_args.bin`.

    Args:
        path: the file.

    Returns:
        Attribute → value, as plain data. No class and no function that the file names is looked up.

    Raises:
        CompatError: the file is not what a Trainer writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(member) as file:
                return _attributes(file)
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, AttributeError, EOFError) as error:
        msg = f"`{path}`: not a file of saved arguments ({error}). Give a training_args.bin."
        raise CompatError(msg) from error


def _attributes(file: IO[bytes]) -> dict[str, Any]:
    loaded = _Unpickler(file).load()
    # Weights, too, are objects of some class, and would pass for arguments that all have their defaults.
    if (
        not isinstance(loaded, Inert)
        or not isinstance(loaded.state, dict)
        or "output_dir" not in loaded.state
    ):
        msg = f"it holds a {type(loaded).__name__}"
        raise pickle.UnpicklingError(msg)
    return {name: plain(value) for name, value in loaded.state.items()}
