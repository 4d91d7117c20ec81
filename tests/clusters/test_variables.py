"""Jobs with the variables that Kubeflow and SageMaker set: the same job as under torchrun."""

from __future__ import annotations

import importlib.util
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed import jobs
from tests.distributed.test_launch import PYTHON, found, job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="`make test-clusters`")

SAGEMAKER = {
    "SM_HOSTS": '["algo-1","algo-2"]',
    "SM_NUM_GPUS": "0",
    "SM_NUM_CPUS": "1",
    "SM_NETWORK_INTERFACE_NAME": "lo",
    "SM_FRAMEWORK_PARAMS": '{"sagemaker_torch_distributed_enabled":true}',
}


def pods(port: int, node: int) -> tuple[Sequence[str], dict[str, str]]:
    """A pod of a PyTorchJob whose command is `python train.py`."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return PYTHON, {**where, "RANK": str(node), "WORLD_SIZE": "2", "PYTHONUNBUFFERED": "1"}


def pods_of_torchrun(port: int, node: int) -> tuple[Sequence[str], dict[str, str]]:
    """A pod of a PyTorchJob or TrainJob whose command is `torchrun train.py`."""
    _, variables = pods(port, node)
    agent = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    return [*PYTHON, "-m", "torch.distributed.run"], {**variables, **agent}


def torch_distributed(port: int, node: int) -> tuple[Sequence[str], dict[str, str]]:
    """A host of SageMaker's `distribution={"torch_distributed": {"enabled": True}}`."""
    return jobs.torchrun(nodes=2, node=node, processes=1, port=port), _host(port, node)


def mpirun(port: int, node: int) -> tuple[Sequence[str], dict[str, str]]:
    """A process of SageMaker's `distribution={"mpi": {"enabled": True}}`."""
    ranks = dict.fromkeys(("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_NODE_RANK"), str(node))
    sizes = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    local = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_UNIVERSE_SIZE": "2"}
    return PYTHON, {**_host(port, node), **ranks, **sizes, **local}


def _host(port: int, node: int) -> dict[str, str]:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**SAGEMAKER, **where, "SM_CURRENT_HOST": f"algo-{node + 1}"}


def run(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, *job(folder)], env=jobs.environment(LIBRARY="compat", **variables), cwd=jobs.ROOT
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What HF's Trainer makes of it under torchrun."""
    folder = tmp_path_factory.mktemp("expected")
    jobs.finished(jobs.run(jobs.torchrun(*job(folder))))
    return found(folder)


@pytest.mark.parametrize("way", [pods, pods_of_torchrun, torch_distributed, mpirun])
def test_the_same_job(tmp_path: Path, expected: list[dict[str, Any]], way: Any) -> None:
    port = jobs.free_port()
    hosts = [run(command, tmp_path, variables) for command, variables in (way(port, 0), way(port, 1))]
    try:
        assert [host.wait(jobs.SECONDS) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    ours = found(tmp_path)
    assert [entry["before"] for entry in ours] == [
        [2, rank, 0, "ParallelMode.DISTRIBUTED"] for rank in (0, 1)
    ]
    for name in ("losses", "weights", "predictions"):
        assert [entry[name] for entry in ours] == [entry[name] for entry in expected]
