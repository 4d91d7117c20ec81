from __future__ import annotations

import pytest

from compat.checkpoint.ranks import missing_of_ranks

ZERO = "global_step4/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
PARTS = "global_step4/zero_pp_rank_{}_mp_rank_00_model_states.pt"


def of(pattern: str, *ranks: int) -> set[str]:
    return {pattern.format(rank) for rank in ranks}


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ({"rng_state.pth", "trainer_state.json"}, []),
        (of("rng_state_{}.pth", 0, 1), []),
        (of("rng_state_{}.pth", 0), ["rng_state_1.pth"]),
        (of("rng_state_{}.pth", 0, 2), ["rng_state_1.pth"]),
        (of("rng_state_{}.pth", 0, 1) | of(ZERO, 0, 1) | of(PARTS, 0, 1), []),
        (of("rng_state_{}.pth", 0, 1) | of(ZERO, 0) | of(PARTS, 0, 1), [ZERO.format(1)]),
        (of("rng_state_{}.pth", 0, 1) | of(ZERO, 0, 1) | of(PARTS, 1), [PARTS.format(0)]),
        (of(ZERO, 0, 1) | of(PARTS, 0, 1) | of("rng_state_{}.pth", 1), ["rng_state_0.pth"]),
        ({"rng_state.pth", "global_step4/mp_rank_00_model_states.pt"} | of(ZERO, 0), []),
        ({"rng_state.pth"} | of(ZERO, 0), ["global_step4/mp_rank_00_model_states.pt"]),
    ],
)
def test_a_process_that_has_not_written_is_missed(names: set[str], missing: list[str]) -> None:
    assert [name for name, _ in missing_of_ranks(names)] == missing
