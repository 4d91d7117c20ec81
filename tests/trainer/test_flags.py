"""Each flag of `lightning={...}`, seen at work in a run."""

from __future__ import annotations

import inspect
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from transformers import TrainerCallback

from compat.arguments.lightning import FLAGS, Handling
from compat.checkpoint import atomic
from compat.errors import ArgumentError
from compat.upstream import launch
from tests.small import Regression, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

    import compat


def test_every_flag_of_lightnings_trainer_is_known_and_no_other() -> None:
    theirs = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert {name for name, flag in FLAGS.items() if flag.handling is not Handling.OURS} == theirs


def test_every_flag_is_tried_here() -> None:
    source = inspect.getsource(inspect.getmodule(test_every_flag_is_tried_here))  # type: ignore[arg-type]
    assert [name for name in FLAGS if f'"{name}"' not in source] == []


def run(folder: Path, flags: dict[str, Any], **options: Any) -> compat.Trainer:
    live = trainer(folder, lightning=flags, **options)
    live.train()
    return live


# Flags that HF arguments say.


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ({"max_steps": 2}, {"max_steps": 2}),
        ({"max_epochs": 1}, {"num_train_epochs": 1}),
        ({"accumulate_grad_batches": 2}, {"gradient_accumulation_steps": 2}),
        ({"gradient_clip_val": 0.01}, {"max_grad_norm": 0.01}),
        ({"log_every_n_steps": 2}, {"logging_steps": 2}),
        ({"precision": "bf16-mixed"}, {"bf16": True}),
        ({"precision": "32-true"}, {}),
    ],
    ids=str,
)
def test_a_flag_does_what_its_hf_argument_does(
    tmp_path: Path, flags: dict[str, Any], options: dict[str, Any]
) -> None:
    common = {"max_steps": -1} if "max_epochs" in flags else {}
    by_flag, by_argument = run(tmp_path, flags, **common), trainer(tmp_path, **{**common, **options})
    by_argument.train()
    assert losses(by_flag) == losses(by_argument)
    assert weights(by_flag) == weights(by_argument)


def test_a_flag_wins_over_its_hf_argument(tmp_path: Path) -> None:
    assert run(tmp_path, {"max_steps": 1}, max_steps=3).state.global_step == 1


# Flags that Lightning's Trainer acts on.


def test_profiler(tmp_path: Path) -> None:
    profiler = SimpleProfiler()
    run(tmp_path, {"profiler": profiler})
    steps = [durations for name, durations in profiler.recorded_durations.items() if "training_step" in name]
    assert {len(durations) for durations in steps} == {3}


