"""Distribution: HF's accelerator, built from the arguments alone, with a mesh and shards on any device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from accelerate import ParallelismConfig

from compat.callbacks.misplaced import check_place
from compat.engine.build import check_supported
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.translate import as_run
from compat.translate.strategy import FSDP_VERSIONS, NEWEST_FSDP, fsdp_config
from compat.upstream import started
from compat.upstream.distributions import check_distribution
from compat.upstream.environment import contained, overlaid, own_accelerator_state
from compat.upstream.sharding import (
    fsdp2_plugin,
    fsdp_plugin_asked_for,
    lay_mesh,
    shard,
    tensor_parallel_size,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compat.engine.host import TrainerHost


UNSUPPORTED = frozenset({"MEGATRON_LM", "XLA"})
"""Kinds of distribution of accelerate's for which there is no strategy of ours yet."""


class Distribution(Component):
    """How HF's accelerator spreads a job, also where accelerate itself would not."""

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._mesh: ParallelismConfig | None = None

    def check(self) -> None:
        """Refuse what no strategy of ours can do, before anything is built.

        Raises:
            ArgumentError: all that is in conflict.
        """
        hf = self.hf
        plan = hf._fit.make_plan()
        check_supported(plan)
        if plan.strategy == "deepspeed":
            started.form_job_of_one()
            hf._fit.make_plan()  # with the address of that job
        for name in ("callbacks", "logger", "profiler"):
            given = hf._fit.flags.get(name)
            for one in given if isinstance(given, (list, tuple)) else (given,):
                check_distribution(one, f"lightning.{name}")
                if name == "callbacks" and one is not None:
                    check_place(one, "lightning.callbacks", takes_hf=False)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """What HF's code finds while it builds its accelerator: what the arguments say, and nothing else."""
        args = self.hf.args
        # HF spreads a batch over all GPUs of one process, which no Lightning strategy does.
        args._n_gpu = min(args.n_gpu, 1)
        with own_accelerator_state(), overlaid(self._accelerate_environment()):
            yield

    def _accelerate_environment(self) -> Mapping[str, str]:
        """What accelerate must read in its variables, whoever wrote them last."""
        fit, args = self.hf._fit, self.hf.args
        precision = "fp16" if args.fp16 else "bf16" if args.bf16 else fit.facts.mixed_precision
        written: Mapping[str, str] = getattr(args, "accelerate_environment", {})
        if args.fsdp and fit.plan.strategy == FSDP_VERSIONS[NEWEST_FSDP]:
            written = {**written, "FSDP_VERSION": str(NEWEST_FSDP)}
        if fit.plan.strategy == "deepspeed":
            # `accelerate launch --cpu` keeps accelerate off DeepSpeed; the device is chosen by now.
            written = {**written, "ACCELERATE_USE_CPU": "false"}
        return {"ACCELERATE_MIXED_PRECISION": precision, **written}

    def without_mesh(self, parts: dict[str, Any]) -> dict[str, Any]:
        """What HF builds its accelerator from; the mesh comes later where accelerate refuses it.

        Args:
            parts: the arguments of the accelerator; changed.
        """
        if self.hf.args.device.type == "cpu":
            self._mesh = parts.pop("parallelism_config", None)
        return parts

    def complete(self) -> None:
        """Lay the mesh and shard where accelerate does not.

        Raises:
            ArgumentError: a launcher asks for a kind of distribution that has no strategy.
        """
        _refuse_unsupported(self.hf.accelerator.distributed_type.value)
        self._lay_mesh()
        self._shard()

    def _lay_mesh(self) -> None:
        """Have a mesh also on a CPU, and for a model that has spread its own tensors."""
        hf = self.hf
        state, size = hf.accelerator.state, tensor_parallel_size(hf.model)
        mesh = self._mesh or getattr(hf.args, "parallelism_config", None) or state.parallelism_config
        if mesh is None and size > 1:
            mesh = ParallelismConfig(tp_size=size, dp_shard_size=state.num_processes // size)
        hf.is_tp_enabled = size > 1
        if mesh is not None and state.device_mesh is None:
            lay_mesh(state, mesh)

    def _shard(self) -> None:
        """Have FSDP also on a CPU, and version 2 also under transformers 4."""
        hf = self.hf
        asked = as_run(hf.args, hf._fit.facts)
        if hf.plan.strategy != "model_parallel" or not asked.fsdp:
            return
        state = hf.accelerator.state
        missing = getattr(state, "fsdp_plugin", None) is None
        supplied = hf.args.fsdp and getattr(hf.args, "fsdp_plugin_args", None) is None
        if missing or supplied:
            with contained():  # the plugin writes a variable
                # What a launcher has asked for, the plugin reads by itself.
                shard(state, fsdp2_plugin(fsdp_config(asked)) if hf.args.fsdp else fsdp_plugin_asked_for())
        hf.is_fsdp_enabled = True


def _refuse_unsupported(kind: str) -> None:
    """Refuse what variables have asked for, `accelerate launch` for one, and no argument has."""
    if kind in UNSUPPORTED:
        msg = (
            f"`{kind}`: `accelerate launch` or the environment asks for it, and it is not supported yet. "
            "Start with torchrun, or with a configuration for several devices alone."
        )
        raise ArgumentError(msg)
