from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from compat.checkpoint.atomic import begin, close, partial_of, sealed_partials, sweep
from compat.checkpoint.hosts import Contents, Disks, Transfer, agreed, grouped, transfers
from compat.checkpoint.layout import Lacks
from compat.checkpoint.manifest import MANIFEST, Save, differences, read, reseal, saved_as, seal
from compat.checkpoint.verify import Report

if TYPE_CHECKING:
    from pathlib import Path

SAVE, OTHER = Save("a", 2), Save("b", 2)
DISKS = Disks(0, (0, 1), 0, ("one", "two"))
FIRST = frozenset({"trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state_0.pth"})
SECOND = frozenset({"rng_state_1.pth"})


def told(*reports: Report | None, processes: int = 2) -> list[str]:
    return DISKS.told(reports, processes=processes)


def test_parts_of_one_save_are_whole() -> None:
    assert told(Report(FIRST, True, SAVE), Report(SECOND, True, SAVE)) == []
    assert told(Report(FIRST), Report(SECOND)) == []
    # One disk has lost its manifest, or has all there is.
    assert told(Report(FIRST, True, SAVE), Report(SECOND)) == []
    assert told(Report(FIRST | SECOND, True, SAVE), None) == []


def test_parts_of_two_saves_are_not() -> None:
    for other in (OTHER, None):
        (wrong,) = told(Report(FIRST, True, SAVE), Report(SECOND, True, other))
        assert wrong == f"`{MANIFEST}`: the parts on the disks of this job were not saved together"


@pytest.mark.parametrize(
    ("names", "save", "processes", "missing"),
    [
        (FIRST, SAVE, 2, [1]),
        (FIRST | {"rng_state_2.pth"}, Save("a", 4), 4, [1]),
        # Without a record, gaps show it, and a number where a single process would have none.
        (FIRST, None, 2, [1]),
        (FIRST | {"rng_state_2.pth"}, None, 3, [1]),
        (FIRST | SECOND, None, 3, []),
        # Another number of processes goes on with random numbers of its own.
        (FIRST, SAVE, 3, []),
        (FIRST, SAVE, 1, []),
        (FIRST - {"rng_state_0.pth"}, SAVE, 2, []),
    ],
)
def test_random_states(names: frozenset[str], save: Save | None, processes: int, missing: list[int]) -> None:
    found = told(Report(names, save is not None, save), None, processes=processes)
    assert [wrong.partition(": missing, and")[0] for wrong in found] == [
        *(f"`rng_state_{rank}.pth`" for rank in missing),
        *(["nothing of it is on the host of process 1 (two)"] if missing else []),
    ]


def test_shards_of_a_process_are_missed_whoever_loads_them() -> None:
    shard = "global_step2/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    first = FIRST | {shard.format(0), "global_step2/mp_rank_00_model_states.pt"}
    second = SECOND | {shard.format(1)}
    assert told(Report(first, True, SAVE), Report(second, True, SAVE)) == []
    assert f"`{shard.format(1)}`: missing" in told(Report(first, True, SAVE), None, processes=1)[0]


def test_state_weights_and_what_is_named_may_lie_anywhere() -> None:
    index = ("model.safetensors.index.json", Lacks(("model-1.safetensors", "model-2.safetensors")))
    pointer = ("latest", Lacks(("global_step2",)))
    of_metadata = ("pytorch_model_fsdp_0/.metadata", Lacks(("__1_0.distcp",)))
    first = Report(FIRST, contents=(index, pointer, of_metadata))
    has_all = {"model-1.safetensors", "global_step2/x.pt", "pytorch_model_fsdp_0/__1_0.distcp"}
    found = told(first, Report(SECOND | has_all))
    assert found == [
        "`model.safetensors.index.json` on the host of process 0 (one): "
        "it names 'model-2.safetensors', which is missing"
    ]
    assert told(first, Report(SECOND | has_all | {"model-2.safetensors"})) == []
    assert [
        wrong.split("`")[1] for wrong in told(Report(SECOND), Report(frozenset({"rng_state_0.pth"})))
    ] == [
        "trainer_state.json",
        "model.safetensors",
    ]


