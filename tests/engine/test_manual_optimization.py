"""A LightningModule that optimizes manually: trained as by `lightning.Trainer`, under HF's control."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import nn

import compat
from compat.engine.manual_optimization import OptimizersContainer, SchedulersContainer
from compat.errors import ArgumentError
from tests.gan import BATCHES, GAN, Batch, Data, made, same
from tests.small import arguments, rows

EPOCHS = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"}


class Accumulates(GAN):
    """One optimizer without a scheduler, stepped on every fourth batch, whose closure runs the backward."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        optimizer = self.optimizers()
        if (batch_idx + 1) % 4:
            self.manual_backward(self.judge(batch[0], is_real=True) / 4)
            return None

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.judge(batch[0], is_real=True)
            self.manual_backward(loss)
            return loss

        return optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        self.discriminator[2].p = 0.0
        return torch.optim.LBFGS(self.discriminator.parameters(), lr=0.1, max_iter=3)


class Silent(GAN):
    """Returns no loss."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)


def ours(folder: Path, kind: type[GAN] = GAN, **options: Any) -> compat.Trainer:
    callbacks, data = options.pop("callbacks", None), Data(shuffle=options.pop("shuffle", False))
    args = arguments(folder, **{**EPOCHS, **options})
    return compat.Trainer(made(kind), args, train_dataset=data, callbacks=callbacks)


def trained(trainer: compat.Trainer, checkpoint: Any = None) -> compat.Trainer:
    torch.manual_seed(1)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def plain(kind: type[GAN] = GAN, **options: Any) -> pl.Trainer:
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        **{**dict.fromkeys(silent, False), "max_epochs": 2, **options},
    )
    model = made(kind)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, and torch's of Lightning
        trainer.fit(model, datamodule=Data())
    return trainer


def logged(trainer: compat.Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("kind", [GAN, Accumulates, Silent])
def test_it_trains_to_the_bit_as_under_lightning(tmp_path: Path, kind: type[GAN]) -> None:
    theirs = plain(kind)
    trainer = trained(ours(tmp_path, kind, save_strategy="epoch"))
    assert same(trainer.model, theirs.lightning_module)
    assert trainer.model.calls == theirs.lightning_module.calls
    assert trainer.lightning.global_step == theirs.global_step
    assert trainer.state.global_step == 2 * BATCHES
    assert logged(trainer, "eval_loss")[-1] == theirs.callback_metrics["val_loss"]


def test_bf16_covers_the_whole_step(tmp_path: Path) -> None:
    theirs = plain(precision="bf16-mixed")
    trainer = trained(ours(tmp_path, bf16=True))
    assert same(trainer.model, theirs.lightning_module)
    assert not same(trainer.model, plain().lightning_module)
    assert logged(trainer, "eval_loss")[-1] == theirs.callback_metrics["val_loss"]


def test_hf_logs_what_the_module_returns(tmp_path: Path) -> None:
    losses: list[float] = []

    class Noted(GAN):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            output = super().training_step(batch, batch_idx)
            losses.append(output["loss"].item())
            return output if batch_idx % 2 else None

    trainer = trained(ours(tmp_path, Noted, logging_steps=2))
    # transformers 4 rounds to four digits.
    assert logged(trainer, "loss") == pytest.approx(losses[1::2], abs=1e-4)
    assert logged(trainer, "train_loss") == [pytest.approx(sum(losses[1::2]) / BATCHES)]
    assert logged(trainer, "learning_rate") == pytest.approx(
        [0.02 * 0.9 ** (2 * n + 1) for n in range(BATCHES)]
    )
    assert not logged(trainer, "grad_norm")
    assert "fake" in trainer.lightning.callback_metrics


def test_no_loss_is_logged_where_none_is_returned(tmp_path: Path) -> None:
    trainer = trained(ours(tmp_path, Silent))
    assert not logged(trainer, "loss")
    assert not logged(trainer, "train_loss")
    assert len(logged(trainer, "learning_rate")) == 2 * BATCHES


@pytest.mark.parametrize("step", [4, 6, 9])
def test_resumed_equals_uninterrupted(tmp_path: Path, step: int) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    options["shuffle"] = True
    whole = trained(ours(tmp_path / "whole", **options))
    again = ours(tmp_path / "again", **options)
    trained(again, str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert same(whole.model, again.model)
    assert again.lightning.global_step == whole.lightning.global_step == 4 * BATCHES
    times = {"runtime", "per_second"}
    entries = [
        [{k: v for k, v in one.items() if not k.endswith(tuple(times))} for one in it.state.log_history[:-1]]
        for it in (whole, again)
    ]
    assert entries[0] == entries[1]


def test_resumed_from_a_file_of_lightnings(tmp_path: Path) -> None:
    class Saves(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                whole.lightning.save_checkpoint(tmp_path / "x.ckpt")

    whole = ours(tmp_path / "whole", callbacks=[Saves()])
    trained(whole)
    again = trained(ours(tmp_path / "again"), str(tmp_path / "x.ckpt"))
    assert same(whole.model, again.model)
    assert again.lightning.global_step == 4 * BATCHES


def test_it_stops_early(tmp_path: Path) -> None:
    options = {"num_train_epochs": 9, "save_strategy": "epoch", "load_best_model_at_end": True}
    stopping = transformers.EarlyStoppingCallback(1, early_stopping_threshold=1e6)
    trainer = trained(ours(tmp_path, callbacks=[stopping], **options))
    assert trainer.state.global_step == 2 * BATCHES
    _, _, step = trainer.state.best_model_checkpoint.rpartition("-")
    assert same(trainer.model, plain(max_epochs=int(step) // BATCHES).lightning_module)


def test_hfs_step_events_fire_for_each_optimizer(tmp_path: Path) -> None:
    events: list[str] = []

    class Notes(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            events.append("pre")

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            events.append("step")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            events.append("end")

    trained(ours(tmp_path, max_steps=1, callbacks=[Notes()]))
    assert events == ["pre", "step", "pre", "step", "end"]


def test_arguments_without_effect_are_named_once(tmp_path: Path) -> None:
    options = {"learning_rate": 3.0, "gradient_accumulation_steps": 3, "max_grad_norm": 0.1}
    trainer = ours(tmp_path, **options)
    with mock.patch("compat.trainer.components.user_module.logger.warning") as warned:
        trained(trainer)
    (text,) = (call.args[0] for call in warned.call_args_list)
    for name, value in {**options, "per_device_train_batch_size": 2}.items():
        assert f"`{name}={value}`" in text
    assert text.endswith("without effect, for `GAN` optimizes manually, with data of its own. Set it there.")
    assert trainer.state.global_step == 2 * BATCHES
    assert same(trainer.model, trained(ours(tmp_path)).model)
    assert (trainer.args.gradient_accumulation_steps, trainer.args.max_grad_norm) == (3, 0.1)


def test_a_second_run_goes_on_with_its_optimizers(tmp_path: Path) -> None:
    trainer = ours(tmp_path)
    trained(trainer)
    container = trainer.optimizer.optimizer
    trained(trainer)
    assert trainer.optimizer.optimizer is container
    assert container.steps == 8 * BATCHES


class WithoutOptimizers(GAN):
    configure_optimizers = pl.LightningModule.configure_optimizers


class Moves(GAN):
    def transfer_batch_to_device(self, *_: Any) -> Any: ...


REFUSED: dict[str, tuple[type[GAN], dict[str, Any], dict[str, Any], str]] = {
    "no optimizers": (
        WithoutOptimizers,
        {},
        {},
        "`model=WithoutOptimizers`: it optimizes manually and has no",
    ),
    "transfers": (Moves, {}, {}, "`model=Moves`: it overrides `transfer_batch_to_device`"),
    "fp16": (
        GAN,
        {"fp16": True},
        {},
        "`fp16=True`: `GAN` optimizes manually, which works on one device",
    ),
    "fsdp": (GAN, {"fsdp": "full_shard"}, {}, r"`fsdp=.*`: `GAN` optimizes manually"),
    "optimizer": (
        GAN,
        {},
        {"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)},
        r"`optimizers=\(SGD, None\)`: `GAN` optimizes manually, with its own optimizers",
    ),
    "class": (
        GAN,
        {},
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})},
        r"`optimizer_cls_and_kwargs=\(class SGD, …\)`: `GAN` optimizes manually",
    ),
}
"""What is refused before training → the module, arguments, parts and the error."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, what: str) -> None:
    kind, options, parts, text = REFUSED[what]
    with pytest.raises(ArgumentError, match=text):
        compat.Trainer(kind(), arguments(tmp_path, **options), train_dataset=Data(), **parts)


