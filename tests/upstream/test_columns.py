from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from transformers import DefaultDataCollator, default_data_collator
from transformers.trainer_utils import RemoveColumnsCollator

from compat.upstream.columns import ColumnsCollator, copying_whole_rows


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1, "b": 2}, {"b": 3}],
        [{"a": 1, "extra": 2}, {"a": 1}],
        [MappingProxyType({"a": 1}), "text", (1, 2)],
        [],
    ],
    ids=["nothing to remove", "a column to remove", "other kinds", "no row"],
)
def test_equal_to_the_collator_of_hf(rows: list[Any]) -> None:
    found, logs = [], []
    for adapt in (lambda collator: collator, copying_whole_rows):
        log = Log()
        collator = adapt(RemoveColumnsCollator(list, ["a", "b"], log, "Model", "training"))
        found.append(collator(rows))
        logs.append(log.lines)
    assert found[0] == found[1]
    assert logs[0] == logs[1]


def test_a_collator_may_change_its_rows() -> None:
    def take(rows: list[dict[str, int]]) -> list[int]:
        return [row.pop("a") for row in rows]

    data = [{"a": 1}, {"a": 2}]
    collator = copying_whole_rows(RemoveColumnsCollator(take, ["a"]))
    assert type(collator) is ColumnsCollator
    assert [collator(data), collator(data)] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("own", [default_data_collator, DefaultDataCollator()])
def test_a_collator_of_hf_that_only_reads_gets_the_rows_themselves(own: Any) -> None:
    for data in ([{"a": 1}, {"a": 2}], [{"a": 1, "extra": 0}, {"a": 2, "extra": 0}]):
        collator, seen = copying_whole_rows(RemoveColumnsCollator(own, ["a"])), [dict(row) for row in data]
        assert {name: values.tolist() for name, values in collator(data).items()} == {"a": [1, 2]}
        assert data == seen


def test_a_patch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoveColumnsCollator, "_remove_columns", lambda self, row: {"mine": 1})
    assert copying_whole_rows(RemoveColumnsCollator(list, ["a"]))([{"a": 1}]) == [{"mine": 1}]


@pytest.mark.parametrize("collator", [None, list, ColumnsCollator(list, [])])
def test_others_are_left_alone(collator: Any) -> None:
    kind = type(collator)
    assert copying_whole_rows(collator) is collator
    assert type(collator) is kind
