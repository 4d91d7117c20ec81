"""Copies of tensors that are written while training changes the originals."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

T = TypeVar("T")

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
"""Types of tensors that `copy_` copies whole."""

_WITH_MEMORY = ("cpu", "cuda")
"""Kinds of devices on which a tensor is a piece of memory; on XLA it is a program that makes one."""


def are_plain(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether tensors are contiguous and share no memory, so that their copies are written as they are."""
    found = list(tensors)
    storages = {value.untyped_storage().data_ptr() for value in found if _is_plain(value)}
    return len(storages) == len(found) and all(value.is_contiguous() for value in found)


def _is_plain(value: torch.Tensor) -> bool:
    is_memory = value.device.type in _WITH_MEMORY and value.layout is torch.strided
    return is_memory and type(value) in _PLAIN


class Staging:
    """Copies states to main memory that is kept from save to save: new pages cost more than the copy itself.

    The memory of a save is overwritten by the next one, which must wait until it is written.
    """

    def __init__(self) -> None:
        self._used: dict[Hashable, list[torch.Tensor]] = defaultdict(list)
        self._free: dict[Hashable, list[torch.Tensor]] = {}

    def begin(self) -> None:
        """Begin a save; memory that the last one has not used is released."""
        self._free, self._used = self._used, defaultdict(list)

    def release(self) -> None:
        """Release all memory."""
        self.begin()
        self.begin()

    def copied(self, states: T) -> T:
        """Copy states, so that the next update step does not change them.

        Args:
            states: tensors in containers; other values are copied deeply.

        Returns:
            The same, with all tensors on the CPU.
        """
        result: T = tree_map(self._copied, states)
        return result

    def _copied(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        value = value.detach()
        if not _is_plain(value):
            return value.to("cpu", copy=True)
        key = (value.dtype, value.shape, value.stride())
        kept = self._free.get(key)
        place = kept.pop() if kept else torch.empty_like(value, device="cpu")
        self._used[key].append(place)
        return place.copy_(value)
