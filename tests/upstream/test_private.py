from __future__ import annotations

import importlib.metadata

import pytest
import transformers

from compat.errors import UpstreamError
from compat.upstream.private import PRIVATE, resolve

GENERATION = f"transformers {transformers.__version__.split('.')[0]}."


def concerns_installed(seen: tuple[str, ...]) -> bool:
    return any(not release.startswith("transformers") or release.startswith(GENERATION) for release in seen)


@pytest.mark.parametrize("where", [name.where for name in PRIVATE if concerns_installed(name.seen)])
def test_every_private_name_is_where_it_was_seen(where: str) -> None:
    assert resolve(where) is not None


def test_a_name_that_moved_is_reported() -> None:
    with pytest.raises(UpstreamError, match=r"`transformers:Trainer._gone` has moved"):
        resolve("transformers:Trainer._gone")


def test_each_name_is_listed_once() -> None:
    places = [name.where for name in PRIVATE]
    assert len(places) == len(set(places))


def test_lightning_is_of_a_release_that_was_seen() -> None:
    assert importlib.metadata.version("lightning").startswith("2.")
