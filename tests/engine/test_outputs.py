from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import trainer as hf_trainer
from transformers.trainer_pt_utils import EvalLoopContainer

from compat.engine.outputs import PADDING, Gathering, JoinedOnce, make_container
from tests import small

if TYPE_CHECKING:
    from pathlib import Path

SERIES: dict[str, list[Any]] = {
    "of one shape": [torch.arange(6.0).reshape(2, 3), torch.ones(1, 3), torch.zeros(4, 3)],
    "one batch": [torch.tensor(0.5).expand(3)],
    "of other lengths": [torch.ones(2, 3), torch.ones(2, 5), torch.ones(1, 2), torch.ones(2, 3)],
    "of other types": [torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(2)],
    "tuples": [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(1, 3), torch.zeros(1))],
    "dicts after tensors": [torch.ones(2), torch.ones(2), torch.ones(3)],
    "numbers": [torch.tensor(1.0), torch.tensor(2.0)],
    "none": [],
}


def flat(value: Any) -> list[Any]:
    return [part for item in value for part in flat(item)] if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize("concatenates", [True, False])
@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_joined_as_hf_concatenates(series: list[Any], every: int | None, concatenates: bool) -> None:
    hf, ours = (kind(concatenates, padding_index=PADDING) for kind in (EvalLoopContainer, JoinedOnce))
    for number, tensors in enumerate(series, 1):
        for container in (hf, ours):
            container.add(tensors)
            if every and number % every == 0:
                container.to_cpu_and_numpy()
    expected, found = flat(hf.get_arrays()), flat(ours.get_arrays())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_arrays_can_be_written_to() -> None:
    container = JoinedOnce()
    container.add(torch.tensor(0.5).expand(3))
    container.get_arrays()[0] = 1.0
    assert container.get_arrays().tolist() == [1.0, 0.5, 0.5]


def test_a_patched_container_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(EvalLoopContainer):  # type: ignore[misc]
        pass

    monkeypatch.setattr(hf_trainer, "EvalLoopContainer", Mine)
    assert type(make_container(concatenates=True)) is Mine


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    trainer = small.trainer(tmp_path)
    seen: list[str] = []
    for name in ("gather", "pad_across_processes"):
        original = getattr(trainer.accelerator, name)
        monkeypatch.setattr(
            trainer.accelerator, name, lambda *a, o=original, n=name, **k: (seen.append(n), o(*a, **k))[1]
        )
    return trainer, seen


def test_a_process_alone_has_all_rows(gathered: tuple[Any, list[str]]) -> None:
    trainer, seen = gathered
    gathering = Gathering(trainer)
    gathering.begin_batch()
    rows = torch.ones(2, 3)
    assert gathering.gather(gathering.pad(rows)) is rows
    assert gathering.gather_repeated(torch.tensor(2.0), 3).tolist() == [2.0, 2.0, 2.0]
    assert seen == []


def test_what_accelerate_refuses_is_refused(gathered: tuple[Any, list[str]]) -> None:
    gathering = Gathering(gathered[0])
    gathering.begin_batch()
    with pytest.raises(TypeError, match="Unsupported types"):
        gathering.pad({"a": "text"})


def test_the_script_gathers_itself(gathered: tuple[Any, list[str]]) -> None:
    trainer, _ = gathered
    trainer.gather_function = lambda rows: rows * 2
    gathering = Gathering(trainer)
    gathering.begin_batch()
    assert gathering.gather(torch.ones(2)).tolist() == [2.0, 2.0]


def test_the_last_batch_is_cut(gathered: tuple[Any, list[str]]) -> None:
    trainer, _ = gathered
    state = trainer.accelerator.gradient_state

    class Last:
        end_of_dataloader, remainder = True, 1

    last = Last()
    state._add_dataloader(last)
    gathering = Gathering(trainer)
    gathering.begin_batch()
    assert gathering.gather(torch.ones(2)).tolist() == [1.0]
    assert gathering.gather_repeated(torch.tensor(2.0), 2).tolist() == [2.0]
    state._remove_dataloader(last)
