"""Internal state of a loader: random number generators, and states that a dataset has loaded."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from compat.upstream.values import Loader, Rows

States = dict[str, list[Any]]
"""Path of a generator from its loader → its kind and its state, as plain data."""

MOST_ENTRIES = 64
"""The largest container that is searched: a larger one holds data."""

MOST_OBJECTS = 5000
"""The maximum number of objects that are searched; a generator is close to its loader."""

CLOSED = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, type, types.ModuleType),
    *(torch.Tensor, np.ndarray, torch.device, torch.dtype),
    *(transformers.Trainer, transformers.PreTrainedModel, logging.Logger),
)
"""Kinds of objects that are not searched: values, models, a trainer that a callback may reference, and
loggers, because each logger references all others (HF's collator that removes columns has one)."""

LIBRARIES = (
    "torch",
    "numpy",
    "transformers",
    "datasets",
    "accelerate",
    "lightning",
    "builtins",
    "collections",
)
"""Packages whose classes keep their generators on their instances."""

CALLABLES = (functools.partial, types.MethodType, types.BuiltinMethodType)
CALLED = ("__self__", "__func__", "func", "args", "keywords")
"""Callable types, and the attributes of theirs that are searched."""


@dataclass(frozen=True)
class Kind:
    """A kind of generator, and how its state is read and put back."""

    type: type
    read: Callable[[Any], Any]
    put_back: Callable[[Any, Any], object]


KINDS = {
    "torch": Kind(torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    "numpy": Kind(
        np.random.Generator,
        lambda own: own.bit_generator.state,
        lambda own, state: setattr(own.bit_generator, "state", state),
    ),
    "numpy's older": Kind(
        np.random.RandomState,
        lambda own: own.get_state(legacy=False),
        lambda own, state: own.set_state(state),
    ),
    "bits": Kind(
        np.random.BitGenerator,
        lambda own: own.state,
        lambda own, state: setattr(own, "state", state),
    ),
    "python": Kind(
        random.Random,
        lambda own: own.getstate(),
        lambda own, state: own.setstate(state),
    ),
}


class Generators:
    """Random number generators that the parts of a loader own.

    Args:
        loader: its sampler, dataset and collator are searched, in this process only: their copies in workers
            cannot be reached.
    """

    def __init__(self, loader: Loader = None) -> None:
        self._loader = loader
        self.search()

    def search(self) -> None:
        """Search again: some, such as the one of HF's masking collator, are created with the first batch."""
        self._found = {path: own for path, own in reachable(self._loader) if _kind_of(own) is not None}

    def states(self) -> States:
        """Return their current states."""
        states: States = {}
        for path, own in self._found.items():
            name = _kind_of(own)
            assert name is not None, "found as one"
            states[path] = [name, KINDS[name].read(own)]
        return states

    def put_back(self, states: Mapping[str, Any]) -> None:
        """Restore the generators that exist now and existed when `states` were read."""
        if states.keys() - self._found.keys():
            _touch(self._loader)
            self.search()
        for path, (name, state) in states.items():
            own = self._found.get(path)
            if own is not None and _kind_of(own) == name:
                KINDS[name].put_back(own, state)


def _touch(loader: Loader) -> None:
    """Make a batch of one row and discard it."""
    dataset: Rows = getattr(loader, "dataset", None)
    collate: Callable[..., Any] | None = getattr(loader, "collate_fn", None)
    if collate is None or not hasattr(dataset, "__getitem__"):
        return
    # The caller restores the random states; an error here is raised again when a batch is requested.
    with contextlib.suppress(Exception):
        collate([dataset[0]])


def _kind_of(value: object) -> str | None:
    return _kind_of_type(type(value))  # type: ignore[arg-type]


@functools.lru_cache(1024)
def _kind_of_type(found: type) -> str | None:
    if issubclass(found, random.SystemRandom):
        return None  # it has no state
    return next((name for name, kind in KINDS.items() if issubclass(found, kind.type)), None)


def reachable(root: object) -> Iterator[tuple[str, Any]]:
    """Yield every object reachable from another one, nearest first.

    Args:
        root: the starting object; not yielded itself.

    Yields:
        The path to an object, and the object; each object once.
    """
    seen, waiting = {id(root)}, deque([("", root)])
    while waiting and len(seen) < MOST_OBJECTS:
        path, holder = waiting.popleft()
        for name, value in _parts(holder):
            if _is_closed(type(value)) or id(value) in seen:  # type: ignore[arg-type]
                continue
            seen.add(id(value))
            here = f"{path}.{name}" if path else name
            yield here, value
            waiting.append((here, value))


@functools.lru_cache(1024)
def _is_closed(found: type) -> bool:
    return issubclass(found, CLOSED)


def _parts(holder: object) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, Mapping):
        yield from [(str(key), value) for key, value in holder.items()] if _is_small(holder) else ()
    elif isinstance(holder, (list, tuple, set, frozenset)):
        yield from ((str(index), value) for index, value in enumerate(holder)) if _is_small(holder) else ()
    elif isinstance(holder, types.FunctionType):
        yield from _parts_of_function(holder)
    elif isinstance(holder, CALLABLES):
        yield from ((name, getattr(holder, name)) for name in CALLED if hasattr(holder, name))
    elif _kind_of(holder) is None:
        yield from _parts_of_object(holder)


def _parts_of_object(holder: object) -> Iterator[tuple[str, Any]]:
    if isinstance(values := getattr(holder, "__dict__", None), dict):
        yield from list(values.items())
    for kind in type(holder).__mro__:
        if kind.__module__.partition(".")[0] not in LIBRARIES:
            yield from _parts_of_class(holder, kind)


def _parts_of_class(holder: object, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class holds for its instances: slots, attributes, and globals that its methods name."""
    for name, value in list(vars(kind).items()):
        if isinstance(value, types.MemberDescriptorType):
            with contextlib.suppress(AttributeError):
                yield name, getattr(holder, name)
        elif isinstance(value, types.FunctionType):
            yield from ((f"{name}.{part}", inner) for part, inner in _parts_of_function(value))
        elif _kind_of(value) is not None:
            yield name, value


def _is_small(container: Sized) -> bool:
    return len(container) <= MOST_ENTRIES


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield a function's closure, its defaults, and the globals that it names in its own module."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # not bound yet
    yield from ((f"default {index}", value) for index, value in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        is_own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if is_own or isinstance(value, (dict, list, tuple)) or _kind_of(value) is not None:
            yield name, value


SHUFFLE_BUFFER = "BufferShuffledExamplesIterable"
"""The class that shuffles a stream of `datasets`; its state omits the rows in its buffer."""


def tells_all(loader: Loader) -> bool:
    """Whether the state of a loader is enough to go on from, and can be forgotten when the pass is over."""
    if getattr(loader, "num_workers", 0) and getattr(loader, "persistent_workers", False):
        # They keep the loaded state, and start each later pass from it.
        return False
    return all(type(part).__name__ != SHUFFLE_BUFFER for _, part in reachable(loader))


class LoadedState:
    """A state that a loader has loaded for the rest of one pass.

    Some datasets, such as `datasets.IterableDataset`, keep a loaded state and start every later pass from it.
    Attributes that loading set, and that the pass did not change, are restored when the pass is over.

    Args:
        loader: the loader.
        state: the result of its `state_dict`.
    """

    def __init__(self, loader: Loader, state: object) -> None:
        dataset = getattr(loader, "dataset", None)
        self._holders = [] if dataset is None else [dataset, *(part for _, part in reachable(dataset))]
        self._before = [dict(own) for own in self._own()]
        self._set: list[tuple[dict[str, Any], str, Any, Any]] = []
        loader.load_state_dict(state)

    def _own(self) -> Iterator[dict[str, Any]]:
        for holder in self._holders:
            own = getattr(holder, "__dict__", {})
            yield own if isinstance(own, dict) else {}

    def note(self) -> None:
        """Record what loading has set; some loaders load when the pass begins."""
        for own, before in zip(self._own(), self._before, strict=True):
            self._set += [
                (own, name, before.get(name), value)
                for name, value in own.items()
                if name in before and before[name] is not value
            ]
        self._before = []

    def forget(self) -> None:
        """Restore the attributes that still have the value that loading set."""
        for own, name, before, loaded in self._set:
            if own.get(name) is loaded:
                own[name] = before
        self._set, self._holders = [], []
