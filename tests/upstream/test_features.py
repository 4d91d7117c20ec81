from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

from compat.upstream import features

INSTALLED = Version(Version(transformers.__version__).base_version)


def loop(trainer, data) -> int:
    trainer.begin()
    skipped = 0
    for batch in data:
        trainer.step(batch)
        trainer.begin()
    return skipped


def test_names_are_found_in_the_order_of_their_first_use() -> None:
    assert features.names_in_order(loop, "begin", "step")
    assert not features.names_in_order(loop, "step", "begin")
    assert not features.names_in_order(loop, "begin", "gone")


def test_local_variables_are_found() -> None:
    assert features.has_local(loop, "skipped")
    assert not features.has_local(loop, "begin")


@pytest.mark.parametrize(
    ("name", "since", "before"),
    [
        ("HAS_TRAINING_SEAMS", "5.3", "6"),
        ("ONE_PIECE_COUNTS_TOKENS_AHEAD", "4.53", "5"),
        ("ONE_PIECE_FORGETS_SKIPPED", "4.53", "4.57"),
        ("ONE_PIECE_LEAVES_TP_MODEL", "4.54", "5"),
        ("ONE_PIECE_MAKES_OPTIMIZER_LATE_FOR_TP", "4.53", "4.54"),
        ("ONE_PIECE_MAKES_SCHEDULER_LAST", "5.1", "5.3"),
        ("ONE_PIECE_SEEDS_EARLY", "4.53", "5"),
        ("SEEDS_SHARDED_SAMPLERS", "5.17", "6"),
    ],
)
def test_what_is_probed_is_found_in_the_releases_that_have_it(name: str, since: str, before: str) -> None:
    assert getattr(features, name) is (Version(since) <= INSTALLED < Version(before))
