"""Builds live Lightning objects from a plan; no other module builds them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core import rank_zero

from compat.arguments.lightning import FLAGS, Handling
from compat.engine.any_device import accelerator_of
from compat.engine.logs import LoggerConnector
from compat.engine.loops import EvaluationLoop, FitLoop, PredictionLoop
from compat.engine.observers import hears_all, is_observed
from compat.engine.precision import HFPrecision
from compat.engine.signals import SignalConnector
from compat.engine.strategies import STRATEGIES
from compat.engine.user_module import is_user_module
from compat.errors import ArgumentError
from compat.upstream.environment import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers import TrainingArguments

    from compat.engine.session import Session
    from compat.translate import LightningPlan

OURS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "inference_mode": False,
}
"""Flags that hold unless `lightning={...}` says otherwise: logs, the bar, the order of samples are HF's."""

BROUGHT = {"enable_checkpointing": Checkpoint, "enable_progress_bar": ProgressBar}
"""Flags that Lightning requires to be on if there is a callback of that kind."""

BUILT_HERE = ("accelerator", "devices", "num_nodes", "strategy", "precision")
"""Flags of a plan that the strategy object stands for."""

DONE_ELSEWHERE = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_predict_batches",
    "overfit_batches",
    "fast_dev_run",
    "max_time",
)
"""Flags that apply where HF's loaders are made, or through HF's control: schedules and counts follow them."""

PASSED_ON = frozenset(
    flag.name
    for flag in FLAGS.values()
    if flag.handling is Handling.PASSED and flag.name not in (*BUILT_HERE, *DONE_ELSEWHERE)
)
"""Flags of `lightning={...}` that Lightning's Trainer itself acts on."""


def build_trainer(
    plan: LightningPlan,
    *,
    device: torch.device,
    checkpoint_io: CheckpointIO,
    scaler: Any | None = None,
    default_root_dir: str | None = None,
    asked: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
) -> pl.Trainer:
    """Build the Lightning Trainer of a plan.

    Args:
        plan: the plan to build.
        device: the device that HF's arguments chose.
        checkpoint_io: the plugin that reads and writes checkpoints.
        scaler: the gradient scaler, with fp16.
        default_root_dir: where Lightning's own callbacks write.
        asked: flags of `lightning={...}`, with their live objects.
        facts: the processes of the job; a single process if None.

    Returns:
        A Trainer that validates and predicts; `attach_session` makes it fit.
    """
    live = {name: value for name, value in (asked or {}).items() if name in PASSED_ON and value is not None}
    brought = {
        flag: True
        for flag, kind in BROUGHT.items()
        if any(isinstance(callback, kind) for callback in live.get("callbacks") or ())
    }
    flags = {**OURS, "default_root_dir": default_root_dir, **plan.flags, **live, **brought}
    facts = facts or Facts()
    strategy = STRATEGIES[plan.strategy](
        device,
        facts,
        checkpoint_io=checkpoint_io,
        precision_plugin=HFPrecision(flags["precision"], scaler),
    )
    built = {
        "strategy": strategy,
        "plugins": _plugins(flags.pop("plugins", None) or [], strategy),
        "num_nodes": facts.num_nodes,
        "devices": facts.devices,
        "accelerator": accelerator_of(device.type) if isinstance(strategy, ParallelStrategy) else "auto",
    }
    for name in (*BUILT_HERE, *DONE_ELSEWHERE):
        flags.pop(name, None)
    if flags.get("barebones"):
        flags.pop("log_every_n_steps")  # Lightning then refuses it, whatever its value
    with quiet():
        trainer = pl.Trainer(**flags, **built)  # type: ignore[arg-type]
    trainer._signal_connector = SignalConnector(trainer)
    trainer._logger_connector = LoggerConnector(trainer)
    # HF chooses the checkpoint that a run resumes from.
    trainer._checkpoint_connector._user_managed = True
    trainer.validate_loop = EvaluationLoop(trainer, TrainerFn.VALIDATING)
    trainer.predict_loop = PredictionLoop(trainer)
    return trainer


def _plugins(asked: object, strategy: Strategy) -> list[Any]:
    plugins = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    for plugin in plugins:
        if isinstance(plugin, (Precision, CheckpointIO)):
            msg = (
                f"`lightning={{'plugins': {type(plugin).__name__}}}`: precision and checkpoints are HF's. "
                "Give `bf16` or `fp16`, and `save_strategy`."
            )
            raise ArgumentError(msg)
    if isinstance(strategy, ParallelStrategy):
        # This strategy has its own environment, with the ranks from HF's arguments.
        return [plugin for plugin in plugins if not isinstance(plugin, ClusterEnvironment)]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(LightningEnvironment())
    return plugins


def attach_session(trainer: pl.Trainer, session: Session) -> None:
    """Give the Trainer the loops of one run of `fit`."""
    trainer.fit_loop = FitLoop(trainer, session, session.schedule.epochs)
    trainer.fit_loop.epoch_loop.max_steps = session.schedule.max_steps
    _show_evaluation_schedule(trainer, session.hf.args)
    has_user_module = is_user_module(session.hf.model)
    session.is_observed = is_observed(trainer, has_user_module=has_user_module)
    session.hears_all = hears_all(trainer, has_user_module=has_user_module)
    is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    needs_closures = getattr(trainer.strategy, "needs_closures", True)
    session.needs_closures = session.hears_all or needs_closures or is_scaled


def _show_evaluation_schedule(trainer: pl.Trainer, args: TrainingArguments) -> None:
    """Set Lightning's flags to HF's evaluation schedule: callbacks that monitor a metric read them."""
    by_steps = args.eval_strategy == "steps"
    trainer.val_check_interval = (
        max(1, int(args.eval_steps)) * args.gradient_accumulation_steps if by_steps else 1.0
    )
    # HF does not evaluate after each epoch: such callbacks then wait for an evaluation.
    is_late = bool(args.eval_delay) and args.eval_strategy != "no"
    trainer.check_val_every_n_epoch = None if by_steps or is_late else 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's device notes and tips, so that a migrated script prints what it printed before."""
    # The distribution of Lightning that was imported last has set it.
    logger = rank_zero.log
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # HF's arguments chose the device (`use_cpu`).
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            yield
    finally:
        logger.setLevel(level)
