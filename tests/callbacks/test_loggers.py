from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
import transformers
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers.integrations import TensorBoardCallback, integration_utils

import compat
from compat.callbacks import loggers
from compat.callbacks.loggers import (
    ALIASES,
    OWN,
    REPORTS,
    SHARED,
    CSVCallback,
    CSVOfOurs,
    TensorBoardOfHF,
    reporting,
    shared_logger,
)
from compat.errors import ArgumentError
from tests.small import Regression, rows

HERE = {
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


class Configured(Regression):
    """A model with a configuration, as HF's integrations log one."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(architectures=["Small"])


def arguments(folder: Path, **options: Any) -> compat.TrainingArguments:
    return compat.TrainingArguments(str(folder), **{**HERE, "report_to": [], **options})


def hf_trainer(args: Any, *callbacks: Any) -> transformers.Trainer:
    torch.manual_seed(0)
    return transformers.Trainer(
        Configured(), args, train_dataset=rows(), eval_dataset=rows(3), callbacks=list(callbacks)
    )


def events(folder: Path) -> dict[str, Any]:
    """What the event files below `folder` hold, by tag: (step, value) of numbers, texts, names of folders."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("events.*"), key=lambda path: int(path.suffix[1:])):
        reader = EventAccumulator(str(file)).Reload()
        for tag in reader.Tags()["scalars"]:
            found.setdefault(tag, []).extend((each.step, each.value) for each in reader.Scalars(tag))
        for tag in reader.Tags()["tensors"]:
            found[tag] = [each.tensor_proto.string_val for each in reader.Tensors(tag)]
    return found


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


TIMES = {"eval/runtime", "eval/samples_per_second", "eval/steps_per_second", "args/text_summary"}
TIMES |= {name.replace("eval/", "train/train_") for name in TIMES}


def test_the_table_has_what_both_have() -> None:
    theirs = set(integration_utils.INTEGRATION_TO_CALLBACK)
    for report in REPORTS:
        assert (report.name in theirs) == (report.name not in OWN), report.name
        # lightning 2.6.0 has no LitLogger.
        of_lightning = {"", "LitLogger", *dir(pl.loggers)}
        assert report.logger in of_lightning, report.name
        integration = getattr(integration_utils, report.callback, None) or getattr(loggers, report.callback)
        logger = SHARED.get(integration)
        assert (
            issubclass(logger, getattr(pl.loggers, report.logger))
            if logger
            else report.name in {*OWN, "neptune"}
        )
    assert set(ALIASES.values()) <= theirs


def test_one_event_file_for_hf_and_lightning(tmp_path: Path) -> None:
    theirs = hf_trainer(arguments(tmp_path / "theirs"), TensorBoardCallback)
    theirs.train()
    callback = TensorBoardCallback()

    class Uses(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            logger.log_metrics({"mine": state.global_step * 10}, step=state.global_step)
            logger.save()

    ours = hf_trainer(arguments(tmp_path / "ours"), callback, Uses)
    logger = shared_logger(callback, ours)
    # As Lightning's Trainer does when it begins.
    _ = logger.experiment
    assert list((tmp_path / "ours").iterdir()) == []
    ours.train()
    logger.finalize("success")
    read, expected = events(tmp_path / "ours"), events(tmp_path / "theirs")
    assert read.pop("mine") == [(step, step * 10.0) for step in (1, 2, 3, 4)]
    assert read.keys() == expected.keys() >= {"train/loss", "eval/loss", "model_config/text_summary"}
    assert {name: read[name] for name in read.keys() - TIMES} == {
        name: expected[name] for name in expected.keys() - TIMES
    }
    assert [step for step, _ in read["train/loss"]] == [2, 4]
    files = list((tmp_path / "ours").rglob("events.*"))
    assert len(files) == len(list(tmp_path.glob("theirs/**/events.*"))) == 1
    assert sorted(path.name for path in files[0].parent.iterdir()) == [files[0].name]
    # What comes after training goes into the same folder, whoever writes first.
    logger.log_metrics({"later": 1.0}, step=4)
    ours.evaluate()
    assert [path.parent for path in tmp_path.glob("ours/**/events.*")] == [files[0].parent] * 2
    callback.tb_writer.close()
    assert logger.log_dir == logger.save_dir == str(files[0].parent)


def test_lightning_may_be_the_first_to_write(tmp_path: Path) -> None:
    callback = TensorBoardCallback()
    ours = hf_trainer(arguments(tmp_path), callback)
    logger = shared_logger(callback, ours)
    folder = logger.log_dir
    logger.log_metrics({"first": 3.0}, step=0)
    logger.log_hyperparams({"rate": 0.5})
    ours.train()
    read = events(tmp_path)
    assert read["first"] == [(0, 3.0)]
    assert len(read["train/loss"]) == 2
    assert Path(folder).parent == next(tmp_path.rglob("events.*")).parents[1]


def test_trials_have_folders_of_their_own(tmp_path: Path) -> None:
    for callback in (TensorBoardCallback(), CSVCallback()):
        ours = hf_trainer(arguments(tmp_path), callback)
        logger = shared_logger(callback, ours)
        for trial in ("one", "two"):
            state = transformers.TrainerState(is_hyper_param_search=True, trial_name=trial)
            ours.state = state
            callback.on_train_begin(ours.args, state, ours.control, model=ours.model)
            assert f"/{trial}" in logger.log_dir
            callback.on_log(ours.args, state, ours.control, logs={"loss": 1.0})
            callback.on_train_end(ours.args, state, ours.control)
    assert {path.parts[-2] for path in tmp_path.rglob("events.*")} == {"one", "two"}
    assert {path.parts[-4] for path in tmp_path.rglob("metrics.csv")} == {"one", "two"}


def test_csv_has_the_tags_steps_and_values_of_tensorboard(tmp_path: Path) -> None:
    callback = CSVCallback()
    ours = hf_trainer(arguments(tmp_path), TensorBoardCallback, callback)
    logger = shared_logger(callback, ours)
    assert logger is callback.logger
    ours.train()
    logger.log_metrics({"mine": 0.5}, step=4)
    logger.finalize("success")
    (file,) = tmp_path.rglob("metrics.csv")
    assert str(file.parent) == logger.log_dir
    read: dict[str, Any] = {}
    for row in table(file):
        for name in row.keys() - {"step"}:
            if row[name]:
                read.setdefault(name, []).append((int(row["step"]), float(row[name])))
    assert read.pop("mine") == [(4, 0.5)]
    expected = {name: values for name, values in events(tmp_path).items() if "text_summary" not in name}
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        assert read[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], name
    logged = yaml.safe_load((file.parent / "hparams.yaml").read_text())
    assert logged["max_steps"] == 4
    assert '"Small"' in logged["model_config"]
    # A second run goes on in the same file.
    rows_of_first = table(file)
    ours.train()
    assert len(list(tmp_path.rglob("metrics.csv"))) == 1
    assert len(table(file)) == len(rows_of_first) * 2 - 1


@pytest.mark.parametrize(
    ("given", "shown", "own"),
    [
        (["csv", "tensorboard"], ["tensorboard"], ["CSVCallback"]),
        (["comet"], ["comet_ml"], []),
        (["tensorboard"], ["tensorboard"], []),
        ("csv", [], ["CSVCallback"]),
        ("none", "none", []),
        ([], [], []),
        (None, None, []),
    ],
)
def test_hf_is_shown_the_names_that_it_knows(given: Any, shown: Any, own: list[str]) -> None:
    args = SimpleNamespace(report_to=given)
    with reporting(args) as callbacks:
        assert args.report_to == shown
        assert [type(callback).__name__ for callback in callbacks] == own
    assert args.report_to is given


def test_names_come_back_after_an_error() -> None:
    args = SimpleNamespace(report_to=["csv"])
    with pytest.raises(ValueError, match="as it is"), reporting(args):
        raise ValueError(["as it is"])
    assert args.report_to == ["csv"]


def test_a_logger_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ArgumentError, match=r"`report_to='litlogger'`.*pip install litlogger"),
        reporting(SimpleNamespace(report_to=["litlogger"])),
    ):
        pass


