"""`compat.trl` against what TRL 0.7.11 gave for the same set-ups."""

from __future__ import annotations

import pytest

from tests.trl import golden

CASES = [(area, name) for area in golden.areas() for name in golden.setups(area)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks
@pytest.mark.parametrize(("area", "name"), CASES, ids=[".".join(case) for case in CASES])
def test_equal_to_what_was_recorded(area: str, name: str) -> None:
    prefix = f"{name}."
    recorded = {
        key.removeprefix(prefix): value for key, value in golden.read(area).items() if key.startswith(prefix)
    }
    found = golden.setups(area)[name](golden.library("compat.trl"))
    assert recorded, "nothing was recorded for this set-up"
    assert found.keys() == recorded.keys()
    for key, value in recorded.items():
        golden.check(key, golden.as_recorded(found[key]), value)
