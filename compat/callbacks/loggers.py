"""`report_to`: HF's integrations and Lightning's loggers, with one run for both.

HF's integration is unchanged: tags, steps and hyperparameters are its own. A Lightning logger writes to the
same run, so that the logs of Lightning's callbacks are there as well. Names for which only Lightning has a
logger get an integration from `compat`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers
from lightning.pytorch import loggers as of_lightning
from transformers.integrations import integration_utils as of_hf
from typing_extensions import override

from compat.callbacks.logger_runs import OfHFsRun, OwnRun, logging_folder, trial_name
from compat.errors import ArgumentError
from compat.upstream.features import accepts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.pytorch.loggers import Logger


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """A name of `report_to`.

    Attributes:
        name: the name.
        callback: the integration, HF's or compat's.
        logger: Lightning's logger; empty if Lightning has none.
        shared: the object that both write to.
    """

    name: str
    callback: str
    logger: str
    shared: str


REPORTS = (
    Report("tensorboard", "TensorBoardCallback", "TensorBoardLogger", "the writer of event files"),
    Report("wandb", "WandbCallback", "WandbLogger", "`wandb.run`, and its axis `train/global_step`"),
    Report("mlflow", "MLflowCallback", "MLFlowLogger", "the active run, by its id"),
    Report("comet_ml", "CometCallback", "CometLogger", "the experiment"),
    Report("csv", "CSVCallback", "CSVLogger", "`metrics.csv` and `hparams.yaml` in the folder of the run"),
    Report("litlogger", "LitLoggerCallback", "LitLogger", "the experiment"),
    Report("neptune", "NeptuneCallback", "", "nothing: Lightning has given its logger up"),
)
"""The names that Lightning or compat supports; any other name is only HF's."""

ALIASES = {"comet": "comet_ml"}


@contextlib.contextmanager
def reporting(args: Any) -> Iterator[list[transformers.TrainerCallback]]:
    """Hide the names of `report_to` that HF does not know.

    Args:
        args: HF's arguments, or None for HF's defaults; all names are restored when the context ends.

    Yields:
        Callbacks for the hidden names, to be placed before a user's own.
    """
    given = getattr(args, "report_to", None)
    asked = [given] if isinstance(given, str) else list(given or [])
    names = [ALIASES.get(name, name) for name in asked]
    own = [OWN[name] for name in names if name in OWN]
    is_changed = names != asked or bool(own)
    if is_changed:
        args.report_to = [name for name in names if name not in OWN]
    try:
        yield [callback() for callback in own]
    finally:
        if is_changed:
            args.report_to = given


def shared_logger(callback: Any, hf: Any) -> Logger | None:
    """Return a Lightning logger that writes to the run of an integration.

    It opens the run only when a value is logged, unless HF's `on_train_begin` has opened it, and never ends
    it.

    Args:
        callback: one of `hf.callback_handler.callbacks`.
        hf: the HF Trainer, which is held weakly.

    Returns:
        The logger, possibly a new one for the same run at each call; None for a callback that does not
        report, or that has no Lightning logger.
    """
    logger: Any
    if isinstance(callback, OwnCallback):
        logger = callback.logger
        logger.follow(hf)
        return logger  # type: ignore[no-any-return]
    if getattr(callback, "_wandb", callback) is None:
        # Disabled by a variable of older releases.
        return None
    for integration, kind in SHARED.items():
        if isinstance(callback, integration):
            try:
                logger = kind(callback)
            except (ImportError, ValueError) as error:
                # HF accepts packages that Lightning refuses: an older release, or a module without metadata.
                log.info(f"Lightning cannot share the run of {type(callback).__name__}: {error}")
                return None
            logger.follow(hf)
            return logger  # type: ignore[no-any-return]
    return None


class SetUpByHF(OfHFsRun):
    """Mixin for integrations that HF sets up once, with a `setup` method."""

    def __init__(self, callback: Any, **options: Any) -> None:
        self._callback = callback
        super().__init__(**options)

    @override
    def open(self, args: Any, state: Any, model: Any) -> None:
        if not self._callback._initialized:
            self._callback.setup(args, state, model)

    @property
    def save_dir(self) -> str | None:
        """The folder for files that Lightning's callbacks write."""
        hf = self._of()
        return None if hf is None else str(hf.args.output_dir)