def test_a_logger_that_lightning_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delattr("lightning.pytorch.loggers.LitLogger", raising=False)
    with (
        pytest.raises(ArgumentError, match=r"`report_to='litlogger'`.*pip install 'lightning>=2\.6\.1'"),
        reporting(SimpleNamespace(report_to=["litlogger"])),
    ):
        pass


def test_other_callbacks_report_nowhere(tmp_path: Path) -> None:
    ours = hf_trainer(arguments(tmp_path))
    assert [shared_logger(each, ours) for each in ours.callback_handler.callbacks] == [None] * 2


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["x"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning", "ignore:.*LeafSpec:FutureWarning"
)
def test_lightnings_callbacks_log_into_hfs_run(tmp_path: Path) -> None:
    integrations = [TensorBoardCallback(), CSVCallback()]
    ours = hf_trainer(arguments(tmp_path), *integrations)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=[shared_logger(each, ours) for each in integrations],
        callbacks=[pl.callbacks.LearningRateMonitor("step")],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(), DataLoader(rows(), batch_size=2))
    read = events(tmp_path)
    assert read["lr-SGD"] == [(0, 0.25), (1, 0.25), (2, 0.25)]
    (file,) = tmp_path.rglob("metrics.csv")
    assert [row["lr-SGD"] for row in table(file)] == ["0.25"] * 3
    integrations[0].tb_writer.close()


