"""Removes tokens from converted checkpoints: HF pickles its arguments with tokens in plain text."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from typing import TYPE_CHECKING

import torch

from compat.arguments.fields import is_secret
from compat.checkpoint.convert import lazy
from compat.checkpoint.layout import ARGUMENTS
from compat.checkpoint.safe_unpickler import Inert, InertUnpickler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compat.checkpoint.convert.common import Checkpoint

_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE")


def leave_out_secrets(checkpoint: Checkpoint) -> None:
    """Replace tokens in a checkpoint's arguments by None; arguments without tokens do not change.

    Args:
        checkpoint: the checkpoint; modified in place, with a remark in its notes.
    """
    if ARGUMENTS not in checkpoint.files:
        return
    content = bytes(lazy.filled(checkpoint.files[ARGUMENTS]).numpy())
    cleared = without_secrets(content)
    if cleared != content:
        checkpoint.files[ARGUMENTS] = torch.frombuffer(bytearray(cleared), dtype=torch.uint8)
        checkpoint.notes.append(f"tokens in {ARGUMENTS} left out")


def without_secrets(content: bytes) -> bytes:
    """Replace each secret in the pickle of a torch archive by None, without running the pickle.

    Args:
        content: the content of the file; returned unchanged if it is no such archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info: archive.read(info) for info in archive.infolist()}
        cleared = {
            info: _cleared(data) if info.filename.endswith("/data.pkl") else data
            for info, data in members.items()
        }
    except Exception:  # noqa: BLE001 (whatever keeps it from being read keeps others from reading it)
        return content
    if cleared == members:
        return content
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for info, data in cleared.items():
            archive.writestr(zipfile.ZipInfo(info.filename), data)
    return written.getvalue()


def _cleared(data: bytes) -> bytes:
    secrets = set(_secrets(InertUnpickler(io.BytesIO(data)).load()))
    if not secrets:
        return data
    operations = [(operation, arg, place) for operation, arg, place in pickletools.genops(data)]
    ends = [place for _, _, place in operations[1:]] + [len(data)]
    return b"".join(
        pickle.NONE if operation.name in _TEXTS and arg in secrets else data[place or 0 : end]
        for (operation, arg, place), end in zip(operations, ends, strict=True)
    )


def _secrets(value: object, name: str = "") -> Iterator[str]:
    """Yield all strings under the name of a secret, at any depth."""
    if isinstance(value, Inert):
        yield from _secrets(value.state)
        yield from _secrets(value.args)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _secrets(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets(item, name)
    elif isinstance(value, str) and value and is_secret(name):
        yield value
