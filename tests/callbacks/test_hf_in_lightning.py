from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, EarlyStoppingCallback, TrainerCallback

import compat
from compat.callbacks import EVENTS, to_lightning
from compat.errors import ArgumentError
from tests.small import Regression, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
]

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    """A user's own module around the model that HF's Trainer trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Regression()

    def training_step(self, batch, batch_idx):
        loss = self.net(**batch)["loss"]
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(**batch)["loss"], batch_size=len(batch["x"]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(**batch)["logits"]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader(count: int = 12) -> DataLoader:
    return DataLoader(rows(count), batch_size=2)


def trainer_with(*callbacks: Any, **flags: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **flags})


def fit(*callbacks: Any, module: Any = None, ckpt_path: Any = None, **flags: Any) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = trainer_with(*callbacks, **flags)
    trainer.fit(module or Module(), loader(), loader(5), ckpt_path=ckpt_path)
    return trainer


def arguments(folder: Path, **options: Any) -> compat.TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 0.1,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return compat.TrainingArguments(str(folder), **{**defaults, **options})


class Recorder(TrainerCallback):
    """Writes down each event, the state that it is shown and what is given with it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.given: dict[str, dict[str, Any]] = {}

    def names(self) -> list[str]:
        return [event[0] for event in self.events]


def record(self: Recorder, name: str, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
    flags = [flag for flag, value in vars(control).items() if value]
    self.events.append((name, state.global_step, state.epoch, state.max_steps, *flags))
    self.given[name] = kwargs


for event in EVENTS:

    def fired(self, args, state, control, name=event.name, **kwargs):
        record(self, name, state, control, kwargs)

    setattr(Recorder, event.name, fired)


class Hooks(pl.Callback):
    """Remembers the hook of Lightning's that has begun last; stands before the bridge."""

    def __init__(self) -> None:
        self.last = ""
        self.seen: dict[str, str] = {}


def hook(name: str) -> Any:
    def begun(self, *args, **kwargs):
        self.last = name

    return begun


for name in vars(pl.Callback):
    if name.startswith("on_") or name == "setup":
        setattr(Hooks, name, hook(name))


FLOW = {
    "steps": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 3,
        "logging_first_step": True,
        "eval_on_start": True,
    },
    "epochs": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 1,
    },
}


@pytest.mark.parametrize("kind", FLOW)
def test_the_sequence_of_events_is_hfs(tmp_path: Path, kind: str) -> None:
    args = arguments(tmp_path, **FLOW[kind])
    theirs, ours, hooks = Recorder(), Recorder(), Hooks()
    hf = transformers.Trainer(
        Regression(), args, train_dataset=rows(), eval_dataset=rows(5), callbacks=[theirs]
    )
    hf.remove_callback(transformers.PrinterCallback)
    hf.train()
    bridge = to_lightning([DefaultFlowCallback, ours], args=args)
    trainer = fit(hooks, bridge, max_epochs=2, accumulate_grad_batches=2)
    assert ours.events[1:] == theirs.events[1:]
    assert ours.names()[0] == theirs.names()[0] == "on_init_end"
    assert (bridge.state.global_step, bridge.state.epoch) == (6, 2.0)
    for name in ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps"):
        assert getattr(bridge.state, name) == getattr(hf.state, name), name
    theirs_logged = [{*entry} - {"total_flos", "grad_norm"} for entry in hf.state.log_history]
    ours_logged = [{*entry} - {"train_loss"} for entry in bridge.state.log_history]
    assert len(theirs_logged) == len(ours_logged)
    saved = sorted(name for name in os.listdir(tmp_path) if name.endswith(".ckpt"))
    assert saved == (["checkpoint-4.ckpt", "checkpoint-6.ckpt"] if kind == "steps" else ["checkpoint-6.ckpt"])
    assert trainer.global_step == 6


def test_each_event_fires_in_the_hook_that_the_table_names(tmp_path: Path) -> None:
    hooks = Hooks()

    class Listener(TrainerCallback):
        pass

    for event in EVENTS:

        def fired(self, *args, name=event.name, **kwargs):
            hooks.seen.setdefault(name, hooks.last)

        setattr(Listener, event.name, fired)
    bridge = to_lightning([DefaultFlowCallback, Listener], args=arguments(tmp_path, **FLOW["epochs"]))
    trainer = fit(hooks, bridge, max_epochs=1, accumulate_grad_batches=2)
    trainer.test(Module(), loader(4), verbose=False)
    table = {event.name: event.callback for event in EVENTS if event.callback}
    assert {**hooks.seen, "on_log": table["on_log"]} == table
    assert {event.name for event in EVENTS} - set(table) == {"on_push_begin"}


