"""The two libraries that are compared."""

from __future__ import annotations

import pytest

from tests.parity.bench import Api, load_api


@pytest.fixture(scope="session")
def theirs() -> Api:
    """The classes of transformers."""
    return load_api("transformers")


@pytest.fixture(scope="session")
def ours(request: pytest.FixtureRequest) -> Api:
    """The classes of compat, or of the library that `--ours` names."""
    return load_api(request.config.getoption("--ours"))
