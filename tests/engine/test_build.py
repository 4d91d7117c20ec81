"""What Lightning's Trainer is built from."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

import compat
from compat.checkpoint import HFCheckpointIO
from compat.engine.build import build_trainer
from compat.engine.environment import HFEnvironment
from compat.upstream.environment import Facts


@pytest.mark.parametrize(
    ("devices", "plugins", "kind"),
    [
        (1, [], LightningEnvironment),
        (1, [SLURMEnvironment(auto_requeue=False)], SLURMEnvironment),
        (2, [], HFEnvironment),
        (2, [SLURMEnvironment(auto_requeue=False)], HFEnvironment),
    ],
)
def test_the_ranks_of_several_processes_are_those_of_hf(devices: int, plugins: list, kind: type) -> None:
    """A SLURMEnvironment says beside them when a job is queued again."""
    trainer = build_trainer(
        compat.plan({"use_cpu": True}, devices=devices),
        device=torch.device("cpu"),
        checkpoint_io=HFCheckpointIO(),
        asked={"plugins": plugins},
        facts=Facts(devices=devices, world_size=devices),
    )
    assert type(trainer._accelerator_connector.cluster_environment) is kind
    assert trainer.world_size == devices


def test_a_process_alone_takes_its_rank_from_hf_where_its_strategy_spreads() -> None:
    trainer = build_trainer(
        compat.plan({"use_cpu": True, "fsdp": "full_shard"}),
        device=torch.device("cpu"),
        checkpoint_io=HFCheckpointIO(),
        facts=Facts(),
    )
    assert type(trainer._accelerator_connector.cluster_environment) is HFEnvironment