class Asks(TrainerCallback):
    """Sets flags of control in an event, from an update step on, and writes down what happens."""

    def __init__(self, event: str, step: int, *flags: str) -> None:
        self.seen: list[tuple[str, int]] = []

        def asks(args, state, control, **kwargs):
            self.seen.append((event, state.global_step))
            if state.global_step == step:
                for flag in flags:
                    setattr(control, flag, True)

        setattr(self, event, asks)
        for name in {"on_epoch_end", "on_evaluate", "on_save", "on_log", "on_train_end"} - {event}:
            setattr(self, name, self.noting(name))

    def noting(self, name: str) -> Any:
        return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))


@pytest.mark.parametrize(
    "event", ["on_step_end", "on_optimizer_step", "on_pre_optimizer_step", "on_step_begin"]
)
def test_training_stops_where_a_callback_says_so(event: str) -> None:
    step = 2 if event == "on_step_end" else 1
    asks = Asks(event, step, "should_training_stop")
    trainer = fit(to_lightning(asks), max_epochs=2)
    assert trainer.global_step == 2
    ends = [each for each in asks.seen if each[0] not in (event, "on_log")]
    assert ends == [("on_epoch_end", 2), ("on_train_end", 2)]


def test_lightnings_minimum_of_epochs_is_met_first() -> None:
    trainer = fit(to_lightning(Asks("on_step_end", 2, "should_training_stop")), max_epochs=5, min_epochs=2)
    assert (trainer.global_step, trainer.current_epoch) == (12, 2)


def test_an_epoch_ends_early_and_the_next_one_begins() -> None:
    class Scheduled(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    asks = Asks("on_step_end", 2, "should_epoch_stop")
    bridge = to_lightning(asks)
    trainer = fit(bridge, module=Scheduled(), max_epochs=2)
    ends = [each for each in asks.seen if each[0] in ("on_epoch_end", "on_evaluate")]
    assert ends == [("on_epoch_end", 2), ("on_evaluate", 8), ("on_epoch_end", 8)]
    assert (trainer.global_step, trainer.current_epoch, bridge.state.epoch) == (8, 2, 2.0)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_an_evaluation_at_any_step_leaves_training_as_it_was(tmp_path: Path) -> None:
    modes: list[bool] = []

    class Watched(Module):
        def training_step(self, batch, batch_idx):
            modes.append(self.net.dropout.training)
            assert self.trainer.training
            return super().training_step(batch, batch_idx)

    asks = Asks("on_step_end", 2, "should_evaluate", "should_save", "should_log")
    torch.manual_seed(0)
    watched, plain = Watched(), Module()
    # An evaluation draws a seed for its dataloader: no dropout shall see that.
    watched.net.dropout.p = plain.net.dropout.p = 0.0
    plain.load_state_dict(watched.state_dict())
    bridge = to_lightning(asks, args=arguments(tmp_path))
    trainer = fit(bridge, module=watched, max_epochs=1)
    without = fit(module=plain, max_epochs=1)
    happened = [each for each in asks.seen if each[0] != "on_step_end"]
    assert happened == [
        ("on_log", 2),
        ("on_log", 2),
        ("on_evaluate", 2),
        ("on_save", 2),
        ("on_log", 6),
        ("on_evaluate", 6),
        ("on_epoch_end", 6),
        ("on_log", 6),
        ("on_train_end", 6),
    ]
    assert modes == [True] * 6
    weights = [parameter.tolist() for parameter in watched.parameters()]
    assert weights == [parameter.tolist() for parameter in plain.parameters()]
    assert trainer.callback_metrics.keys() == without.callback_metrics.keys()
    assert (tmp_path / "checkpoint-2.ckpt").is_file()


def test_what_both_ask_for_at_one_moment_happens_once() -> None:
    at_step = Asks("on_step_end", 6, "should_evaluate")
    at_end = Asks("on_epoch_end", 6, "should_evaluate")
    recorder = Recorder()
    fit(to_lightning([at_step, at_end, recorder]), max_epochs=1)
    assert recorder.names().count("on_evaluate") == 2
    recorder = Recorder()
    fit(to_lightning([at_end, recorder]), max_epochs=1)
    assert recorder.names().count("on_evaluate") == 1


LOSSES = [5.0, 4.0, 4.5, 4.25, 3.0, 3.5, 3.25, 3.75, 2.0, 1.0]
"""What evaluations find; a patience of three ends with the eighth."""


class Scripted(Module):
    """Finds `LOSSES` at its validations inside of fit."""

    def __init__(self, found: int = 0) -> None:
        super().__init__()
        self.found = found

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("val_loss", LOSSES[self.found])
            self.found += 1


class ScriptedTrainer(transformers.Trainer):
    found = 0

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": LOSSES[self.found]}
        self.found += 1
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


EVERY_STEP = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "gradient_accumulation_steps": 1,
}
OF_BEST = ("global_step", "best_metric", "best_global_step", "epoch")


