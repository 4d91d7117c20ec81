from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
import transformers

import compat
from tests.small import Regression, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path


class Watcher(pl.Callback):
    """A Lightning callback that counts the hooks it is called at."""

    def __init__(self) -> None:
        self.hooks: list[str] = []


for _hook in (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_predict_batch_end",
    "on_train_epoch_end",
    "on_train_end",
):
    setattr(Watcher, _hook, lambda self, *args, _hook=_hook, **kwargs: self.hooks.append(_hook))


def observed(folder: Path, watcher: Watcher, **options: Any) -> compat.Trainer:
    ours = trainer(folder, **options)
    build = ours._fit.build

    def with_watcher() -> pl.Trainer:
        lightning = build()
        lightning.callbacks.append(watcher)
        return lightning

    ours._fit.build = with_watcher
    return ours


def test_a_run_that_is_watched_computes_what_an_unwatched_one_does(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 4}
    plain = trainer(tmp_path, **options)
    plain.train()
    watched = observed(tmp_path, Watcher(), **options)
    watched.train()
    assert losses(plain) == losses(watched)
    assert weights(plain) == weights(watched)


def test_lightning_hooks_fire_around_training(tmp_path: Path) -> None:
    watcher = Watcher()
    observed(tmp_path, watcher, max_steps=1, gradient_accumulation_steps=2).train()
    micro = ["on_train_batch_start", "on_before_backward", "on_after_backward"]
    assert watcher.hooks == [
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        *micro,
        "on_train_batch_end",
        *micro,
        "on_before_optimizer_step",
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_train_end",
    ]


def test_lightning_hooks_fire_around_evaluation_in_the_middle_of_training(tmp_path: Path) -> None:
    watcher = Watcher()
    observed(
        tmp_path, watcher, max_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=5
    ).train()
    evaluation = ["on_validation_start", "on_validation_batch_end", "on_validation_end"]
    assert [hook for hook in watcher.hooks if "validation" in hook] == evaluation * 2


def test_lightning_hooks_fire_outside_of_training(tmp_path: Path) -> None:
    watcher = Watcher()
    ours = observed(tmp_path, watcher, per_device_eval_batch_size=3)
    ours.evaluate()
    assert watcher.hooks.count("on_validation_batch_end") == 2
    ours.predict(rows(7))
    assert watcher.hooks.count("on_predict_batch_end") == 3


def test_lightning_can_stop_the_run(tmp_path: Path) -> None:
    class Stop(Watcher):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 2

    ours = observed(tmp_path, Stop(), max_steps=6)
    ours.train()
    assert ours.state.global_step == 2


@pytest.mark.parametrize("asked_at", ["on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end"])
def test_a_stop_is_honoured_after_the_micro_step(tmp_path: Path, asked_at: str) -> None:
    class Stop(transformers.TrainerCallback):
        pass

    def ask(self: Stop, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = True
        return control

    setattr(Stop, asked_at, ask)
    ours = trainer(tmp_path, callbacks=[Stop()])
    ours.train()
    assert ours.state.global_step == 1


def test_a_model_in_eval_mode_trains_with_dropout_on(tmp_path: Path) -> None:
    model = Regression().eval()
    trainer(tmp_path, model=model).train()
    assert model.modes == [True] * 3


def test_the_counters_of_lightning_follow(tmp_path: Path) -> None:
    ours = trainer(tmp_path, max_steps=4, gradient_accumulation_steps=2)
    ours.train()
    assert ours.lightning.global_step == ours.state.global_step == 4
    assert ours.lightning_module.model is ours.model


def test_the_counters_of_lightning_follow_a_resumed_run(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=4).train()
    again = trainer(tmp_path, max_steps=8)
    seen: list[tuple[int, int, int]] = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            lightning = again.lightning
            seen.append((lightning.global_step, lightning.current_epoch, lightning.fit_loop.batch_idx))

    again.add_callback(Look())
    again.train(resume_from_checkpoint=True)
    # Six batches make an epoch: the run goes on at the fifth.
    assert seen == [(5, 0, 4), (6, 0, 5), (7, 1, 0), (8, 1, 1)]


def test_an_evaluation_may_start_another(tmp_path: Path) -> None:
    inner: list[float] = []

    class Nest(transformers.TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not inner:
                inner.append(0.0)
                inner.append(ours.predict(rows(3)).metrics["test_loss"])

    ours = trainer(tmp_path, callbacks=[Nest()], per_device_eval_batch_size=2)
    alone = trainer(tmp_path, per_device_eval_batch_size=2)
    assert ours.evaluate()["eval_loss"] == alone.evaluate()["eval_loss"]
    assert inner[1] == alone.predict(rows(3)).metrics["test_loss"]


def test_gradients_can_be_taken_in_evaluation_where_prediction_step_allows_them(tmp_path: Path) -> None:
    class Gradients(compat.Trainer):
        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            x = inputs["x"].requires_grad_()
            (gradient,) = torch.autograd.grad(model(**inputs)["loss"], x)
            assert gradient.abs().sum() > 0
            return super().prediction_step(model, inputs, *args, **kwargs)

    assert trainer(tmp_path, Gradients).evaluate()["eval_loss"] > 0


def test_an_empty_train_dataset_ends_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    class Empty(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    transformers.utils.logging.enable_propagation()
    try:
        ours = trainer(tmp_path, train_dataset=Empty(), accelerator_config={"dispatch_batches": False})
        ours.train()
    finally:
        transformers.utils.logging.disable_propagation()
    assert ours.state.global_step == 0
    assert "not to be a single sample" in caplog.text


def test_an_epoch_shorter_than_the_steps_to_a_log_is_no_reason_to_warn(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(str(tmp_path))
    ours = trainer(
        tmp_path, train_dataset=rows(4), max_steps=6, logging_steps=5, lightning={"logger": logger}
    )
    ours.train()  # a warning would be an error
    assert [entry["step"] for entry in ours.state.log_history] == [5, 6]


def test_an_evaluation_leaves_the_loader_of_the_run_in_use(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            active = ours.accelerator.gradient_state.active_dataloader
            seen.append(active is ours.callback_handler.train_dataloader)

    ours = trainer(tmp_path, callbacks=[Look()], eval_strategy="steps", eval_steps=1)
    ours.train()
    assert seen == [True, True, True]
