from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from compat.checkpoint.deepspeed_files import make_universal, mend_universal, processes_of

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, *files: str) -> Path:
    shards = folder / "global_step10"
    shards.mkdir()
    for name in files:
        (shards / name).touch()
    (folder / "latest").write_text("global_step10")
    return folder


@pytest.mark.parametrize(
    ("files", "processes"),
    [
        (("zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"), 2),
        (("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",), 1),
        (("mp_rank_00_model_states.pt",), None),
    ],
)
def test_how_many_processes_have_written_a_checkpoint(
    tmp_path: Path, files: tuple[str, ...], processes: int | None
) -> None:
    assert processes_of(written(tmp_path, *files)) == processes


def test_a_checkpoint_that_is_not_of_deepspeed(tmp_path: Path) -> None:
    assert processes_of(tmp_path) is None
    (tmp_path / "latest").write_text("global_step10")
    assert processes_of(tmp_path) is None


def test_parts_are_put_together_once(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    written(tmp_path, "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest_universal").write_text("global_step10_universal")
    make_universal(tmp_path)
    assert not (tmp_path / "global_step10_universal").exists()


def test_groups_and_counters_are_parted_again() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.0}]
    )
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    counter = torch.tensor(7.0)
    for group in optimizer.param_groups:
        group.update(weight_decay=0.1, lr=0.5)
    for weight in weights:
        optimizer.state[weight] = {
            "step": counter,
            "exp_avg": torch.zeros(2),
            "exp_avg_sq": torch.zeros(2),
        }
        weight.grad = torch.ones(2)
    mend_universal(optimizer, options, [0.25, 0.125])
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [(0.1, 0.25), (0.0, 0.125)]
    optimizer.step()
    assert [optimizer.state[weight]["step"].item() for weight in weights] == [8.0, 8.0]


def test_an_optimizer_without_counters_is_left_alone() -> None:
    optimizer = SimpleNamespace(param_groups=[{"params": [], "lr": 1.0}], state={"w": {"step": 3}})
    mend_universal(optimizer, [{"lr": 1.0}], [0.5])
    assert optimizer.param_groups == [{"params": [], "lr": 0.5}]
    assert optimizer.state == {"w": {"step": 3}}
