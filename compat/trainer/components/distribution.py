"""Distribution: builds HF's accelerator from the arguments only, with mesh and shards on any device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import transformers
from accelerate import ParallelismConfig
from transformers.integrations.tpu import tpu_spmd_dataloader

from compat.arguments.machine import wants_xla
from compat.arguments.sharding import mesh_sizes
from compat.callbacks.misplaced import check_place
from compat.engine.user_module import is_user_module
from compat.errors import ArgumentError
from compat.trainer.component import Component
from compat.translate import as_run
from compat.translate.strategy import FSDP_VERSIONS, NEWEST_FSDP, fsdp_config
from compat.upstream import started
from compat.upstream.distributions import check_distribution
from compat.upstream.environment import contained, overlaid, own_accelerator_state
from compat.upstream.features import SHARES_CONTEXTS, SHARES_SEQUENCES
from compat.upstream.patched import refuse_patches
from compat.upstream.sharding import (
    fsdp2_plugin,
    fsdp_plugin_asked_for,
    lay_mesh,
    shard,
    tensor_parallel_size,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from compat.engine.host import TrainerHost
    from compat.translate.accelerate_env.arguments import AsLaunched
    from compat.upstream.environment import Facts
    from compat.upstream.values import Loader


ATTENTION = "PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION"
"""The launcher's variable for the attention in which DeepSpeed exchanges sequences."""

UNSUPPORTED = frozenset({"MEGATRON_LM"})
"""Distribution types of accelerate for which `compat` has no strategy yet."""


SEVERAL_SHARD = (
    "`fsdp_config={'xla': True}`: sharding by torch_xla is tried with one process alone, and this job has "
    "several. Start a single one that sees all devices, and give 'xla_fsdp_v2': True, which shards over them."
)


SHARDS_ARE_NOT_LOADED = (
    "`load_best_model_at_end=True` with `fsdp_config={'xla': True}`: no weights are loaded into a model that "
    "torch_xla has sharded. Leave it out, and load the best checkpoint with `from_pretrained` after training."
)


