"""`HFModule` among Lightning's own callbacks, finders, loaders and files."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    default_data_collator,
)

import compat
from compat.callbacks.misplaced import Refusal
from compat.checkpoint.convert import convert
from compat.checkpoint.safe_unpickler import read_arguments
from compat.engine.optimizer_state import held_state
from compat.errors import ArgumentError
from tests.parity.parts import data, models
from tests.parity.parts.optimizers import InGroups, Layerwise, Moded
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*no `val_dataloader`",
    "ignore:.*callbacks used to create the checkpoint need to be provided",
)


def lightning(**flags: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{"accelerator": "cpu", "enable_model_summary": False, **quiet, **flags})


def weights(module: torch.nn.Module) -> list[Any]:
    return [parameter.tolist() for parameter in module.parameters()]


class Counting(torch.nn.Module):
    """Its loss is what HF hands it: how many items a window has, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, float]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.seen.append((len(x), float(kwargs["num_items_in_batch"])))
        return {"loss": self.weight * (labels != -100).sum() / kwargs["num_items_in_batch"]}


def counted(size: int = 7) -> list[dict[str, torch.Tensor]]:
    labels = [torch.tensor([1.0, -100 if index % 2 else 1.0]) for index in range(size)]
    return [{"x": torch.zeros(2), "labels": label} for label in labels]


