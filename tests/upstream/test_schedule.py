from __future__ import annotations

import math

from compat.upstream.schedule import update_steps


def test_update_steps_are_counted_epoch_by_epoch() -> None:
    assert update_steps(7, [1, 2, 4]) == 7 + 4 + 2
    assert update_steps(7, []) == 0


def test_data_without_an_end_makes_no_number_of_update_steps() -> None:
    assert update_steps(math.inf, [2]) == math.inf