def test_what_is_wrong_in_any_part_counts() -> None:
    second = Report(
        SECOND, changes=(("data_state_1.pth", "missing"),), contents=(("rng_state_1.pth", "cut"),)
    )
    assert told(Report(FIRST), second) == [
        "`data_state_1.pth` on the host of process 1 (two): missing",
        "`rng_state_1.pth` on the host of process 1 (two): cut",
    ]
    assert len(told(Report(FIRST | {"data_state_0.pth", "data_state_1.pth"}), second)) == 1


def test_who_shares_a_disk() -> None:
    markers = {0: "a", 2: "b", 4: "c"}
    everything = frozenset("abc")
    assert grouped(markers, [everything] * 5) == [[0, 1, 2, 3, 4]]
    apart = [frozenset("a")] * 2 + [frozenset("b")] * 2 + [frozenset("c")]
    assert grouped(markers, apart) == [[0, 1], [2, 3], [4]]
    # The first two share, and one of them sees the other's marker late.
    late = [frozenset("a"), frozenset("a"), frozenset("ab"), frozenset("ab"), frozenset("c")]
    assert grouped(markers, late) == [[0, 1, 2, 3], [4]]


def test_what_has_to_be_sent() -> None:
    one, two = Contents({"x": 1, "y": 2}, None, 0), Contents({"y": 2, "z": 3}, None, 0)
    assert transfers([one, two, None]) == [
        Transfer("x", 1, 0, frozenset({1, 2})),
        Transfer("y", 2, 0, frozenset({2})),
        Transfer("z", 3, 1, frozenset({0, 2})),
    ]
    assert transfers([one, one]) == transfers([None, None]) == []


def test_what_gets_its_name_after_a_kill() -> None:
    sealed, nothing = {"checkpoint-2": SAVE}, {}
    assert agreed([(sealed, nothing), (sealed, nothing)]) == {"checkpoint-2"}
    assert agreed([(sealed, nothing), (nothing, sealed)]) == {"checkpoint-2"}
    assert agreed([(sealed, nothing), (nothing, nothing)]) == set()
    assert agreed([(sealed, nothing), (nothing, {"checkpoint-2": OTHER})]) == set()


def test_a_sealed_part_takes_its_place_where_all_agree(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    for content in ("old", "new"):
        (begin(checkpoint) / "file.txt").write_text(content)
        close(checkpoint, SAVE)
        if content == "old":
            partial_of(checkpoint).rename(checkpoint)
    begin(tmp_path / "checkpoint-4")
    assert sealed_partials(tmp_path) == {"checkpoint-2": SAVE}
    assert len(sweep(tmp_path, {"checkpoint-2"})) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2"}
    assert (checkpoint / "file.txt").read_text() == "new"
    begin(checkpoint)
    close(checkpoint, SAVE)
    sweep(tmp_path, set())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2"}


def test_a_manifest_keeps_its_save(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("1")
    seal(tmp_path)
    plain = (tmp_path / MANIFEST).read_text()
    assert saved_as(tmp_path) is None
    assert '"save"' not in plain
    seal(tmp_path, SAVE)
    assert saved_as(tmp_path) == SAVE
    os.utime(tmp_path / MANIFEST, (0, 0))
    (tmp_path / "other.txt").write_text("2")
    reseal(tmp_path)
    assert saved_as(tmp_path) == SAVE
    assert set(read(tmp_path)) == {"file.txt", "other.txt"}
    assert list(differences(tmp_path)) == []
    changed = (tmp_path / MANIFEST).read_text().replace('"processes": 2', '"processes": 3')
    (tmp_path / MANIFEST).write_text(changed)
    assert [name for name, _ in differences(tmp_path)] == [MANIFEST]
