from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import compat
from compat.errors import ArgumentError, CheckpointError
from tests.small import arguments, rows, trainer, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

OPTIONS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}


class Killed(transformers.TrainerCallback):
    def on_save(self, args: object, state: transformers.TrainerState, *_: object, **__: object) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def seeing() -> transformers.PreTrainedModel:
    """A model whose weights transformers 5 saves under the names of transformers 4."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    return transformers.ViTForImageClassification(config)


def run(folder: Path, *callbacks: transformers.TrainerCallback, **options: object) -> compat.Trainer:
    generator = torch.Generator().manual_seed(0)
    data = [
        {"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": index % 3} for index in range(8)
    ]
    return compat.Trainer(
        seeing(),
        arguments(folder, **OPTIONS, **options),
        train_dataset=data,
        eval_dataset=data,
        callbacks=list(callbacks),
    )


def test_weights_under_older_names_are_loaded(tmp_path: Path) -> None:
    """HF loads none of them, and trains on from the weights that the script has begun with."""
    whole = run(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Killed()).train()
    resumed = run(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_best_of_them_is_loaded(tmp_path: Path) -> None:
    best = run(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="runtime",
        greater_is_better=True,
    )
    kept: dict[int, dict[str, torch.Tensor]] = {}

    class Keeping(transformers.TrainerCallback):
        def on_save(self, args: object, state: transformers.TrainerState, *_: object, **__: object) -> None:
            kept[state.global_step] = {n: v.clone() for n, v in best.model.state_dict().items()}

    best.add_callback(Keeping())
    best.train()
    expected = kept[best.state.best_global_step]
    assert all(torch.equal(value, expected[name]) for name, value in best.model.state_dict().items())


class Micro(compat.Trainer):
    """Notes the size of each micro-batch."""

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        self.sizes = [*getattr(self, "sizes", []), len(inputs["labels"])]
        return super().training_step(model, inputs, *args, **kwargs)


SHAPES = [((1, 4), (4, 1)), ((4, 1), (1, 4)), ((2, 2), (4, 1)), ((2, 1), (4, 2))]


def shaped(folder: Path, shape: tuple[int, int], **options: Any) -> compat.Trainer:
    size, accumulation = shape
    return trainer(
        folder,
        Micro,
        train_dataset=rows(32),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **{"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, **options},
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    logger = transformers.utils.logging.get_logger("transformers.trainer")
    monkeypatch.setattr(logger, "warning", lambda text, *args: told.append(str(text)))
    return told


@pytest.mark.parametrize(("before", "now"), SHAPES)
def test_the_batch_size_of_the_arguments_holds(
    before: tuple[int, int], now: tuple[int, int], tmp_path: Path, log: list[str]
) -> None:
    """HF 4.53 goes by the checkpoint's, and so makes 64 steps of 4x1 resumed from 1x4 in place of 16."""
    shaped(tmp_path, before, max_steps=2).train()
    resumed = shaped(tmp_path, now)
    resumed.train(resume_from_checkpoint=True)
    size, accumulation = now
    total = 32 // (size * accumulation) * 2
    assert (resumed.state.global_step, resumed.state.max_steps) == (total, total)
    assert set(resumed.sizes) == {size}
    assert len(resumed.sizes) == (total - 2) * accumulation
    assert resumed._train_batch_size == size
    told = (
        f"`per_device_train_batch_size={size}` of the arguments holds, and not {before[0]} of the checkpoint"
    )
    assert f"`resume_from_checkpoint`: {told}." in log


def test_a_batch_size_that_was_found_holds(tmp_path: Path, log: list[str]) -> None:
    shaped(tmp_path, (2, 1), max_steps=2).train()
    resumed = shaped(tmp_path, (4, 1), auto_find_batch_size=True)
    resumed.train(resume_from_checkpoint=True)
    assert (set(resumed.sizes), resumed.state.max_steps) == ({2}, 32)
    told = "`per_device_train_batch_size=2` of the checkpoint holds, and not 4 of the arguments"
    assert f"`resume_from_checkpoint`: {told}." in log


