"""Checks what is given as data, before a dataloader is built of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from compat.errors import ArgumentError


def check_rows(data: Any, argument: str, loader: str) -> None:
    """Refuse data that HF's dataloaders cannot read.

    Args:
        data: what a dataloader is to be built of, or None.
        argument: the argument that gave it.
        loader: the method in which a trainer may build a dataloader itself.

    Raises:
        ArgumentError: names the argument, what was given, and what to give.
    """
    if data is None or isinstance(data, IterableDataset):
        return
    why = _why_not_rows(data, loader)
    if why:
        told = repr(data) if isinstance(data, (str, os.PathLike)) else type(data).__name__
        msg = f"`{argument}={told}`: {why}"
        raise ArgumentError(msg)


def _why_not_rows(data: Any, loader: str) -> str:
    if isinstance(data, (str, os.PathLike)):
        return "a name, where the data itself is wanted. Give what `datasets.load_dataset` makes of it, say."
    if isinstance(data, DataLoader):
        return (
            "a dataloader, and the trainer builds one itself. Give its `dataset`, with `data_collator` and "
            f"the batch size in the arguments, or return the dataloader from `{loader}` of a subclass."
        )
    if isinstance(data, Mapping) and not _has_first_row(data):
        names = ", ".join(map(repr, list(data)[:5]))
        return f"a mapping by the names {names}, where rows by number are wanted. Give one of its values."
    if not hasattr(data, "__getitem__"):
        return "its rows have no numbers. Give a list, or a `torch.utils.data.IterableDataset`."
    return ""


def _has_first_row(data: Mapping[Any, Any]) -> bool:
    try:
        data[0]
    except (KeyError, IndexError):
        return not data
    return True
