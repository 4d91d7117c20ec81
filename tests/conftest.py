"""Environment, seeds and leak checks of all tests."""

from __future__ import annotations

import gc
import os
import random
import signal
from typing import TYPE_CHECKING

# Read by the libraries when they are imported.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pytest
import torch
from accelerate.state import GradientState

from tests import leaks, warm

if TYPE_CHECKING:
    from collections.abc import Iterator

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a job in the background inherits it; what the tests start would inherit it from here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Tell what stands for Python in scripts that tests start; workers are told by their environment."""
    if not hasattr(config, "workerinput"):
        warm.begin()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the parity tests compare another library, transformers itself for one."""
    parser.addoption("--ours", default="compat", help="library to compare with transformers")


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> None:
    """Keep what imports have made out of garbage collection: each `train` call asks for a full one.

    Tests import further libraries, so that it is done again before each file.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Begin each test with the same generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the generator that transformers seeds and draws from)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_loader_of_an_earlier_test() -> None:
    """Forget the dataloaders that earlier tests left in mid-epoch.

    accelerate keeps them until they are collected, and its own accumulation ends a window with each
    micro-batch while the last of them stands at its end.
    """
    GradientState().dataloader_references = [None]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that changes the process for those after it."""
    before = leaks.snapshot()
    yield
    if found := leaks.changes(before, leaks.settled(before)):
        leaks.clean_up(before)
        pytest.fail("left behind: " + "; ".join(found))
