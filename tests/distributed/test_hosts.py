"""Jobs over two hosts with disks of their own: two agents on this machine, each with a folder of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compat.checkpoint.io import load_plain
from compat.checkpoint.manifest import MANIFEST, saved_as
from compat.checkpoint.verify import problems
from tests.distributed import jobs

SCRIPT = str(Path(__file__).with_name("scripts") / "hosts.py")
pytestmark = pytest.mark.slow
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def start(setup: str, folders: tuple[Path, Path], **variables: str) -> list[int]:
    """Run a job, each host in its own folder.

    Returns:
        The exit status of each host.
    """
    port = jobs.free_port()
    agents = []
    for node, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        command = jobs.torchrun(SCRIPT, setup, nodes=2, node=node, processes=1, port=port)
        with (folder / "words.txt").open("w") as words:
            agents.append(
                subprocess.Popen(
                    command, cwd=folder, env=jobs.environment(**variables), stdout=words, stderr=words
                )
            )
    try:
        return [agent.wait(jobs.SECONDS) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def trained(setup: str, folders: tuple[Path, Path], **variables: str) -> list[dict[str, Any]]:
    """What each host has learnt of a job that ends well."""
    codes = start(setup, folders, **variables)
    said = "".join((folder / "words.txt").read_text()[-4000:] for folder in folders)
    assert codes == [0, 0], said
    return [json.loads((folder / f"learnt-{rank}.json").read_text()) for rank, folder in enumerate(folders)]


def hosts(folder: Path) -> tuple[Path, Path]:
    return folder / "a", folder / "b"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def copied(source: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    shutil.copytree(source[0].parent, to)
    return hosts(to)


def made(factory: pytest.TempPathFactory, setup: str, **variables: str) -> tuple[Path, Path]:
    """Hosts on which a job has saved every second of eight steps."""
    name = "-".join(("hosts", setup, *variables))
    return hosts(jobs.once(factory, name, lambda folder: trained(setup, hosts(folder), **variables) and None))


def learnt(folders: tuple[Path, Path]) -> list[Any]:
    return [json.loads((folder / f"learnt-{rank}.json").read_text()) for rank, folder in enumerate(folders)]


def same(found: list[dict[str, Any]], whole: tuple[Path, Path]) -> None:
    """Hold what hosts have learnt against those of a run that was never stopped."""
    expected = learnt(whole)
    assert [one["error"] for one in found] == [None, None]
    assert [one["weights"] for one in found] == [one["weights"] for one in expected]
    assert [one["losses"] for one in found] == [one["losses"] for one in expected]


def forget(folders: tuple[Path, Path], *steps: int) -> None:
    for folder in folders:
        for step in steps:
            shutil.rmtree(folder / "out" / f"checkpoint-{step}")


EACH = [{}, {"EACH": "1"}]
SETUPS = ["ddp", "fsdp", "fsdp-shards"]


@pytest.mark.parametrize("variables", EACH, ids=["once", "each"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_job_goes_on_where_it_was(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, setup: str, variables: dict[str, str]
) -> None:
    whole = made(tmp_path_factory, setup, **variables)
    parts = [files(folder / "out" / "checkpoint-4") for folder in whole]
    if variables:
        assert parts[0] == parts[1]
        assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} < parts[1]
    else:
        assert "rng_state_1.pth" in parts[1] - parts[0]
    assert saved_as(whole[0] / "out" / "checkpoint-4") == saved_as(whole[1] / "out" / "checkpoint-4")
    run = copied(whole, tmp_path / "run")
    forget(run, 6, 8)
    if setup == "fsdp-shards":
        # Whichever comes first: none has more than its part.
        run = run[::-1]
    same(trained(setup, run, RESUME="auto", **variables), whole)
    parts = [files(folder / "out" / "checkpoint-4") for folder in run]
    assert parts[0] == parts[1], "each host has been given what it lacked"


def test_the_disk_of_a_host_is_new(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = made(tmp_path_factory, "ddp", EACH="1")
    run = copied(whole, tmp_path / "run")
    forget(run, 6, 8)
    shutil.rmtree(run[1] / "out")
    same(trained("ddp", run, RESUME="auto", EACH="1"), whole)
    assert (run[1] / "out" / "checkpoint-4" / MANIFEST).is_file()


def test_without_a_part_an_older_one_is_taken(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = made(tmp_path_factory, "ddp")
    run = copied(whole, tmp_path / "run")
    forget(run, 8)
    shutil.rmtree(run[1] / "out" / "checkpoint-6")
    found = trained("ddp", run, RESUME="True")
    same(found, whole)
    (said,) = [words for words in found[0]["heard"] if "passed over" in words]
    assert "`rng_state_1.pth`: missing" in said
    assert "nothing of it is on the host of process 1" in said


def test_a_random_state_that_is_missing_is_an_error_on_all_hosts(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = copied(made(tmp_path_factory, "ddp"), tmp_path / "run")
    for name in ("rng_state_1.pth", MANIFEST):
        (run[1] / "out" / "checkpoint-4" / name).unlink()
    asked = "out/checkpoint-4"
    for one in trained("ddp", run, RESUME=asked):
        assert one["error"].startswith(f"BrokenCheckpointError: `resume_from_checkpoint='{asked}'`: ")
        assert "`rng_state_1.pth`: missing" in one["error"]
        assert f"remove every rng_state_*.pth and data_state_*.pth and {MANIFEST}" in one["error"]
    # What the error says to do.
    for folder in run:
        for file in (folder / "out" / "checkpoint-4").glob("*_state_*.pth"):
            file.unlink()
        (folder / "out" / "checkpoint-4" / MANIFEST).unlink(missing_ok=True)
    assert [one["error"] for one in trained("ddp", run, RESUME=asked)] == [None, None]


@pytest.mark.parametrize("killed", ["0", "1"])
def test_a_host_is_killed_before_its_part_has_its_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, killed: str
) -> None:
    whole = made(tmp_path_factory, "ddp")
    run = hosts(tmp_path / "run")
    assert start("ddp", run, KILLED=killed, AT="6") != [0, 0]
    names = [{path.name for path in (folder / "out").iterdir()} for folder in run]
    assert "_partial-checkpoint-6" in names[int(killed)]
    assert "checkpoint-6" in names[1 - int(killed)]
    found = trained("ddp", run, RESUME="auto")
    same(found, whole)
    assert "now `checkpoint-6`" in "".join(found[int(killed)]["heard"])
    assert [{path.name for path in (folder / "out").iterdir()} for folder in run] == [
        {f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    ] * 2


def test_what_is_written_into_a_checkpoint_later_is_the_same_on_all_hosts(tmp_path: Path) -> None:
    run = hosts(tmp_path)
    trained("ddp", run, EACH="1", LIMIT="4", ON_SAVE="1")
    for name in ("data_state_0.pth", "data_state_1.pth"):
        first, second = ((folder / "out" / "checkpoint-4" / name).read_bytes() for folder in run)
        assert first == second
        assert load_plain(run[0] / "out" / "checkpoint-4" / name)["has_ended"]
    for folder in run:
        assert problems(folder / "out" / "checkpoint-4") == []


def test_a_file_of_lightning_on_one_host_is_enough(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = hosts(tmp_path)
    trained("ddp", run, CKPT="x.ckpt", LIMIT="4")
    assert [(folder / "x.ckpt").is_file() for folder in run] == [True, False]
    found, whole = trained("ddp", run, RESUME="x.ckpt"), learnt(made(tmp_path_factory, "ddp"))
    # It was saved ahead of the log of its step.
    assert [one["weights"] for one in found] == [one["weights"] for one in whole]
    assert not [*tmp_path.glob("*/out/_unpacked-*")]


@pytest.mark.parametrize("setup", ["best", "best-alone"])
def test_all_hosts_end_with_the_best_model(tmp_path: Path, setup: str) -> None:
    run = hosts(tmp_path)
    first, second = trained(setup, run)
    assert first["best"] == second["best"] == "out/checkpoint-2"
    assert first["weights"] == second["weights"]
    left = [{path.name for path in (folder / "out").iterdir()} for folder in run]
    assert left[0] == left[1] == ({"checkpoint-2"} if setup == "best-alone" else left[0])


def test_old_checkpoints_go_on_each_disk(tmp_path: Path) -> None:
    run = hosts(tmp_path)
    trained("limited", run)
    left = [{path.name for path in (folder / "out").iterdir()} for folder in run]
    assert left == [{"checkpoint-6", "checkpoint-8"}] * 2


def test_writing_meanwhile_is_writing_at_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = hosts(tmp_path)
    found = trained("async", run, LIMIT="4")
    assert len([words for words in found[0]["heard"] if "save_async" in words]) == 1
    same(trained("async", run, RESUME="True"), made(tmp_path_factory, "ddp"))


def test_hosts_that_share_a_folder_have_one_disk(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = hosts(tmp_path)
    (tmp_path / "out").mkdir()
    for folder in run:
        folder.mkdir()
        (folder / "out").symlink_to(tmp_path / "out")
    trained("ddp", run, EACH="1", LIMIT="4")
    assert saved_as(tmp_path / "out" / "checkpoint-4") is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint-2", "checkpoint-4"}
    same(trained("ddp", run, EACH="1", RESUME="True"), made(tmp_path_factory, "ddp"))


@pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs DeepSpeed")
@pytest.mark.parametrize("variables", EACH, ids=["once", "each"])
@pytest.mark.parametrize("setup", ["zero-2", "zero-3"])
def test_shards_of_deepspeed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, setup: str, variables: dict[str, str]
) -> None:
    whole = made(tmp_path_factory, setup, **variables)
    run = copied(whole, tmp_path / "run")
    forget(run, 6, 8)
    same(trained(setup, run, RESUME="auto", **variables), whole)