def test_early_stopping_stops_where_hfs_trainer_would(tmp_path: Path) -> None:
    args = arguments(tmp_path, **EVERY_STEP, save_total_limit=2)
    theirs, ours = EarlyStoppingCallback(3), EarlyStoppingCallback(3)
    hf = ScriptedTrainer(Regression(), args, train_dataset=rows(), eval_dataset=rows(5), callbacks=[theirs])
    hf.train()
    bridge, module = to_lightning([DefaultFlowCallback, ours], args=args), Scripted()
    trainer = fit(bridge, module=module, max_epochs=2)
    assert trainer.global_step == hf.state.global_step == 8
    assert [getattr(bridge.state, name) for name in OF_BEST] == [getattr(hf.state, name) for name in OF_BEST]
    assert ours.early_stopping_patience_counter == theirs.early_stopping_patience_counter == 3
    kept = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert kept == ["checkpoint-5.ckpt", "checkpoint-8.ckpt"]
    assert bridge.state.best_model_checkpoint == str(tmp_path / kept[0])
    best = torch.load(tmp_path / kept[0], weights_only=False)["state_dict"]
    assert all(torch.equal(best[name], value) for name, value in module.state_dict().items())


def test_early_stopping_needs_no_arguments_but_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    monkeypatch.setitem(os.environ, "RANK", "0")
    bridge = to_lightning(EarlyStoppingCallback(3), args={"metric_for_best_model": "f1"})
    monkeypatch.delitem(os.environ, "RANK")
    assert bridge.args.eval_strategy == "epoch"
    with pytest.raises(KeyError, match=r"eval_f1.*eval_loss"):
        fit(bridge, module=Scripted(), max_epochs=9)
    # By the name that the module has logged, and by HF's.
    for name in ("val_loss", "loss"):
        bridge = to_lightning(EarlyStoppingCallback(3), args={"metric_for_best_model": name})
        trainer = fit(bridge, module=Scripted(), max_epochs=9)
        assert (trainer.current_epoch, bridge.state.best_metric) == (8, 3.0)
    assert dict(os.environ) == environment
    assert list(tmp_path.iterdir()) == []
    assert bridge.args.output_dir == str(tmp_path)
    assert (bridge.args.device, bridge.args.world_size) == (torch.device("cpu"), 1)


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning"
)
@pytest.mark.parametrize("ends", ["by_step", "by_epoch"])
def test_a_resumed_run_goes_on_with_counters_and_patience(tmp_path: Path, ends: str) -> None:
    step = {"by_step": 4, "by_epoch": 6}[ends]
    args = arguments(tmp_path, **EVERY_STEP)
    whole, rest = Recorder(), Recorder()
    stopping = EarlyStoppingCallback(3)
    fit(to_lightning([DefaultFlowCallback, whole, stopping], args=args), module=Scripted(), max_epochs=2)
    stopping = EarlyStoppingCallback(3)
    bridge = to_lightning([DefaultFlowCallback, rest, stopping], args=args)
    fit(bridge, module=Scripted(step), max_epochs=2, ckpt_path=tmp_path / f"checkpoint-{step}.ckpt")
    assert stopping.early_stopping_patience_counter == 3
    # The file of an epoch's last step was written before the epoch's end.
    begun = {"by_step": "on_step_begin", "by_epoch": "on_epoch_end"}[ends]
    index = whole.events.index(next(each for each in whole.events if each[:2] == (begun, step)))
    assert [each[:4] for each in rest.events[2:]] == [each[:4] for each in whole.events[index:]]
    evaluated = [entry["eval_loss"] for entry in bridge.state.log_history if "eval_loss" in entry]
    assert evaluated == LOSSES[:8]


def test_a_new_best_asks_for_a_checkpoint(tmp_path: Path) -> None:
    options = {**EVERY_STEP, "save_strategy": "best", "load_best_model_at_end": False, "max_steps": 6}
    args = arguments(tmp_path, **options)
    fit(to_lightning([DefaultFlowCallback], args=args), module=Scripted(), max_epochs=1)
    steps = {int(re.search(r"\d+", path.name)[0]) for path in tmp_path.glob("*.ckpt")}
    assert steps == {1, 2, 5}