@pytest.mark.parametrize(
    ("name", "kind", "row"),
    [
        ("simple", SimpleProfiler, "run_training_batch"),
        ("advanced", AdvancedProfiler, "training_step"),
        ("pytorch", PyTorchProfiler, "aten::"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
def test_profiler_by_name(
    tmp_path: Path, name: str, kind: type, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.profilers"):
        assert type(run(tmp_path, {"profiler": name}).lightning.profiler) is kind
    assert row in caplog.text


class ImpossibleModel(Regression):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        outputs = super().forward(x, labels)
        # The gradient of a root at zero is infinite, and infinity times zero is not a number.
        return {**outputs, "loss": (outputs["logits"] * 0).abs().sqrt().sum() * 0}


@pytest.mark.filterwarnings("ignore:.*anomaly|.*Anomaly|.*Error detected in:UserWarning")
def test_detect_anomaly(tmp_path: Path) -> None:
    trainer(tmp_path, model=ImpossibleModel()).train()
    with pytest.raises(RuntimeError, match="returned nan"):
        run(tmp_path, {"detect_anomaly": True}, model=ImpossibleModel())


def test_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    run(tmp_path, {"benchmark": True})
    assert torch.backends.cudnn.benchmark is True


def test_deterministic(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    try:
        run(tmp_path, {"deterministic": True}, callbacks=[Look()])
        assert seen == [True, True, True]
    finally:
        torch.use_deterministic_algorithms(False)


class Hooks(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append("start")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen.append(f"step {trainer.global_step}")


def test_callbacks(tmp_path: Path) -> None:
    hooks = Hooks()
    run(tmp_path, {"callbacks": [hooks]})
    assert hooks.seen == ["start", "step 1", "step 2", "step 3"]


@pytest.mark.filterwarnings("ignore:Experiment logs directory:UserWarning")
def test_logger(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="", version="")
    live = run(tmp_path / "out", {"logger": logger}, logging_steps=1)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    logged = [float(line.split(",")[header.index("train/loss")]) for line in lines[1:4]]
    assert logged == losses(live)


@pytest.mark.filterwarnings("ignore:.*tensorboardX:UserWarning")
def test_logger_by_name_writes_into_the_root(tmp_path: Path) -> None:
    run(tmp_path / "out", {"logger": True, "default_root_dir": str(tmp_path / "root")})
    assert list((tmp_path / "root").glob("lightning_logs/version_0/*"))


def test_plugins(tmp_path: Path) -> None:
    mine = TorchSyncBatchNorm()
    connector = run(tmp_path, {"plugins": [mine]}).lightning._accelerator_connector
    assert connector._layer_sync is mine
    with pytest.raises(ArgumentError, match="precision and checkpoints are HF's"):
        run(tmp_path, {"plugins": [Precision()]})


def test_model_summary_and_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, {"enable_model_summary": True})
    assert "Regression" in capsys.readouterr().out
    assert run(tmp_path, {"enable_progress_bar": False}, disable_tqdm=False).args.disable_tqdm is True
    bar = run(tmp_path, {"enable_progress_bar": True}).lightning.progress_bar_callback
    assert bar is not None


def test_flags_that_lightning_keeps(tmp_path: Path) -> None:
    lightning = run(tmp_path, {"enable_autolog_hparams": True, "sync_batchnorm": True}).lightning
    assert lightning.enable_autolog_hparams is True
    assert isinstance(lightning._accelerator_connector._layer_sync, TorchSyncBatchNorm)


def test_barebones(tmp_path: Path) -> None:
    live, plain = run(tmp_path, {"barebones": True}), trainer(tmp_path)
    plain.train()
    assert live.lightning.barebones is True
    assert losses(live) == losses(plain)


# Devices and strategies.


def test_accelerator_devices_and_strategy(tmp_path: Path) -> None:
    live = run(
        tmp_path, {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}, use_cpu=False
    )
    assert live.lightning.strategy.root_device.type == "cpu"
    assert live.args.use_cpu is True


def test_ddp_of_one_process_is_one_process(tmp_path: Path) -> None:
    live, plain = run(tmp_path, {"strategy": "ddp"}), trainer(tmp_path)
    plain.train()
    assert live.plan.strategy == "single_device"
    assert losses(live) == losses(plain)


def test_a_strategy_of_several_processes_is_refused_in_one(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a model is sharded over the processes of a job"):
        trainer(tmp_path, lightning={"strategy": "model_parallel"})


def test_a_strategy_of_gpus_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="version 1 of FSDP needs a GPU"):
        trainer(tmp_path, lightning={"strategy": "fsdp"})


def test_machines_that_do_not_know_where_to_meet_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "command", ["never", "started"])
    with pytest.raises(ArgumentError, match="Set NODE_RANK, MASTER_ADDR and MASTER_PORT"):
        trainer(tmp_path, lightning={"num_nodes": 2})


def test_an_accelerator_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="the device of this run is 'cpu'"):
        trainer(tmp_path, lightning={"accelerator": "tpu"})


# Limits.


def steps_of(live: compat.Trainer) -> int:
    return live.state.global_step


def test_limit_train_batches(tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 2}
    assert steps_of(run(tmp_path, {}, **options)) == 12
    assert steps_of(run(tmp_path, {"limit_train_batches": 2}, **options)) == 4
    limited = run(tmp_path, {"limit_train_batches": 0.5}, **options)
    assert (steps_of(limited), limited.state.epoch) == (6, 2.0)
    # The schedule counts what is trained on: its last rate is that of its last step.
    rates = [entry["learning_rate"] for entry in limited.state.log_history if "learning_rate" in entry]
    assert rates[-1] == pytest.approx(5e-5 / 6)


def test_a_limited_run_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "lightning": {"limit_train_batches": 3},
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert weights(resumed) == weights(whole)


def test_limit_val_and_predict_batches(tmp_path: Path) -> None:
    live = trainer(
        tmp_path,
        lightning={"limit_val_batches": 1, "limit_predict_batches": 2},
        per_device_eval_batch_size=2,
    )
    assert live.predict(rows(7)).predictions.shape == (4, 1)
    seen = len(live.model.modes)
    live.evaluate(rows(7))
    assert len(live.model.modes) == seen + 1


def test_overfit_batches(tmp_path: Path) -> None:
    batches: list[float] = []

    class Watching(Regression):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            batches.append(x.sum().item())
            return super().forward(x, labels)

    run(tmp_path, {"overfit_batches": 2}, model=Watching(), max_steps=4)
    first = [sum(row["x"].sum().item() for row in rows()[place : place + 2]) for place in (0, 2)]
    assert batches == pytest.approx(first * 2)


def test_fast_dev_run(tmp_path: Path) -> None:
    live = run(
        tmp_path,
        {"fast_dev_run": True},
        max_steps=100,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    assert live.state.global_step == 1
    assert list(tmp_path.glob("checkpoint-*")) == []
    assert [entry["step"] for entry in live.state.log_history if "eval_loss" in entry] == [1]


class Slow(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.6)


def test_max_time(tmp_path: Path) -> None:
    options = {"max_steps": 50, "save_strategy": "steps", "save_steps": 100, "callbacks": [Slow()]}
    # A second step would end after it.
    live = run(tmp_path, {"max_time": "00:00:00:01"}, **options)
    assert live.state.global_step == 1
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


# Options of ours.


def test_preemption(tmp_path: Path) -> None:
    handlers: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))

    for flags in ({}, {"preemption": True}, {"preemption": False}):
        run(tmp_path, flags, save_strategy="steps", max_steps=1, callbacks=[Look()])
    assert [handler is signal.SIG_DFL for handler in handlers] == [False, False, True]


def test_save_async(tmp_path: Path) -> None:
    writers: list[str] = []
    honest = atomic.seal

    def seal(folder: Path, *more: Any) -> None:
        writers.append(threading.current_thread().name)
        honest(folder, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(atomic, "seal", seal)
        for flags in ({"save_async": True}, {"save_async": False}):
            run(tmp_path, flags, save_strategy="steps", save_steps=3)
    assert writers == ["compat-writer", "MainThread"]
    assert (tmp_path / "checkpoint-3").is_dir()


def test_replay_data(tmp_path: Path) -> None:
    """Whether the first batch is drawn again by a run that goes on from the second."""
    run(tmp_path, {}, save_strategy="steps", save_steps=1)
    drawn: list[list[int]] = []
    data = rows()

    class Watched(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            (tmp_path / f"drawn-{len(drawn)}-{index}").touch()
            return data[index]

    for flags in ({"replay_data": True}, {}):
        live = trainer(
            tmp_path, lightning=flags, train_dataset=Watched(), dataloader_num_workers=1, max_steps=4
        )
        live.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        drawn.append([int(path.name.split("-")[2]) for path in tmp_path.glob(f"drawn-{len(drawn)}-*")])
    assert [len(indices) for indices in drawn] == [12, 8]


# Flags that contradict HF's semantics.


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("gradient_clip_algorithm", "value", "max_grad_norm"),
        ("val_check_interval", 10, "eval_steps"),
        ("check_val_every_n_epoch", 2, "eval_strategy"),
        ("enable_checkpointing", True, "save_strategy"),
        ("num_sanity_val_steps", 2, "eval_on_start"),
        ("inference_mode", True, "Remove it"),
        ("use_distributed_sampler", True, "_get_train_sampler"),
        ("reload_dataloaders_every_n_epochs", 1, "set_epoch"),
        ("min_epochs", 2, "should_training_stop"),
        ("min_steps", 2, "should_training_stop"),
        ("limit_test_batches", 2, "limit_predict_batches"),
        ("precision", "64-true", "bf16-mixed"),
    ],
)
def test_what_contradicts_hf_is_refused_with_a_way_out(
    tmp_path: Path, name: str, value: Any, way_out: str
) -> None:
    assert FLAGS[name].handling in (Handling.REFUSED, Handling.SAID)
    with pytest.raises(ArgumentError, match=way_out) as caught:
        trainer(tmp_path, lightning={name: value})
    assert f"{name!r}: {value!r}" in str(caught.value)


def test_a_registry_of_models_is_passed_on(tmp_path: Path) -> None:
    assert run(tmp_path, {"model_registry": "name:v2"}).lightning._model_registry == "name"