def test_steps_between_events_are_the_checkpoints(tmp_path: Path, log: list[str]) -> None:
    shaped(tmp_path, (4, 1), max_steps=2).train()
    resumed = shaped(tmp_path, (4, 1), logging_steps=0.25, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [*range(1, 17)]
    told = (
        "`logging_steps=1` of the checkpoint holds, and not 4 of the arguments; "
        "`save_steps=2` of the checkpoint holds, and not 3 of the arguments"
    )
    assert f"`resume_from_checkpoint`: {told}." in log


def test_what_does_not_differ_is_not_told(tmp_path: Path, log: list[str]) -> None:
    shaped(tmp_path, (4, 1), max_steps=2, save_steps=0.5).train()
    shaped(tmp_path, (4, 1), save_steps=1).train(resume_from_checkpoint=True)
    assert not [text for text in log if "holds" in text]


class Keeping(transformers.TrainerCallback):
    """Keeps the weights of each checkpoint, and asks for one more at a step that nobody has scored."""

    def __init__(self, also_at: int) -> None:
        self.also_at = also_at
        self.kept: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step == self.also_at

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def scored(folder: Path, keeping: Keeping, **options: Any) -> compat.Trainer:
    """Evaluates after steps 2, 4 and 6; the second is the best."""
    scores = iter((0.5, 0.9, 0.1))
    given = {
        "max_steps": 6,
        "save_strategy": "best",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "learning_rate": 0.05,
        **options,
    }
    return trainer(folder, callbacks=[keeping], compute_metrics=lambda _: {"score": next(scores)}, **given)


def test_the_best_of_the_strategy_best_is_loaded(tmp_path: Path) -> None:
    """HF 4.53 does not note which one it was, and returns the last weights."""
    keeping = Keeping(also_at=5)
    run = scored(tmp_path, keeping, load_best_model_at_end=True)
    run.train()
    assert list(keeping.kept) == [2, 4, 5]
    assert (run.state.best_global_step, run.state.best_metric) == (4, 0.9)
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert all(torch.equal(value, keeping.kept[4][name]) for name, value in run.model.state_dict().items())
    assert any(not torch.equal(keeping.kept[5][name], value) for name, value in keeping.kept[4].items())


@pytest.mark.parametrize(("limit", "kept"), [(1, [4]), (2, [4, 5])])
def test_rotation_keeps_the_best_of_the_strategy_best(limit: int, kept: list[int], tmp_path: Path) -> None:
    run = scored(tmp_path, Keeping(also_at=5), save_total_limit=limit)
    run.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in kept]


def test_a_best_that_is_gone_is_forgotten(tmp_path: Path, log: list[str]) -> None:
    """Otherwise it would be looked for at the end, as under HF 4.53."""
    scored(tmp_path, Keeping(also_at=5)).train()
    (tmp_path / "checkpoint-4").rename(tmp_path / "elsewhere")
    resumed = scored(tmp_path, Keeping(also_at=5), max_steps=8, load_best_model_at_end=True)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.state.global_step, resumed.state.best_model_checkpoint) == (8, None)
    assert [text for text in log if "does not exist anymore. Ignoring it" in text]