def wandb(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    library = MagicMock(run=None)
    library.init.side_effect = lambda **kwargs: setattr(library, "run", MagicMock(id="one", project="hf"))
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", MagicMock(ConfigError=KeyError))
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return integration_utils.WandbCallback(), library


def test_lightning_logs_along_hfs_axis_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, library = wandb(monkeypatch)
    ours = hf_trainer(arguments(tmp_path), callback)
    logger = shared_logger(callback, ours)
    _ = logger.experiment
    assert (logger.version, library.init.call_count) == (None, 0)
    logger.log_metrics({"mine": 1.0}, step=0)
    ours.train()
    logger.log_metrics({"mine": 2.0}, step=4)
    logger.log_hyperparams({"rate": 0.5})
    logger.finalize("success")
    assert library.init.call_count == 1
    assert [call.args[0] for call in library.run.log.call_args_list] == [
        {"mine": 1.0, "train/global_step": 0},
        {"mine": 2.0, "train/global_step": 4},
    ]
    assert library.log.call_args_list[0].args[0]["train/global_step"] == 2
    assert library.run.config.update.call_args.args[0] == {"rate": 0.5}
    assert (logger.name, logger.version, logger.save_dir) == ("hf", "one", str(tmp_path))


def test_what_lightning_cannot_share_stays_hfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, library = wandb(monkeypatch)
    ours = hf_trainer(arguments(tmp_path), callback)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    assert shared_logger(callback, ours) is None
    ours.train()
    assert library.init.call_count == 1


def test_lightning_logs_into_hfs_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = MagicMock(__version__="3.0.0")
    library.utils.validation = MagicMock(MAX_PARAM_VAL_LENGTH=250, MAX_PARAMS_TAGS_PER_BATCH=100)
    library.active_run.return_value = None
    run = library.last_active_run.return_value
    run.info.run_id, run.info.experiment_id = "one", "7"
    library.start_run.side_effect = lambda **kwargs: setattr(library.active_run, "return_value", run)
    library.end_run.side_effect = lambda: setattr(library.active_run, "return_value", None)
    for name in ("mlflow", "mlflow.tracking", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, library)
    library.tracking = library
    monkeypatch.setattr(integration_utils, "is_mlflow_available", lambda: True)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    callback = integration_utils.MLflowCallback()
    ours = hf_trainer(arguments(tmp_path), callback)
    logger = shared_logger(callback, ours)
    _ = logger.experiment
    assert library.start_run.call_count == 0
    ours.train()
    assert library.end_run.call_count == 1
    logger.log_metrics({"mine": 2.0}, step=4)
    logger.finalize("success")
    client = library.MlflowClient.return_value
    assert library.start_run.call_count == 1
    assert client.log_batch.call_args.kwargs["run_id"] == logger.run_id == logger.version == "one"
    assert library.Metric.call_args.kwargs["step"] == 4
    assert not client.create_run.called
    assert not client.set_terminated.called


def test_lightning_logs_into_hfs_experiment_of_comet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = MagicMock()
    metrics = MagicMock()
    experiment = SimpleNamespace(
        get_key=lambda: "one",
        __internal_api__set_model_graph__=lambda *args, **kwargs: None,
        __internal_api__log_parameters__=lambda *args, **kwargs: None,
        __internal_api__log_metrics__=metrics,
    )
    library.start.return_value = experiment
    monkeypatch.setitem(sys.modules, "comet_ml", library)
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    for name in ("_is_comet_installed", "_is_comet_recent_enough"):
        monkeypatch.setattr(integration_utils, name, True)
    monkeypatch.setattr("lightning.pytorch.loggers.comet._COMET_AVAILABLE", True)
    callback = integration_utils.CometCallback()
    ours = hf_trainer(arguments(tmp_path), callback)
    logger = shared_logger(callback, ours)
    assert library.start.call_count == 0
    ours.train()
    logger.log_metrics({"mine": 2.0}, step=4)
    logger.finalize("success")
    assert library.start.call_count == 1
    assert logger.experiment is experiment
    assert logger.version == "one"
    assert metrics.call_args.args[0] == {"mine": 2.0}
    assert metrics.call_args.kwargs["step"] == 4


def run(kind: Any, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = kind(Configured(), arguments(folder, **options), train_dataset=rows(), eval_dataset=rows(3))
    trainer.train()
    return trainer


def test_a_trainer_of_ours_writes_what_hfs_does(tmp_path: Path) -> None:
    theirs = run(transformers.Trainer, tmp_path / "theirs", report_to=["tensorboard"])
    ours = run(compat.Trainer, tmp_path / "ours", report_to=["tensorboard", "csv"])
    assert ours.args.report_to == ["tensorboard", "csv"]
    names = [type(each).__name__ for each in ours.callback_handler.callbacks]
    assert names == ["DefaultFlowCallback", "CSVCallback", "TensorBoardCallback", "PrinterCallback"]
    for each in (ours, theirs):
        each.evaluate()
        each.pop_callback(TensorBoardCallback).tb_writer.close()
    read, expected = events(tmp_path / "ours"), events(tmp_path / "theirs")
    assert read.keys() == expected.keys()
    assert {name: read[name] for name in read.keys() - TIMES} == {
        name: expected[name] for name in expected.keys() - TIMES
    }
    (file,) = (tmp_path / "ours").rglob("metrics.csv")
    assert {*table(file)[0]} - {"step"} == {name for name in expected if "text_summary" not in name}
    losses = [(int(row["step"]), float(row["train/loss"])) for row in table(file) if row["train/loss"]]
    assert losses == [(step, pytest.approx(value)) for step, value in expected["train/loss"]]


def test_a_trainer_of_ours_shares_its_runs_with_lightning(tmp_path: Path) -> None:
    ours = run(compat.Trainer, tmp_path, report_to=["tensorboard", "csv"])
    found = ours.lightning.loggers
    assert {type(logger) for logger in found} == {TensorBoardOfHF, CSVOfOurs}
    for logger in found:
        logger.log_metrics({"mine": 1.0}, step=4)
        logger.save()
    assert events(tmp_path)["mine"] == [(4, 1.0)]
    (file,) = tmp_path.rglob("metrics.csv")
    assert table(file)[-1]["mine"] == "1.0"
    ours.pop_callback(TensorBoardCallback).tb_writer.close()
