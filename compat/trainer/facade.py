"""`compat.Trainer`: HF's Trainer on Lightning's engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import ParallelismConfig
from transformers import Trainer as HFTrainer  # HF's own, also after `compat.install()`

from compat.callbacks.loggers import reporting
from compat.callbacks.misplaced import check_place
from compat.engine.build import check_supported
from compat.engine.guest import is_guest
from compat.errors import ArgumentError
from compat.trainer.accelerator import Adopting
from compat.trainer.callbacks import set_apart
from compat.trainer.generations import GenerationsMixin, LackedMethods
from compat.trainer.given import Given
from compat.trainer.guests import welcome
from compat.trainer.older import take_older_name, takes_tokenizer
from compat.trainer.overrides import adapt_overrides, is_adapted
from compat.trainer.surprises import Surprises
from compat.translate import LightningPlan, as_run, plan
from compat.translate.strategy import FSDP_VERSIONS, NEWEST_FSDP, fsdp_config
from compat.upstream import started
from compat.upstream.distributions import check_distribution
from compat.upstream.environment import Facts, contained, overlaid, own_accelerator_state
from compat.upstream.models import uncompiled
from compat.upstream.sharding import (
    fsdp2_plugin,
    fsdp_plugin_asked_for,
    lay_mesh,
    shard,
    tensor_parallel_size,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


UNSUPPORTED = frozenset({"MEGATRON_LM", "XLA"})
"""Kinds of distribution of accelerate's for which there is no strategy of ours yet."""