class Distribution(Component):
    """Sets up HF's accelerator for a distributed job, including cases that accelerate does not support."""

    def __init__(self, trainer: TrainerHost) -> None:
        super().__init__(trainer)
        self._mesh: ParallelismConfig | None = None

    def check(self) -> None:
        """Refuse arguments that no strategy supports, before anything is built.

        Raises:
            ArgumentError: lists all conflicts.
        """
        hf = self.hf
        refuse_patches()
        hf._fit.check_arguments()
        if hf._fit.strategy == "deepspeed":
            started.form_job_of_one()
            hf._fit.check_arguments()  # with the address of that job
        asked = as_run(hf.args, hf._fit.facts)
        problems = [*sequence_problems(hf.model, asked, hf._fit.facts), *context_problems(hf.model, asked)]
        if problems:
            raise ArgumentError("\n".join(problems))
        if wants_xla(hf.args):
            self._check_sharding_by_xla()
        for name in ("callbacks", "logger", "profiler"):
            given = hf._fit.flags.get(name)
            for one in given if isinstance(given, (list, tuple)) else (given,):
                check_distribution(one, f"lightning.{name}")
                if name == "callbacks" and one is not None:
                    check_place(one, "lightning.callbacks", takes_hf=False)

    def check_loss(self) -> None:
        """Refuse a loss that HF would not compute in training.

        Raises:
            ArgumentError: processes share sequences, and `compute_loss_func` is given.
        """
        hf = self.hf
        if hf.accelerator.shares_sequences and hf.compute_loss_func is not None:
            msg = (
                "`compute_loss_func` with sequences that processes share (`sp_size`): HF does not call it in "
                "training, where the model computes the loss. Leave it out, or override `compute_loss`."
            )
            raise ArgumentError(msg)

    def _check_sharding_by_xla(self) -> None:
        problems = []
        if self.hf.args.world_size > 1:
            problems.append(SEVERAL_SHARD)
        if self.hf.args.load_best_model_at_end:
            problems.append(SHARDS_ARE_NOT_LOADED)
        if problems:
            raise ArgumentError("\n".join(problems))

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Set the variables that HF's code reads while it builds its accelerator, from the arguments only."""
        args = self.hf.args
        # HF splits a batch over all GPUs of one process, which no Lightning strategy does.
        args._n_gpu = min(args.n_gpu, 1)
        with own_accelerator_state(), overlaid(self._accelerate_environment()):
            yield

    def _accelerate_environment(self) -> Mapping[str, str]:
        """Return the variables that accelerate must read, regardless of what set them last."""
        fit, args = self.hf._fit, self.hf.args
        precision = "fp16" if args.fp16 else "bf16" if args.bf16 else fit.facts.mixed_precision
        written: Mapping[str, str] = getattr(args, "accelerate_environment", {})
        if args.fsdp and fit.strategy == FSDP_VERSIONS[NEWEST_FSDP]:
            written = {**written, "FSDP_VERSION": str(NEWEST_FSDP)}
        if fit.strategy == "deepspeed":
            # `accelerate launch --cpu` keeps accelerate off DeepSpeed; the device is chosen by now.
            written = {**written, "ACCELERATE_USE_CPU": "false"}
        return {"ACCELERATE_MIXED_PRECISION": precision, **written}

    def without_mesh(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Remove the mesh from the accelerator's arguments where accelerate refuses it; it is added later.

        Args:
            parts: the arguments of the accelerator; changed.
        """
        shares = mesh_sizes(parts.get("parallelism_config"))["sp_size"] > 1
        if self.hf.args.device.type == "cpu" and not shares:
            self._mesh = parts.pop("parallelism_config", None)
        return parts

    def complete(self) -> None:
        """Create the mesh and shard the model where accelerate does not.

        Raises:
            ArgumentError: a launcher requests a distribution type that has no strategy.
        """
        _refuse_unsupported(self.hf.accelerator.distributed_type.value)
        self._lay_mesh()
        self._shard()

    def shard_batches(self, dataloader: Loader) -> Loader:
        """Have torch_xla split the batches of a train dataloader over its devices, if it shards the model.

        Args:
            dataloader: as accelerate has prepared it.
        """
        spreads = getattr(self.hf, "is_fsdp_xla_v2_enabled", False)
        return tpu_spmd_dataloader(dataloader) if spreads else dataloader

    def complete_sharding_by_xla(self, model: nn.Module) -> None:
        """Prepare a model that torch_xla has just sharded, and create its optimizer, which HF omits.

        Args:
            model: the wrapper of the model.
        """
        hf = self.hf
        if hf.is_fsdp_xla_enabled and hf.optimizer is None:
            hf.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            hf.create_optimizer(model)

    def _lay_mesh(self) -> None:
        """Create a mesh on a CPU as well, and for a model that has sharded its own tensors."""
        hf = self.hf
        state, size = hf.accelerator.state, tensor_parallel_size(hf.model)
        mesh = self._mesh or getattr(hf.args, "parallelism_config", None) or state.parallelism_config
        if mesh is None and size > 1:
            mesh = ParallelismConfig(tp_size=size, dp_shard_size=state.num_processes // size)
        hf.is_tp_enabled = size > 1
        if mesh is not None and state.device_mesh is None:
            lay_mesh(state, mesh)

    def _shard(self) -> None:
        """Enable FSDP on a CPU as well, and version 2 under transformers 4 as well."""
        hf = self.hf
        asked = as_run(hf.args, hf._fit.facts)
        if hf._fit.strategy != "model_parallel" or not asked.fsdp:
            return
        state = hf.accelerator.state
        missing = getattr(state, "fsdp_plugin", None) is None
        supplied = hf.args.fsdp and getattr(hf.args, "fsdp_plugin_args", None) is None
        if missing or supplied:
            with contained():  # the plugin writes a variable
                # The plugin itself reads the settings of a launcher.
                shard(state, fsdp2_plugin(fsdp_config(asked)) if hf.args.fsdp else fsdp_plugin_asked_for())
        hf.is_fsdp_enabled = True


def sequence_problems(model: nn.Module | None, args: AsLaunched, facts: Facts) -> Iterator[str]:
    """Yield the problems of a model or a release whose sequences processes are to share.

    Args:
        model: the model; None before `model_init`.
        args: the arguments of the run.
        facts: the machine, the process and the launcher's variables.
    """
    mesh = getattr(args, "parallelism_config", None)
    size = mesh_sizes(mesh)["sp_size"]
    if size == 1:
        return
    told = f"`parallelism_config` with sp_size={size}"
    if not SHARES_SEQUENCES:
        yield (
            f"{told}: transformers {transformers.__version__} has no sequence parallel for it. Update to "
            "transformers 5.3 or later, or give sp_size=1."
        )
    if facts.device_type == "cpu" and facts.world_size > size:
        yield (
            f"{told}: the job has {facts.world_size} processes, and on a CPU torch sends gradients in the "
            f"first group of them alone. Give sp_size={facts.world_size}, or start {size}."
        )
    if model is not None and is_user_module(model):
        yield f"{told} and {_of_a_slice(model)}, or sp_size=1."
    used = getattr(getattr(model, "config", None), "_attn_implementation", None)
    handler = getattr(mesh, "sp_handler", None)
    asked = handler.sp_attn_implementation if handler else facts.launched.get(ATTENTION)
    if used is not None and asked != used:
        yield (
            f"{told}: its attention is sp_attn_implementation={asked!r}, and the model's is {used!r}. Give "
            f"`sp_handler=DeepSpeedSequenceParallelConfig(sp_attn_implementation={used!r})` (of "
            f"accelerate.utils), or {ATTENTION}={used} by the launcher."
        )


def context_problems(model: nn.Module | None, args: AsLaunched) -> Iterator[str]:
    """Yield the problems of a model or a release whose context of attention processes are to share.

    Args:
        model: the model; None before `model_init`.
        args: the arguments of the run.
    """
    size = mesh_sizes(getattr(args, "parallelism_config", None))["cp_size"]
    if size == 1:
        return
    told = f"`parallelism_config` with cp_size={size}"
    if not SHARES_CONTEXTS:
        yield (
            f"{told}: transformers {transformers.__version__} has no context parallel. Update to "
            "transformers 5, or give cp_size=1."
        )
    if model is not None and is_user_module(model):
        yield f"{told} and {_of_a_slice(model)}, or cp_size=1."


def _of_a_slice(model: nn.Module) -> str:
    return (
        f"`model={type(model).__name__}`: a LightningModule would compute its loss of a slice of each "
        "sequence. Give a model of transformers"
    )


def _refuse_unsupported(kind: str) -> None:
    """Refuse types that only variables request, such as those that `accelerate launch` sets."""
    if kind in UNSUPPORTED:
        msg = (
            f"`{kind}`: `accelerate launch` or the environment asks for it, and it is not supported yet. "
            "Start with torchrun, or with a configuration for several devices alone."
        )
        raise ArgumentError(msg)