def test_arguments_that_were_changed_are_refused_before_training(tmp_path: Path) -> None:
    trainer = ours(tmp_path)
    with (
        mock.patch("compat.trainer.components.user_module.strategy_of", return_value="model_parallel"),
        pytest.raises(ArgumentError, match="`strategy='model_parallel'`: `GAN` optimizes manually"),
    ):
        trainer.train()
    trainer.args.fp16 = True
    with pytest.raises(ArgumentError, match="`fp16=True`: `GAN` optimizes manually"):
        trainer.train()


def test_it_must_have_an_optimizer(tmp_path: Path) -> None:
    class Empty(GAN):
        def configure_optimizers(self) -> None: ...

    with pytest.raises(ArgumentError, match="`model=Empty`: `configure_optimizers` returns no optimizer"):
        ours(tmp_path, Empty).train()


def test_a_loss_of_the_trainers_own_is_refused(tmp_path: Path) -> None:
    class Adds(compat.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss + model.generator[0].weight.sum()

    with pytest.raises(ArgumentError, match="`Adds`: it adds a loss to that of `GAN`"):
        Adds(GAN(), arguments(tmp_path, **EPOCHS), train_dataset=Data()).train()


def test_an_optimizer_of_the_trainers_own_is_refused(tmp_path: Path) -> None:
    class Creates(compat.Trainer):
        def create_optimizer(self, *_: Any) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    with pytest.raises(ArgumentError, match=r"`Creates\.create_optimizer`: `GAN` optimizes manually"):
        Creates(GAN(), arguments(tmp_path, **EPOCHS), train_dataset=Data()).train()


def test_states_of_other_optimizers_are_refused(tmp_path: Path) -> None:
    class Single(GAN):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Automatic(Single):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            return self.judge(batch[0], is_real=True)

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    for kind in (GAN, Automatic):
        trained(ours(tmp_path / kind.__name__, kind, **options))
    of_gan, of_automatic = (str(tmp_path / name / "checkpoint-1") for name in ("GAN", "Automatic"))
    told = r"`model=Single`: .*GAN/checkpoint-1 holds .* 2 optimizers, and `configure_optimizers` returns 1"
    with pytest.raises(ArgumentError, match=told):
        trained(ours(tmp_path / "a", Single), of_gan)
    with pytest.raises(ArgumentError, match=r"`model=Automatic`: .*GAN/checkpoint-1 holds"):
        trained(ours(tmp_path / "b", Automatic), of_gan)
    with pytest.raises(ArgumentError, match=r"`model=GAN`: .*Automatic/checkpoint-1 holds"):
        trained(ours(tmp_path / "c"), of_automatic)
    state = torch.load(Path(of_gan, "optimizer.pt"), weights_only=True)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        # As HF's own Trainer would load it.
        torch.optim.AdamW(GAN().parameters()).load_state_dict(state)


def test_containers_stand_for_all_and_do_not_step() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizers = [
        torch.optim.SGD([weight], lr=rate) for weight, rate in zip(weights, (0.1, 0.2), strict=True)
    ]
    container = OptimizersContainer(optimizers)
    scheduler = SchedulersContainer([], container)
    assert scheduler.get_last_lr() == [0.1, 0.2]
    for weight in weights:
        weight.grad = torch.ones(1)
    container.zero_grad()
    assert [weight.grad for weight in weights] == [None, None]
    for part in (container, scheduler):
        with pytest.raises(RuntimeError, match="optimizes manually"):
            part.step()


def test_rows_of_hfs_are_taken(tmp_path: Path) -> None:
    class OnRows(GAN):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            return super().training_step([batch["x"]], batch_idx)

    trainer = compat.Trainer(made(OnRows), arguments(tmp_path), train_dataset=rows())
    assert trained(trainer).state.global_step == 3
