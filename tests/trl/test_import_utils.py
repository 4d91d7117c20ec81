from __future__ import annotations

import importlib.metadata
import sys

import pytest
import torch

from compat.trl import import_utils

LIBRARIES = ("peft", "unsloth", "diffusers", "torchvision", "rich", "wandb")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_blocked_library_is_missing(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert getattr(import_utils, f"is_{library}_available")() is False


def test_what_is_installed_is_found() -> None:
    assert import_utils.is_rich_available()
    assert import_utils.is_accelerate_greater_20_0()
    assert import_utils.is_torch_greater_2_0()


def test_releases_are_compared_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"transformers": "4.53.1"}.__getitem__)
    assert import_utils.is_transformers_greater_than("4.9.0")
    assert not import_utils.is_transformers_greater_than("4.53.1")
    assert not import_utils.is_transformers_greater_than("5.0")


def test_bitsandbytes_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_utils, "_has", lambda library: library == "bitsandbytes")
    for is_there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert import_utils.is_bitsandbytes_available() is is_there
