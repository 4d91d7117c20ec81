"""What a loader keeps to itself: generators of random numbers, and states that a dataset has loaded."""

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
"""Entries of a container that is looked into: what has more holds data."""

MOST_OBJECTS = 5000
"""Objects that are looked at; a generator lies close to its loader."""

CLOSED = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, type, types.ModuleType),
    *(torch.Tensor, np.ndarray, torch.device, torch.dtype),
    *(transformers.Trainer, transformers.PreTrainedModel, logging.Logger),
)
"""Kinds of objects that are not looked into: values, models, the trainer that a callback may lead to, and
loggers, for each leads to all others: HF's collator that removes columns has one."""

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
"""Packages whose classes are known to keep their generators on their objects."""

CALLABLES = (functools.partial, types.MethodType, types.BuiltinMethodType)
CALLED = ("__self__", "__func__", "func", "args", "keywords")
"""What these are made of."""


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

GENERATORS = tuple(kind.type for kind in KINDS.values())


class Generators:
    """Generators of random numbers that a loader's parts have for themselves.

    Args:
        loader: its sampler, dataset and collator are searched, in this process alone: copies of them in
            workers are out of reach.
    """

    def __init__(self, loader: Loader = None) -> None:
        self._loader = loader
        self.search()

    def search(self) -> None:
        """Look again: some are made with the first batch, as that of HF's collator for masked tokens."""
        self._found = {path: own for path, own in reachable(self._loader) if _kind_of(own) is not None}

    def states(self) -> States:
        """Their states now."""
        states: States = {}
        for path, own in self._found.items():
            name = _kind_of(own)
            assert name is not None, "found as one"
            states[path] = [name, KINDS[name].read(own)]
        return states

    def put_back(self, states: Mapping[str, Any]) -> None:
        """Put those back that are there and were there when `states` were read."""
        if states.keys() - self._found.keys():
            _touch(self._loader)
            self.search()
        for path, (name, state) in states.items():
            own = self._found.get(path)
            if own is not None and _kind_of(own) == name:
                KINDS[name].put_back(own, state)


def _touch(loader: Loader) -> None:
    """Make a batch that nobody gets, of one row."""
    dataset: Rows = getattr(loader, "dataset", None)
    collate: Callable[..., Any] | None = getattr(loader, "collate_fn", None)
    if collate is None or not hasattr(dataset, "__getitem__"):
        return
    # What it draws is put back by who asks for it; what fails here fails again where a batch is asked for.
    with contextlib.suppress(Exception):
        collate([dataset[0]])


def _kind_of(value: object) -> str | None:
    if not isinstance(value, GENERATORS) or isinstance(value, random.SystemRandom):
        return None  # the last has no state
    return next((name for name, kind in KINDS.items() if isinstance(value, kind.type)), None)


def reachable(root: object) -> Iterator[tuple[str, Any]]:
    """Every object that another one holds, the nearest first.

    Args:
        root: where to begin; not among them.

    Yields:
        The path to an object, and the object; each object once.
    """
    seen, waiting = {id(root)}, deque([("", root)])
    while waiting and len(seen) < MOST_OBJECTS:
        path, holder = waiting.popleft()
        for name, value in _parts(holder):
            if isinstance(value, CLOSED) or id(value) in seen:
                continue
            seen.add(id(value))
            here = f"{path}.{name}" if path else name
            yield here, value
            waiting.append((here, value))


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
    """What a class keeps for its objects: in slots, as attributes, and by what its methods name."""
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
    """What a function closes over and has for defaults, and what it names in its own module."""
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
"""What shuffles a stream of `datasets`; its state leaves out the rows that wait in the buffer."""


def tells_all(loader: Loader) -> bool:
    """Whether the state of a loader is enough to go on from, and can be forgotten when the pass is over."""
    if getattr(loader, "num_workers", 0) and getattr(loader, "persistent_workers", False):
        # They keep what they have loaded, and begin each later pass there.
        return False
    return all(type(part).__name__ != SHUFFLE_BUFFER for _, part in reachable(loader))


class LoadedState:
    """A state that a loader has loaded for the rest of one pass.

    A dataset may keep what it has loaded, `datasets.IterableDataset` for one, and begin every later pass
    there. What a load has set in it and a pass has left as it was is put back when the pass is over.

    Args:
        loader: the loader.
        state: what its `state_dict` gave.
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
        """Note what the load has set; some loaders load when the pass begins."""
        for own, before in zip(self._own(), self._before, strict=True):
            self._set += [
                (own, name, before.get(name), value)
                for name, value in own.items()
                if name in before and before[name] is not value
            ]
        self._before = []

    def forget(self) -> None:
        """Put back what is still as the load has set it."""
        for own, name, before, loaded in self._set:
            if own.get(name) is loaded:
                own[name] = before
        self._set, self._holders = [], []
