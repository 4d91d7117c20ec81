"""Live Lightning objects from a plan; the one place that builds them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from compat.engine.loops import EvaluationLoop, FitLoop, PredictionLoop
from compat.engine.precision import HFPrecision
from compat.engine.signals import SignalConnector
from compat.engine.strategies import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from lightning.pytorch.plugins.io import CheckpointIO

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
"""Flags that hold whatever the arguments: logs, checkpoints, the bar and the order of samples are HF's."""


def build_trainer(
    plan: LightningPlan,
    *,
    device: torch.device,
    checkpoint_io: CheckpointIO,
    scaler: Any | None = None,
    default_root_dir: str | None = None,
) -> pl.Trainer:
    """Build the Lightning Trainer of a plan.

    Args:
        plan: what to build.
        device: the device that HF's arguments chose.
        checkpoint_io: what reads and writes checkpoints.
        scaler: the gradient scaler, with fp16.
        default_root_dir: where Lightning's own callbacks write.

    Returns:
        A Trainer that validates and predicts; `attach_session` makes it fit.
    """
    flags = plan.flags
    strategy = STRATEGIES["single_device"](
        device=device,
        accelerator=AcceleratorRegistry.get(flags.pop("accelerator")),
        checkpoint_io=checkpoint_io,
        precision_plugin=HFPrecision(flags.pop("precision"), scaler),
    )
    with quiet():
        trainer = pl.Trainer(
            **OURS,  # type: ignore[arg-type]
            **flags,
            strategy=strategy,
            devices=1,
            plugins=[LightningEnvironment()],
            default_root_dir=default_root_dir,
        )
    trainer._signal_connector = SignalConnector(trainer)
    trainer.validate_loop = EvaluationLoop(trainer, TrainerFn.VALIDATING)
    trainer.predict_loop = PredictionLoop(trainer)
    return trainer


def attach_session(trainer: pl.Trainer, session: Session) -> None:
    """Give the Trainer the loops of one run of `fit`."""
    trainer.fit_loop = FitLoop(trainer, session, trainer.max_epochs or session.schedule.num_train_epochs)
    trainer.fit_loop.epoch_loop.max_steps = session.schedule.max_steps
    connected: Any = trainer
    is_profiled = not isinstance(connected.profiler, PassThroughProfiler)
    session.is_observed = bool(connected.callbacks or trainer.loggers or is_profiled)
    session.needs_closures = session.is_observed or isinstance(trainer.strategy, ParallelStrategy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back Lightning's notes on devices and tips: a script prints what it printed before it migrated."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The device is HF's choice (`use_cpu`), made knowingly.
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            yield
    finally:
        logger.setLevel(level)