def changed(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A checkpoint whose weights are others, as somebody would leave it who has changed them."""
    file = checkpoint / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    (checkpoint / "compat_manifest.json").unlink()
    return checkpoint


def test_weights_that_a_checkpoint_lacks_stay_as_the_script_has_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path).train()

    def without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in weights.items() if not name.startswith("classifier")} | {
            "head.weight": torch.zeros(1)
        }

    checkpoint = changed(tmp_path / "checkpoint-2", without_head)
    resumed = run(tmp_path)
    with torch.no_grad():
        resumed.model.classifier.weight.fill_(0.25)
        resumed.model.classifier.bias.fill_(0.5)
    logging.get_logger("transformers").addHandler(caplog.handler)
    resumed._load_from_checkpoint(str(checkpoint))
    logging.get_logger("transformers").removeHandler(caplog.handler)
    assert torch.equal(resumed.model.classifier.weight, torch.full((3, 16), 0.25))
    assert torch.equal(resumed.model.classifier.bias, torch.full((3,), 0.5))
    saved = load_file(checkpoint / "model.safetensors")
    embedded = resumed.model.vit.embeddings.cls_token
    assert torch.equal(embedded, saved["vit.embeddings.cls_token"])
    assert (
        "missing keys in the checkpoint model loaded: ['classifier.bias', 'classifier.weight']" in caplog.text
    )
    assert "unexpected keys in the checkpoint model loaded: ['head.weight']" in caplog.text


@pytest.mark.parametrize("make", [run, trainer], ids=["transformers", "torch"])
def test_a_checkpoint_without_any_of_the_weights_is_refused(tmp_path: Path, make: Callable[..., Any]) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2} if make is trainer else {}
    make(tmp_path, **options).train()

    def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"module.x.{name}": value for name, value in weights.items()}

    checkpoint = changed(tmp_path / "checkpoint-2", renamed)
    with pytest.raises(CheckpointError, match=r"none of the model's weights .*are there: .*module\.x\."):
        make(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def test_a_module_of_torchs_is_told_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HF ends in an AttributeError."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, **options).train()
    checkpoint = changed(
        tmp_path / "checkpoint-2", lambda weights: {k: v for k, v in weights.items() if k != "out.bias"}
    )
    resumed = trainer(tmp_path, **options)
    resumed.model.out.bias.data.fill_(7.0)
    logging.get_logger("transformers").addHandler(caplog.handler)
    resumed._load_from_checkpoint(str(checkpoint))
    logging.get_logger("transformers").removeHandler(caplog.handler)
    assert resumed.model.out.bias.item() == 7.0
    assert "missing keys in the checkpoint model loaded: ['out.bias']" in caplog.text


@pytest.mark.parametrize(
    ("first", "second"), [("adamw_torch", "sgd"), ("sgd", "adamw_torch"), ("adamw_torch", "adafactor")]
)
def test_the_state_of_another_optim_is_refused(tmp_path: Path, first: str, second: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer(tmp_path, optim=first, **options).train()
    run = trainer(tmp_path, optim=second, **options)
    with pytest.raises(
        ArgumentError, match=f"`optim='{second}'`: .*checkpoint-2 holds the state of '{first}'"
    ):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_state_of_another_implementation_of_an_optim_is_taken(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    expected = trainer(tmp_path, optim="adamw_torch", **options)
    expected.train()
    run = trainer(tmp_path, optim="adamw_torch_fused", **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for ours, theirs in zip(weights(run), weights(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_arguments_that_cannot_be_read_stop_no_run(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    expected = trainer(tmp_path, **options)
    expected.train()
    (tmp_path / "checkpoint-2" / "compat_manifest.json").unlink()
    (tmp_path / "checkpoint-2" / "training_args.bin").unlink()
    run = trainer(tmp_path, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert weights(run) == weights(expected)


class Saves(transformers.TrainerCallback):
    """Notes the update step of each save."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_checkpoint_that_a_run_goes_on_from_is_not_written_again(
    size: int, strategy: str, tmp_path: Path
) -> None:
    options = {
        "save_strategy": strategy,
        "save_steps": 6 // size,
        "gradient_accumulation_steps": size,
        "max_steps": 12 // size,
        "restore_callback_states_from_checkpoint": True,
    }
    first, second = Saves(), Saves()
    trainer(tmp_path, callbacks=[first], train_dataset=rows(12), **options).train()
    checkpoint = tmp_path / f"checkpoint-{6 // size}"
    before = {file.name: file.stat().st_mtime_ns for file in checkpoint.iterdir()}
    trainer(tmp_path, callbacks=[second], train_dataset=rows(12), **options).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert (first.steps, second.steps) == ([6 // size, 12 // size], [12 // size])
    assert {file.name: file.stat().st_mtime_ns for file in checkpoint.iterdir()} == before