def test_a_foreign_loader_is_read_in_windows(tmp_path: Path) -> None:
    module = compat.HFModule(Counting(), arguments(tmp_path, learning_rate=1e-9))
    gradients: list[float] = []

    class Noting(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            gradients.append(float(module.model.weight.grad))

    schedule = callbacks.GradientAccumulationScheduler({0: 3, 1: 2})
    trainer = lightning(max_epochs=2, callbacks=[Noting(), schedule], limit_train_batches=5)
    trainer.fit(module, DataLoader(counted(), batch_size=1))
    # Items by batch: 2, 1, 2, 1, 2. Windows of 3 and 2 in the first epoch, of 2, 2 and 1 in the second.
    assert [items for _, items in module.model.seen] == [5, 5, 5, 3, 3, 3, 3, 3, 3, 2]
    assert gradients == [1.0] * 5
    assert trainer.global_step == 5
    assert module.hf.lr_scheduler.state_dict()["_step_count"] == 6
    assert module.hf.lr_scheduler.get_last_lr() == [0, 0]


def test_a_loader_without_length_ends_in_a_short_window(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(counted())

    module = compat.HFModule(Counting(), arguments(tmp_path))
    trainer = lightning(max_steps=4, accumulate_grad_batches=4)
    trainer.fit(module, DataLoader(Stream(), batch_size=1))
    assert [items for _, items in module.model.seen] == [6, 6, 6, 6, 5, 5, 5] * 2


def test_windows_read_ahead_keep_their_size(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(counted())

    module = compat.HFModule(Counting(), arguments(tmp_path))
    trainer = lightning(
        max_epochs=2, max_steps=9, callbacks=[callbacks.GradientAccumulationScheduler({0: 2})]
    )
    with pytest.raises(
        ArgumentError, match="`accumulate_grad_batches=2`: data without a length is read ahead"
    ):
        trainer.fit(module, DataLoader(Stream(), batch_size=1))


@pytest.mark.filterwarnings("ignore:.*overfit but enabled")
def test_the_same_batches_are_overfitted(tmp_path: Path) -> None:
    module = compat.HFModule(Regression(), arguments(tmp_path))
    seen: list[Any] = []
    module.model.register_forward_pre_hook(
        lambda _, args, kw: seen.append(kw["x"].tolist()), with_kwargs=True
    )
    loader = DataLoader(rows(8), batch_size=2, shuffle=True)
    lightning(max_epochs=2, overfit_batches=2).fit(module, loader)
    assert seen[:2] == seen[2:] == [batch["x"].tolist() for batch in DataLoader(rows(4), batch_size=2)]


def test_what_the_trainer_does_otherwise_is_told(tmp_path: Path, caplog: Any) -> None:
    args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=3, max_grad_norm=0.5)
    lightning(max_steps=3).fit(compat.HFModule(Regression(), args), DataLoader(rows(4)))
    told = [record.getMessage() for record in caplog.records if "which holds" in record.getMessage()]
    assert len(told) == 2
    assert told[0].startswith(
        "`gradient_accumulation_steps=2`: the Lightning Trainer has accumulate_grad_batches=1"
    )
    assert "Give it gradient_clip_val=0.5" in told[1]


def test_what_cannot_be_honoured_is_refused_at_once(tmp_path: Path) -> None:
    args = arguments(tmp_path, auto_find_batch_size=True, optim="lomo")
    with pytest.raises(ArgumentError, match=r"`auto_find_batch_size=True`(.|\n)*`optim='lomo'`"):
        compat.HFModule(Regression(), args)

    class Stepping(compat.Trainer):
        def training_step(self, *args: Any) -> Any:
            return super().training_step(*args)

    module = compat.HFModule(Regression(), arguments(tmp_path), trainer_class=Stepping)
    with pytest.raises(ArgumentError, match="`trainer_class=Stepping`: it overrides `training_step`"):
        lightning(max_steps=1).fit(module, DataLoader(rows(4)))
    module = compat.HFModule(Regression(), arguments(tmp_path))
    with pytest.raises(ArgumentError, match="`max_epochs=-1, max_steps=-1`"):
        lightning(max_epochs=-1).fit(module, DataLoader(rows(4)))
    with pytest.raises(ArgumentError, match="there are 2, and an HFModule takes the batches of one"):
        lightning(max_steps=1).fit(module, {"a": DataLoader(rows(4)), "b": DataLoader(rows(4))})
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
    module = compat.HFModule(Regression(), arguments(tmp_path, **plateau))
    with pytest.raises(ArgumentError, match="`lr_scheduler_type='reduce_lr_on_plateau'`: it waits"):
        lightning(max_steps=1).fit(module, DataLoader(rows(4)))


def test_a_subclass_of_the_trainer_brings_its_loss(tmp_path: Path) -> None:
    class Doubling(compat.Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    module = compat.HFModule(Regression().eval(), arguments(tmp_path), trainer_class=Doubling)
    batch = next(iter(DataLoader(rows(4), batch_size=4)))
    torch.manual_seed(0)
    loss = module.training_step(batch, 0).detach()
    torch.manual_seed(0)
    assert float(loss) == 2 * float(module.model(**batch)["loss"].detach())
    assert module.model.modes == [True, True]
    assert set(batch) == {"x", "labels"}


# By steps, Lightning restores a run before it makes the loaders; by epochs, after that.
@pytest.mark.parametrize("length", [{"max_steps": 5}, {"max_epochs": 3}])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, step: int, length: Any) -> None:
    def fit(**options: Any) -> tuple[pl.Trainer, compat.HFModule]:
        torch.manual_seed(0)
        args = arguments(tmp_path, max_steps=5)
        module = compat.HFModule(models.noisy_regression(), args)
        trainer = lightning(**length, accumulate_grad_batches=2, **options.pop("flags", {}))
        trainer.fit(module, datamodule=compat.HFDataModule(args, data.noisy()), weights_only=True, **options)
        return trainer, module

    saving = callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    # 26 rows by 2 make 13 batches; four of them end the epoch by force.
    flags = {"limit_train_batches": 4}
    _, whole = fit(flags={**flags, "enable_checkpointing": True, "callbacks": [saving]})
    _, resumed = fit(flags=flags, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert weights(resumed) == weights(whole)


class Scheduleless(Moded):
    """Asks for its mode ahead of the training step."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.param_groups[0]["shown"] = 0.5

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["shown"] == 1.0, "not in train mode"
        return super().step(closure)


UNUSUAL: dict[str, Any] = {
    "with modes": lambda model: Scheduleless(model.parameters(), lr=0.05),
    "layer by layer": Layerwise,
    "states in groups": lambda model: InGroups(model.parameters(), lr=0.05),
}
"""Optimizers that cannot be stepped, or saved, as others are."""


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_optimizers_train_and_go_on(tmp_path: Path, kind: str) -> None:
    def parts() -> dict[str, Any]:
        torch.manual_seed(0)
        model = Regression()
        return {"model": model, "optimizers": (UNUSUAL[kind](model), None)}

    def fit(**options: Any) -> compat.HFModule:
        module = compat.HFModule(args=args, **parts())
        trainer = lightning(max_steps=6, gradient_clip_val=1.0, **options.pop("flags", {}))
        datamodule = compat.HFDataModule(args, rows(), rows(5))
        trainer.fit(module, datamodule=datamodule, weights_only=True, **options)
        return module

    args = arguments(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2)
    theirs = compat.Trainer(args=args, train_dataset=rows(), eval_dataset=rows(5), **parts())
    theirs.train()
    saving = callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    flags = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    whole = fit(flags={**flags, "enable_checkpointing": True, "callbacks": [saving]})
    assert weights(whole) == weights(theirs.model)
    assert weights(fit(flags=flags, ckpt_path=tmp_path / "step=3.ckpt")) == weights(whole)
    convert(tmp_path / "step=3.ckpt", tmp_path / "again.ckpt", prefix="model.")
    held = []
    for file in ("step=3.ckpt", "again.ckpt"):
        whole.on_load_checkpoint(torch.load(tmp_path / file, weights_only=True))
        held.append(str(whole._held))
    assert held[0] == held[1]
    assert (held[0] == "None") == (kind == "with modes")


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_their_optimizers_hold_comes_along_from_a_trainers_files(tmp_path: Path, kind: str) -> None:
    def parts() -> dict[str, Any]:
        torch.manual_seed(0)
        model = Regression()
        return {"model": model, "optimizers": (UNUSUAL[kind](model), None)}

    class Writing(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                theirs.lightning.save_checkpoint(tmp_path / "live.ckpt")
                held.update(copy.deepcopy(held_state(theirs.optimizer, theirs.model)))

    held: dict[str, Any] = {}
    args = arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=3)
    theirs = compat.Trainer(args=args, train_dataset=rows(), callbacks=[Writing], **parts())
    theirs.train()
    assert bool(held) == (kind != "with modes")
    files = [tmp_path / "live.ckpt", tmp_path / "converted.ckpt"]
    convert(tmp_path / "checkpoint-3", files[-1], prefix="model.", quiet=True)
    for file in files:
        module = compat.HFModule(args=args, **parts())
        module.on_load_checkpoint(torch.load(file, weights_only=True))
        assert str(module._held or {}) == str(held)
        resumed = compat.Trainer(args=args, train_dataset=rows(), **parts())
        resumed.train(resume_from_checkpoint=str(file))
        assert weights(resumed.model) == weights(theirs.model)


def test_weights_to_evaluate_are_shown_after_training(tmp_path: Path) -> None:
    model = Regression()
    args = arguments(tmp_path)
    optimizer = Scheduleless(model.parameters(), lr=0.05)
    module = compat.HFModule(model, args, optimizers=(optimizer, None))
    trainer = lightning(max_steps=3)
    data = compat.HFDataModule(args, rows(), rows(5))
    trainer.fit(module, datamodule=data)
    trained = weights(module)
    trainer.validate(module, datamodule=data, verbose=False)
    assert optimizer.param_groups[0]["shown"] == 0.5
    halved = [(torch.tensor(value) / 2).tolist() for value in trained]
    assert weights(module) == halved


LISTENERS = {
    "averaging": lambda: {"callbacks": [callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1)]},
    "ema": lambda: {"callbacks": [callbacks.EMAWeightAveraging()]},
    "simple": lambda: {"profiler": "simple"},
    "advanced": lambda: {"profiler": "advanced"},
    "pytorch": lambda: {"profiler": "pytorch"},
    "barebones": lambda: {"barebones": True},
}


@pytest.mark.filterwarnings(
    "ignore:.*Swapping scheduler",
    "ignore:.*`isinstance.treespec",
    "ignore:.*not enough steps to properly record",
    "ignore:.*SWA is currently only supported every epoch",
)
@pytest.mark.parametrize("listener", LISTENERS)
def test_lightnings_own_parts_work_beside_it(tmp_path: Path, listener: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    args = arguments(tmp_path)
    flags = LISTENERS[listener]()
    if listener == "barebones":
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, barebones=True)
    else:
        trainer = lightning(max_epochs=2, default_root_dir=tmp_path, **flags)
    module = compat.HFModule(Regression(), args)
    before = weights(module)
    trainer.fit(module, datamodule=compat.HFDataModule(args, rows(4), rows(3)))
    assert trainer.global_step == 4
    assert weights(module) != before


def test_the_finders_find(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=1)
    module, loaders = compat.HFModule(Regression(), args), compat.HFDataModule(args, rows(256))
    # It asks for them, whether or not there are any.
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
    tuner = Tuner(lightning(max_epochs=1, default_root_dir=tmp_path))
    tuner.scale_batch_size(module, datamodule=loaders, steps_per_trial=1, max_trials=3)
    assert args.per_device_train_batch_size == 8
    found = tuner.lr_find(module, datamodule=loaders, num_training=20, max_lr=0.5)
    assert module.learning_rate == args.learning_rate == found.suggestion()
    callback = callbacks.BatchSizeFinder(steps_per_trial=1, max_trials=1, init_val=4)
    trainer = lightning(max_steps=2, default_root_dir=tmp_path, callbacks=[callback])
    trainer.fit(module, datamodule=loaders)
    assert args.per_device_train_batch_size == 4
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == found.suggestion()


def test_a_backbone_is_frozen_at_first(tmp_path: Path) -> None:
    module = compat.HFModule(models.bert(), arguments(tmp_path, learning_rate=0.01))
    before = copy.deepcopy(module.model)
    callback = callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
    trainer = lightning(max_epochs=2, callbacks=[callback])
    loader = DataLoader(data.sentences(4), batch_size=2, collate_fn=default_data_collator)
    frozen: list[bool] = []
    callback.on_train_epoch_end = lambda *_: frozen.append(weights(module.backbone) == weights(before.bert))
    trainer.fit(module, loader)
    assert frozen == [True, False]
    assert weights(module.model.classifier) != weights(before.classifier)


def test_it_writes_a_folder_that_loads(tmp_path: Path) -> None:
    module = compat.HFModule(models.bert(), arguments(tmp_path), processing_class=data.tokenizer())
    lightning(max_steps=1).fit(
        module, DataLoader(data.sentences(4), batch_size=2, collate_fn=default_data_collator)
    )
    module.save_pretrained(str(tmp_path / "model"))
    loaded = compat.HFModule.from_pretrained(
        "AutoModelForSequenceClassification", str(tmp_path / "model"), arguments(tmp_path)
    )
    assert isinstance(loaded.model, BertForSequenceClassification)
    assert weights(loaded) == weights(module)
    assert (tmp_path / "model" / "tokenizer_config.json").is_file()
    saved = read_arguments(str(tmp_path / "model" / "training_args.bin"))
    assert saved["output_dir"] == str(tmp_path)
    assert saved["save_strategy"] == module.args.save_strategy


@pytest.mark.parametrize("one", [EarlyStoppingCallback(), PrinterCallback], ids=["instance", "class"])
def test_a_callback_of_hfs_is_refused_ahead_of_lightnings_hooks(tmp_path: Path, one: Any) -> None:
    trainer = lightning(max_steps=1, callbacks=[one])
    module = compat.HFModule(Regression(), arguments(tmp_path))
    name = one.__name__ if isinstance(one, type) else type(one).__name__
    expected = (
        f"`callbacks=[{name}]`: a callback of Hugging Face's, and Lightning's Trainer calls other hooks. "
        f"Give `callbacks=[compat.callbacks.to_lightning({name}(…))]`."
    )
    for _ in range(2):
        with pytest.raises(ArgumentError) as raised:
            trainer.fit(module, DataLoader(rows(4), batch_size=2))
        assert str(raised.value) == expected
        # Nothing of the refusal stays behind.
        assert trainer.callbacks.count(one) == 1
        assert not any(isinstance(each, Refusal) for each in trainer.callbacks)


class Own(compat.HFModule):
    def configure_callbacks(self) -> list[Any]:
        return [callbacks.Timer()]


class OwnOfHF(compat.HFModule):
    def configure_callbacks(self) -> Any:
        return EarlyStoppingCallback()


@pytest.mark.parametrize(
    ("kind", "of_trainer"), [(Own, [EarlyStoppingCallback()]), (OwnOfHF, [callbacks.Timer()])]
)
def test_so_it_is_where_a_subclass_gives_callbacks(
    tmp_path: Path, kind: type[compat.HFModule], of_trainer: list[Any]
) -> None:
    trainer = lightning(max_steps=1, callbacks=of_trainer)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"`callbacks=\[EarlyStoppingCallback\]`: a callback of"):
            trainer.fit(kind(Regression(), arguments(tmp_path)), DataLoader(rows(4), batch_size=2))


def test_callbacks_of_lightnings_that_a_subclass_gives_are_called(tmp_path: Path) -> None:
    trainer = lightning(max_steps=1)
    trainer.fit(Own(Regression(), arguments(tmp_path)), DataLoader(rows(4), batch_size=2))
    assert [type(each) for each in trainer.callbacks].count(callbacks.Timer) == 1