class Trainer(GenerationsMixin, LackedMethods):
    """Train, evaluate and predict with HF's interface, on PyTorch Lightning.

    Mirrors `transformers.Trainer`: same constructor, methods, events and checkpoints, and
    `isinstance(trainer, transformers.Trainer)` holds. What can be overridden there can be overridden here,
    with the signatures of 4.37 and later; methods and parameters of all these releases are there.
    `trainer.lightning` and `trainer.lightning_module` are the live Lightning objects, `trainer.plan` tells
    what became of the arguments.

    Args:
        model: the model to train, or a LightningModule; as in `transformers.Trainer`, and so are all other
            arguments.
        train_dataset: a dataset, or a LightningDataModule.
        callbacks: of HF's and of Lightning's, in one list.
        tokenizer: the older name of `processing_class`.

    Raises:
        ArgumentError: for arguments that cannot be honoured, all of them at once, before anything is built.
        ValueError: HF's own errors; `tokenizer` and `processing_class` are both given.
    """

    _lightning = None
    _lightning_module = None
    _mesh: ParallelismConfig | None = None
    accelerator: Any = Adopting()

    @takes_tokenizer(HFTrainer.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        take_older_name(kwargs, "tokenizer", "processing_class", f"{type(self).__name__}.__init__")
        adapt_overrides(self, Trainer)
        self._surprises = Surprises()
        given = Given(args, kwargs)
        if (module := uncompiled(given["model"])) is not given["model"]:
            given["model"] = module
        welcome(given)
        callbacks = set_apart(given)
        with reporting(given["args"]) as own:
            super().__init__(*given.args, **given.kwargs)
        # Where HF has its own: after the flow, before what a script gives.
        self.callback_handler.callbacks[1:1] = own
        for callback in callbacks:
            self.add_callback(callback)
        if is_guest(self.model):
            self.model_accepts_loss_kwargs = False
        if is_adapted(self, "compute_loss"):
            # Such a loss is the mean of its micro-batch: HF must divide it by the window, as it did then.
            self.model_accepts_loss_kwargs = False

    def call_model_init(self, trial: Any = None) -> Any:
        """Call `model_init`. Mirrors `transformers.Trainer.call_model_init`.

        Args:
            trial: the trial of a hyperparameter search.
        """
        return uncompiled(super().call_model_init(trial))

    @property
    def plan(self) -> LightningPlan:
        """What becomes of the arguments."""
        return plan(self.args, Facts.of(self.args), getattr(self, "model", None))

    def create_accelerator_and_postprocess(self) -> None:
        """Have HF build its accelerator from the arguments alone, whatever another run has left behind."""
        # Conflicts surface here, ahead of the model and everything else that the constructor builds.
        check_supported(self.plan)
        if self.plan.strategy == "deepspeed":
            started.form_job_of_one()
        for name in ("callbacks", "logger", "profiler"):
            given = self._lightning_flags.get(name)
            for one in given if isinstance(given, (list, tuple)) else (given,):
                check_distribution(one, f"lightning.{name}")
                if name == "callbacks" and one is not None:
                    check_place(one, "lightning.callbacks", takes_hf=False)
        # HF spreads a batch over all GPUs of one process, which no Lightning strategy does.
        self.args._n_gpu = min(self.args.n_gpu, 1)
        with own_accelerator_state(), overlaid(_accelerate_environment(self.args, self.plan.strategy)):
            super().create_accelerator_and_postprocess()
        _refuse_unsupported(self.accelerator.distributed_type.value)
        self._lay_mesh_where_accelerate_does_not()
        self._shard_where_accelerate_does_not()

    def _build_accelerator_args(self, **parts: Any) -> dict[str, Any]:
        """What HF builds its accelerator from; the mesh comes later where accelerate refuses it."""
        given: dict[str, Any] = super()._build_accelerator_args(**parts)
        if self.args.device.type == "cpu":
            self._mesh = given.pop("parallelism_config", None)
        return given

    def _lay_mesh_where_accelerate_does_not(self) -> None:
        """Have a mesh also on a CPU, and for a model that has spread its own tensors."""
        state, size = self.accelerator.state, tensor_parallel_size(self.model)
        mesh = self._mesh or getattr(self.args, "parallelism_config", None) or state.parallelism_config
        if mesh is None and size > 1:
            mesh = ParallelismConfig(tp_size=size, dp_shard_size=state.num_processes // size)
        self.is_tp_enabled = size > 1
        if mesh is not None and state.device_mesh is None:
            lay_mesh(state, mesh)

    def _shard_where_accelerate_does_not(self) -> None:
        """Have FSDP also on a CPU, and version 2 also under transformers 4."""
        asked = as_run(self.args, Facts.of(self.args))
        if self.plan.strategy != "model_parallel" or not asked.fsdp:
            return
        state = self.accelerator.state
        missing = getattr(state, "fsdp_plugin", None) is None
        supplied = self.args.fsdp and getattr(self.args, "fsdp_plugin_args", None) is None
        if missing or supplied:
            with contained():  # the plugin writes a variable
                # What a launcher has asked for, the plugin reads by itself.
                shard(state, fsdp2_plugin(fsdp_config(asked)) if self.args.fsdp else fsdp_plugin_asked_for())
        self.is_fsdp_enabled = True


def _refuse_unsupported(kind: str) -> None:
    """Refuse what variables have asked for, `accelerate launch` for one, and no argument has."""
    if kind in UNSUPPORTED:
        msg = (
            f"`{kind}`: `accelerate launch` or the environment asks for it, and it is not supported yet. "
            "Start with torchrun, or with a configuration for several devices alone."
        )
        raise ArgumentError(msg)


def _accelerate_environment(args: Any, strategy: str) -> Mapping[str, str]:
    """What accelerate must read in its variables, whoever wrote them last."""
    precision = "fp16" if args.fp16 else "bf16" if args.bf16 else Facts.of(args).mixed_precision
    written: Mapping[str, str] = getattr(args, "accelerate_environment", {})
    if args.fsdp and strategy == FSDP_VERSIONS[NEWEST_FSDP]:
        written = {**written, "FSDP_VERSION": str(NEWEST_FSDP)}
    if strategy == "deepspeed":
        # `accelerate launch --cpu` keeps accelerate off DeepSpeed; the device is chosen by now.
        written = {**written, "ACCELERATE_USE_CPU": "false"}
    return {"ACCELERATE_MIXED_PRECISION": precision, **written}