class TensorBoardOfHF(OfHFsRun, of_lightning.TensorBoardLogger):
    """Writes to the event files of HF's `TensorBoardCallback`."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        super().__init__(save_dir="", name="", version="")

    @override
    def find(self) -> Any:
        return self._callback.tb_writer

    @override
    def open(self, args: Any, state: Any, model: Any) -> None:
        callback = self._callback
        if accepts(callback._init_summary_writer, "log_dir"):
            callback._init_summary_writer(args, logging_folder(args, state))
            return
        if callback.logging_dir is None or trial_name(state):
            callback.logging_dir = logging_folder(args, state)
        callback._init_summary_writer(args)

    @property
    @override
    def log_dir(self) -> str:
        """The folder of the event files; the first folder of the run if none is open."""
        writer = self.find()
        if writer is not None:
            return str(getattr(writer, "log_dir", None) or writer.logdir)
        hf, chosen = self._of(), getattr(self._callback, "logging_dir", None)
        return chosen or logging_folder(hf.args, hf.state)

    @property
    @override
    def save_dir(self) -> str:
        return self.log_dir

    @override
    def save(self) -> None:
        if (writer := self.find()) is not None:
            writer.flush()


class WandbOfHF(SetUpByHF, of_lightning.WandbLogger):
    """Writes to the run of HF's `WandbCallback`, with its step axis."""

    @override
    def find(self) -> Any:
        return self._callback._wandb.run if self._callback._initialized else None

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log with HF's step axis: Lightning's own would be a second one."""
        at = {} if step is None else {"train/global_step": step}
        self.experiment.log({**metrics, **at})

    @property
    @override
    def name(self) -> str | None:
        run = self.find()
        return None if run is None else str(run.project)

    @property
    @override
    def version(self) -> str | None:
        run = self.find()
        return None if run is None else str(run.id)


class MLFlowOfHF(SetUpByHF, of_lightning.MLFlowLogger):
    """Writes to the run of HF's `MLflowCallback`."""

    def __init__(self, callback: Any) -> None:
        self._last: Any = None
        super().__init__(callback, tracking_uri=callback._ml_flow.get_tracking_uri())

    @override
    def find(self) -> Any:
        mlflow = self._callback._ml_flow
        run = mlflow.active_run() if self._callback._initialized else None
        if run is None and self._last is None and self._callback._initialized:
            run = mlflow.last_active_run()
        if run is not None and run.info.run_id != self._run_id:
            self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
            self._last = mlflow.tracking.MlflowClient(mlflow.get_tracking_uri())
        # HF ends its run with training; later logs still belong to it.
        return self._last

    @property
    @override
    def run_id(self) -> str | None:
        self._opened()
        return self._run_id

    @property
    @override
    def experiment_id(self) -> str | None:
        self._opened()
        return self._experiment_id


class CometOfHF(SetUpByHF, of_lightning.CometLogger):
    """Writes to the experiment of HF's `CometCallback`."""

    @override
    def _create_experiment(self) -> None:
        """Do nothing: HF creates the experiment."""

    @override
    def find(self) -> Any:
        return self._callback._experiment

    @property
    @override
    def version(self) -> str | None:
        experiment = self.find()
        return None if experiment is None else str(experiment.get_key())


SHARED: dict[type, type] = {
    of_hf.TensorBoardCallback: TensorBoardOfHF,
    of_hf.WandbCallback: WandbOfHF,
    of_hf.MLflowCallback: MLFlowOfHF,
    of_hf.CometCallback: CometOfHF,
}
"""HF's integrations → the Lightning logger for the run of each."""


class CSVOfOurs(OwnRun, of_lightning.CSVLogger):
    """Lightning's CSVLogger, in the folder of HF's logs."""

    @override
    def construct(self, folder: str, args: Any) -> None:
        of_lightning.CSVLogger.__init__(self, folder, name="csv")

    @override
    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.save()


class OwnCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """An integration in HF's style, which writes to a Lightning logger.

    Tags and steps are those of HF's TensorBoard integration; hyperparameters are the arguments, and the
    model's configuration as text.

    Attributes:
        logger: the Lightning logger.
    """

    logger: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin a run and log the hyperparameters."""
        if not state.is_world_process_zero:
            return
        self.logger.begin(args, state)
        config: Any = getattr(model, "config", None)
        text = {"model_config": config.to_json_string()} if hasattr(config, "to_json_string") else {}
        self.logger.log_hyperparams({**args.to_sanitized_dict(), **text})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log numbers under HF's tags, at HF's step."""
        if not state.is_world_process_zero:
            return
        if self.logger._experiment is None:
            self.logger.begin(args, state)
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        self.logger.log_metrics(of_hf.rewrite_logs(numbers), step=state.global_step)
        self.logger.save()


class CSVCallback(OwnCallback):
    """`report_to="csv"`: `metrics.csv` and `hparams.yaml` next to TensorBoard's event files."""

    def __init__(self) -> None:
        self.logger = CSVOfOurs()


class LitLoggerCallback(OwnCallback):
    """`report_to="litlogger"`: an experiment on Lightning's platform.

    Raises:
        ArgumentError: litlogger is not installed, or the release of lightning has no logger for it.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("litlogger") is None:
            msg = "`report_to='litlogger'`: litlogger is not installed. Run `pip install litlogger`."
            raise ArgumentError(msg)
        if not hasattr(of_lightning, "LitLogger"):
            msg = (
                "`report_to='litlogger'`: the installed lightning has no logger for it. "
                "Run `pip install 'lightning>=2.6.1'`."
            )
            raise ArgumentError(msg)
        from compat.callbacks.litlogger import LitLoggerOfOurs

        self.logger = LitLoggerOfOurs()


OWN: dict[str, type[OwnCallback]] = {"csv": CSVCallback, "litlogger": LitLoggerCallback}
