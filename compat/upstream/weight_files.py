"""Takes over the writing of safetensors files by transformers."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors.torch import save_file
from transformers import modeling_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    Take = Callable[[dict[str, torch.Tensor], str, dict[str, str] | None], bool]
    """Takes tensors, a file and its metadata, and returns whether it will write the file."""

_USES = ((modeling_utils, "safe_save_file"), (safetensors.torch, "save_file"))
"""The names that transformers' models and its Trainer call."""

_LOCK = threading.RLock()


@contextlib.contextmanager
def weight_files_taken_by(take: Take) -> Iterator[None]:
    """Offer each safetensors file that this thread writes in this context to a function.

    Files that it does not take are written at once, as are those of other threads. A function that others
    have put in the place of safetensors' own is left there.

    Args:
        take: the function.
    """
    owner = threading.get_ident()

    def offered(
        tensors: dict[str, torch.Tensor], filename: Any, metadata: dict[str, str] | None = None
    ) -> None:
        is_taken = threading.get_ident() == owner and take(tensors, str(filename), metadata)
        if not is_taken:
            save_file(tensors, filename, metadata)

    with _LOCK:
        found = [getattr(module, name) for module, name in _USES]
        is_own = all(function is save_file for function in found)
        try:
            if is_own:
                for module, name in _USES:
                    setattr(module, name, offered)
            yield
        finally:
            if is_own:
                for module, name in _USES:
                    setattr(module, name, save_file)
