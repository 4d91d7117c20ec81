"""A device that Lightning does not know: equal to HF and Lightning digit for digit, and resumed as if
uninterrupted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.devices.cases import CASES, COMMANDS, FACES, OF_TWO, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return outcomes(HERE / "packages")


@pytest.fixture(scope="module")
def faces() -> dict[str, Any]:
    """What the commands print, and name → the outcome of a face and of its reference."""
    return told("tests.devices.faces", paths=(HERE / "packages",))


def outcomes(*paths: Path, cases: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
    """Package → case → what came of it."""
    return {
        package: told("tests.devices.runs", package, *cases, paths=paths, **variables)
        for package in ("transformers", "compat")
    }


def told(module: str, *words: str, paths: tuple[Path, ...] = (), **variables: str) -> dict[str, Any]:
    """What a module prints when it is run, in a process of its own: the device comes ahead of torch.

    Args:
        module: the module.
        words: its arguments.
        paths: folders of packages.
        variables: of the environment.
    """
    with started(module, *words, paths=paths, **variables) as process:
        stdout, stderr = process.communicate()
    lines = [line for line in stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


@contextlib.contextmanager
def started(
    module: str, *words: str, paths: tuple[Path, ...] = (), log: IO[str] | None = None, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a module in a process that does not outlive the block; arguments as of `told`, and its log."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, HERE.parents[1])))} | variables,
        stdout=log or subprocess.PIPE,
        stderr=log or subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Package → case → what came of it in the first of two processes, and their backends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # As on two machines: torch's autograd knows one device of the stand-in in a process.
    job = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words, paths = ("tests.devices.ddp", str(tmp_path_factory.mktemp("pair"))), (HERE / "packages",)
    with (
        (tmp_path_factory.mktemp("second") / "log").open("w") as log,
        started(*words, paths=paths, log=log, RANK="1", **job),
    ):
        return told(*words, paths=paths, RANK="0", **job)


@pytest.mark.parametrize("case", OF_TWO)
def test_two_processes(pair: dict[str, Any], case: str) -> None:
    hf, ours = pair["transformers"][case], pair["compat"][case]
    for name in ("logs", "weights", "predicted"):
        assert ours[name] == hf[name], name
    assert ours["resumed"]["weights"] == ours["weights"]
    # The backend of the device, which accelerate has chosen.
    assert pair["backends"] == "npu:hccl,cpu:hccl"


@pytest.mark.parametrize("case", CASES)
def test_equal_to_hf(results: dict[str, Any], case: str) -> None:
    hf, ours = results["transformers"][case], results["compat"][case]
    assert ours["logs"] == hf["logs"]
    assert ours["weights"] == hf["weights"]
    assert ours["predicted"] == hf["predicted"]


@pytest.mark.parametrize("case", CASES)
def test_resumed_as_if_uninterrupted(results: dict[str, Any], case: str) -> None:
    ours = results["compat"][case]
    assert ours["resumed"]["weights"] == ours["weights"]
    # The last log has the mean loss of the steps that its own process has made, as under HF.
    assert ours["resumed"]["logs"][:-1] == ours["logs"][:-1]


@pytest.mark.parametrize("case", CASES)
def test_no_more_copies_from_the_device(results: dict[str, Any], case: str) -> None:
    for name in ("counts", "counts of evaluation"):
        hf, ours = results["transformers"][case][name], results["compat"][case][name]
        assert hf["copy"] > 0
        for kind, count in ours.items():
            assert count <= hf.get(kind, 0), (name, kind)


@pytest.mark.parametrize("case", OF_TWO)
def test_copies_of_two_processes(pair: dict[str, Any], case: str) -> None:
    # The numbers of batches are compared once for each pass over data: HF deadlocks where they differ.
    for name, passes in (("counts", 3), ("counts of evaluation", 1)):
        hf, ours = pair["transformers"][case][name], pair["compat"][case][name]
        assert ours["copy"] <= hf["copy"] + passes
        assert ours["item"] <= hf["item"]


def test_gradients_overflow(results: dict[str, Any]) -> None:
    norms = [log["grad_norm"] for log in results["compat"]["overflow"]["logs"] if "grad_norm" in log]
    assert [math.isfinite(norm) for norm in norms] == [False, True, False, True, True, True]


def test_best_weights_are_not_the_last(results: dict[str, Any]) -> None:
    best, last = (results["compat"][case]["weights"] for case in ("best", "plain"))
    losses = [log["eval_loss"] for log in results["compat"]["best"]["logs"] if "eval_loss" in log]
    assert losses[0] < losses[1]
    assert best != last


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("face", FACES)
def test_faces_are_equal_to_their_references(faces: dict[str, Any], face: str, precision: str) -> None:
    ours, reference = faces["faces"][f"{face}, {precision}"]
    assert {name: ours[name] for name in reference} == reference


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("face", ["HFModule", "LightningModule"])
def test_faces_are_resumed_as_if_uninterrupted(faces: dict[str, Any], face: str, precision: str) -> None:
    ours, _ = faces["faces"][f"{face}, {precision}"]
    assert {name: ours[name] for name in ours["resumed"]} == ours["resumed"]


def test_manual_optimization(faces: dict[str, Any]) -> None:
    ours, reference = faces["faces"]["manual optimization"]
    assert ours["weights"] == ours["resumed"]["weights"] == reference["weights"]


def test_commands(faces: dict[str, Any]) -> None:
    found = faces["commands"]
    assert [status for status, _ in found.values()] == [0] * len(COMMANDS)
    env, plan, source = (text for _, text in found.values())
    assert json.loads(env)["devices"]["kind"] == "npu"
    flags = json.loads(plan)["trainer"]
    assert (flags["accelerator"], flags["strategy"], flags["precision"]) == ("npu", "auto", "16-mixed")
    assert 'accelerator="npu"' in source


def test_a_device_that_torch_calls_tpu_is_no_xla_device() -> None:
    # transformers knows no such device; accelerate takes it from the variable.
    found = outcomes(cases=("plain",), STAND_IN="tpu", ACCELERATE_TORCH_DEVICE="tpu")
    hf, ours = found["transformers"]["plain"], found["compat"]["plain"]
    assert ours["logs"] == hf["logs"]
    assert ours["weights"] == hf["weights"]
    # Nor does it save the device's random states.
    assert hf["resumed"]["weights"] != hf["weights"]
    assert ours["resumed"]["weights"] == ours["weights"]