def test_an_error_stops_training_and_nothing_stays(tmp_path: Path) -> None:
    class Raises(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            self.optimizer = optimizer
            if state.global_step == 1:
                raise ValueError(["as it is"])

    raises, module = Raises(), Module()
    bridge = to_lightning(raises)
    trainer = trainer_with(bridge, max_epochs=1)
    with pytest.raises(ValueError, match="as it is"):
        trainer.fit(module, loader(), loader(4))
    assert not {"_should_check_val_fx", "on_iteration_done"} & set(vars(trainer.fit_loop.epoch_loop))
    assert not raises.optimizer._optimizer_step_post_hooks


def test_one_callback_serves_several_trainers_and_all_their_loops() -> None:
    recorder = Recorder()
    bridge = to_lightning(recorder, processing_class="tokenizer")
    for _ in range(2):
        recorder.events.clear()
        trainer = fit(bridge, max_epochs=1)
        assert recorder.names()[:2] == ["on_init_end", "on_train_begin"]
        assert (bridge.state.global_step, bridge.state.max_steps) == (6, 6)
        assert recorder.names().count("on_prediction_step") == 3
    given = recorder.given["on_step_end"]
    assert given["processing_class"] == given["tokenizer"] == "tokenizer"
    assert given["lr_scheduler"].optimizer is given["optimizer"]
    assert isinstance(given["model"], Module)
    assert len(given["train_dataloader"]) == 6
    assert len(recorder.given["on_evaluate"]["eval_dataloader"]) == 3
    recorder.events.clear()
    metrics = trainer.validate(Module(), loader(4), verbose=False)[0]
    assert recorder.names() == ["on_prediction_step"] * 2 + ["on_log", "on_evaluate"]
    loss = metrics["val_loss"]
    assert recorder.given["on_evaluate"]["metrics"] == {**metrics, "eval_loss": loss, "eval_val_loss": loss}
    recorder.events.clear()
    trainer.test(Module(), loader(4), verbose=False)
    assert recorder.names() == ["on_prediction_step"] * 2 + ["on_predict"]
    assert "test_val_loss" in recorder.given["on_predict"]["metrics"]
    trainer.predict(Module(), loader(4))
    assert recorder.given["on_predict"]["metrics"] == {}


def test_manual_optimization_with_two_optimizers() -> None:
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                if batch_idx % 2:
                    self.manual_backward(self.net(**batch)["loss"])
                    optimizer.step()
                    optimizer.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.2)]

    recorder = Recorder()
    bridge = to_lightning(recorder)
    fit(bridge, module=Manual(), max_epochs=1)
    step = ["on_step_begin", "on_substep_end"]
    step += ["on_pre_optimizer_step", "on_optimizer_step"] * 2 + ["on_step_end"]
    assert recorder.names()[3:-8] == step * 3
    assert bridge.state.global_step == 3


def test_data_without_a_length() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows())

    recorder = Recorder()
    bridge = to_lightning([DefaultFlowCallback, recorder], args={"save_strategy": "no"})
    trainer = trainer_with(bridge, max_steps=8, max_epochs=-1, limit_val_batches=0)
    trainer.fit(Module(), DataLoader(Stream(), batch_size=2), loader(4))
    assert (bridge.state.max_steps, bridge.state.global_step) == (8, 8)
    assert bridge.state.epoch == 1.25


REFUSED = {
    "a callback of Lightning's": (lambda: to_lightning([pl.callbacks.Timer()]), "Timer.*as it is"),
    "a name that does not exist": (lambda: to_lightning([], args={"lr": 1.0}), "'lr'"),
    "a value that is no choice": (lambda: to_lightning([], args={"eval_strategy": "often"}), "often"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ArgumentError, match=message):
        call()


def test_an_evaluation_without_data_is_refused(tmp_path: Path) -> None:
    bridge = to_lightning(DefaultFlowCallback, args=arguments(tmp_path, eval_strategy="epoch"))
    with pytest.raises(ArgumentError, match=r"`eval_strategy='epoch'`.*validation dataloaders"):
        fit(bridge, limit_val_batches=0, max_epochs=1)
    asks = to_lightning(Asks("on_step_end", 2, "should_evaluate"))
    with pytest.raises(ArgumentError, match=r"`control.should_evaluate=True`.*validation dataloaders"):
        fit(asks, limit_val_batches=0, max_epochs=1)
    with pytest.warns(UserWarning, match="`eval_strategy='no'`"):
        fit(to_lightning(DefaultFlowCallback, args={"save_strategy": "no"}), max_epochs=1)


def test_the_other_distribution_is_told_what_to_import() -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Theirs(other.LightningModule):
        training_step = Module.training_step

        def configure_optimizers(self):
            return None

    trainer = other.Trainer(callbacks=[to_lightning(Recorder())], logger=False, max_epochs=1)
    with pytest.raises(ArgumentError, match=r"import lightning\.pytorch as pl"):
        trainer.fit(Theirs(), loader())


def test_the_page_of_callbacks_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    told = {row[0]: row[1:] for row in rows if row and row[0].startswith("on_")}
    for event in EVENTS:
        hooks = ", ".join(f"`{hook}`" for hook in event.hooks).strip("`")
        assert told[event.name] == [event.when, event.callback, event.elsewhere, hooks], event.name
