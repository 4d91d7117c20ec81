"""Reads a pickle without running anything that it names."""

from __future__ import annotations

import pickle
import zipfile
from enum import Enum
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import Self, override

from compat.errors import CompatError

if TYPE_CHECKING:
    from collections.abc import Iterable

GETATTR = ("builtins.getattr", "__builtin__.getattr")
TYPE = ("builtins.type", "__builtin__.type")


class Inert:
    """A stand-in for an object of any class: it holds the constructor arguments and does nothing.

    Attributes:
        named: `module.name` of the class or function that the pickle names.
        args: the arguments that it was called with.
        state: the attributes that were set.
    """

    named = ""

    def __new__(cls, *args: object, **_: object) -> Self:
        """Accept any arguments that the pickle passes."""
        instance = super().__new__(cls)
        instance.args, instance.state = args, {}
        cls.record(args)
        return instance

    @classmethod
    def record(cls, args: tuple[Any, ...]) -> None:
        """Record a call."""

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **_: object) -> None:
        """Return None for the class of None, which replaces a token.

        Raises:
            UnpicklingError: it is any other result of a call.
        """
        if self.named not in TYPE or self.args != (None,):
            msg = f"it calls what a call of {self.named} gives"
            raise pickle.UnpicklingError(msg)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(self.state, dict):
            self.state[key] = value

    def append(self, item: object) -> None:
        """An element, where the object is a list of some kind."""
        self.args = (*self.args, item)

    def extend(self, items: Iterable[Any]) -> None:
        """Elements, where the object is a list of some kind."""
        self.args = (*self.args, *items)

    def plain(self) -> Any:
        """Return its content as plain data: an enum as its value, other objects as their attributes."""
        if isinstance(self.state, dict) and self.state:
            return {key: plain(value) for key, value in self.state.items()}
        return plain(self.args[0]) if len(self.args) == 1 else [plain(arg) for arg in self.args]


class InertUnpickler(pickle.Unpickler):
    """Loads a pickle with a stand-in for every class and function that it names.

    Args:
        file: the pickle.
        named: receives each name, and whether the pickle calls it.
    """

    def __init__(self, file: IO[bytes], named: dict[str, bool] | None = None) -> None:
        super().__init__(file)
        self._named = {} if named is None else named

    @override
    def find_class(self, module: str, name: str) -> type[Any]:
        """Return a stand-in for every name."""
        named = f"{module}.{name}"
        if "." in name:
            # An attribute of a class, or of a module that a module has imported.
            self._named[f"{module}:{name}"] = True
        if named not in (*GETATTR, *TYPE):
            self._named.setdefault(named, False)

        def record(args: tuple[Any, ...]) -> None:
            if named in TYPE and args == (None,):
                # The class of None, which has no importable name.
                return
            # An enum may be written as an attribute of its class.
            is_member = named in GETATTR and isinstance(args[0], type) and issubclass(args[0], Inert)
            self._named[args[0].named if is_member else named] = True

        return type(name, (Inert,), {"named": named, "__module__": __name__, "record": staticmethod(record)})

    @override
    def persistent_load(self, pid: object) -> None:
        """Return None: tensors are not read."""
        return


def plain(value: object) -> Any:
    """Replace stand-ins in `value` by plain data."""
    if isinstance(value, Inert):
        return value.plain()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def read_arguments(path: str) -> dict[str, Any]:
    """Read the attributes of the arguments that a Trainer saved as `training_args.bin`.

    Args:
        path: the file.

    Returns:
        Attribute → value, as plain data. No class and no function that the file names is looked up.

    Raises:
        CompatError: the file was not written by a Trainer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(member) as file:
                return _attributes(file)
    except Exception as error:
        # The content of a pickle decides which error is raised.
        msg = f"`{path}`: not a file of saved arguments ({error}). Give a training_args.bin."
        raise CompatError(msg) from error


def _attributes(file: IO[bytes]) -> dict[str, Any]:
    loaded = InertUnpickler(file).load()
    # Weights are also objects of a class, and would be read as arguments with only default values.
    if (
        not isinstance(loaded, Inert)
        or not isinstance(loaded.state, dict)
        or "output_dir" not in loaded.state
    ):
        msg = f"it holds a {type(loaded).__name__}"
        raise pickle.UnpicklingError(msg)
    return {name: plain(value) for name, value in loaded.state.items()}
