"""Each of PEFT's adapters comes back from its own folder of a checkpoint."""

from __future__ import annotations

import logging
import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import compat
from compat.errors import ArgumentError, CheckpointError
from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.parity.parts import data, models
from tests.small import arguments

peft = pytest.importorskip("peft", reason="needs peft")

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# PEFT asks a model of transformers 5 by an older name, and saves more than is needed.
pytestmark = pytest.mark.filterwarnings("ignore")


def lora(**options: Any) -> Any:
    given = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["query", "value"], **options}
    return peft.LoraConfig(**given)


def adapted(*names: str, active: Any = None, config: Callable[..., Any] = lora, **options: Any) -> nn.Module:
    """The classifier with adapters of these names, the last of them active."""
    torch.manual_seed(0)
    base = models.bert()
    model = peft.get_peft_model(base, config(**options), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config(**options))
    # A list is for the layers alone.
    (model.base_model if isinstance(active, list) else model).set_adapter(active or names[-1])
    return model


def with_head(*names: str, **options: Any) -> nn.Module:
    return adapted(*names, task_type="SEQ_CLS", **options)


def in_bf16() -> nn.Module:
    torch.manual_seed(0)
    model = models.bert().to(torch.bfloat16)
    return peft.get_peft_model(model, lora(task_type="SEQ_CLS"), autocast_adapter_dtype=False)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return peft.get_peft_model(models.bert(), lora(task_type="SEQ_CLS"), mixed=True)


def partly_frozen() -> nn.Module:
    model = with_head("default", "x")
    for name, parameter in model.named_parameters():
        if "layer.0" in name:
            parameter.requires_grad_(False)
    return model


def of_transformers() -> nn.Module:
    torch.manual_seed(0)
    model = models.bert()
    model.add_adapter(lora(modules_to_save=["classifier"]), adapter_name="x")
    return model


def prompts(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(peft, kind)(task_type="SEQ_CLS", num_virtual_tokens=3, **options)
        return peft.get_peft_model(models.bert(), config, adapter_name="x")

    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "default": lambda: with_head("default"),
    "one of another name": lambda: with_head("x"),
    "default and another one": lambda: with_head("default", "x"),
    "default, another one frozen": lambda: with_head("default", "x", active="default"),
    "two of other names": lambda: with_head("y", "x"),
    "two at once": lambda: adapted("default", "x", active=["default", "x"]),
    "tokens": lambda: with_head("x", trainable_token_indices={"word_embeddings": [1, 2, 3]}),
    "other types": in_bf16,
    "partly frozen": partly_frozen,
    "prompts": prompts("PromptTuningConfig"),
    "mixed": mixed,
    "of transformers": of_transformers,
}


@pytest.fixture(autouse=True)
def takes_this_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 refuses the installed PEFT, which does what is asked of it here."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.15.0", raising=False)


class Noting(transformers.TrainerCallback):
    """Keeps the weights of each checkpoint; the machine may die at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.kept: dict[int, dict[str, torch.Tensor]] = {}
        self.dies_at = dies_at

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}
        if state.global_step == self.dies_at:
            raise KeyboardInterrupt


def trainer(model: nn.Module, folder: Path, callback: Any = None, **options: Any) -> compat.Trainer:
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05, **options}
    times = iter(range(9))
    return compat.Trainer(
        model,
        arguments(folder, **given),
        train_dataset=data.sentences(),
        eval_dataset=data.sentences(6, 1),
        # The first of two evaluations is the best.
        compute_metrics=lambda _: {"order": next(times)},
        callbacks=[callback or Noting()],
    )


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "order",
    "greater_is_better": False,
    "label_names": ["labels"],
}


def facts(model: nn.Module) -> tuple[Any, ...]:
    """What loading must leave alone."""
    active = model.active_adapters
    return (
        list(active() if callable(active) else active),
        [(name, value.requires_grad, value.dtype) for name, value in model.named_parameters()],
        {name: config.inference_mode for name, config in model.peft_config.items()},
    )


def unlike(found: nn.Module, expected: dict[str, torch.Tensor]) -> list[str]:
    weights = found.state_dict()
    assert weights.keys() == expected.keys()
    return [name for name, value in expected.items() if not torch.equal(weights[name], value)]


def build(name: str) -> nn.Module:
    if name == "mixed" and not HAS_TRAINING_SEAMS:
        pytest.skip("this release cannot make a trainer for it")
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_the_best_adapters_are_loaded(name: str, tmp_path: Path) -> None:
    """HF loads the best of "default" alone, and leaves others at their last step, with a warning."""
    model, noting = build(name), Noting()
    before = facts(model)
    run = trainer(model, tmp_path, noting, **BEST)
    run.train()
    assert run.state.best_global_step == 2
    assert unlike(run.model, noting.kept[4]), "the last weights are others"
    assert unlike(run.model, noting.kept[2]) == []
    assert facts(model) == before


NAMED = ("one of another name", "default, another one frozen")


@pytest.mark.parametrize(
    ("name", "asked"),
    [*((name, "auto") for name in MODELS), *product(NAMED, (True, "checkpoint-2"))],
)
def test_a_run_goes_on_with_all_its_adapters(name: str, asked: Any, tmp_path: Path) -> None:
    whole = trainer(build(name), tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(build(name), tmp_path / "killed", Noting(dies_at=2)).train()
    model = build(name)
    before = facts(model)
    resumed = trainer(model, tmp_path / "killed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / asked) if "-" in str(asked) else asked)
    assert unlike(resumed.model, whole.model.state_dict()) == []
    assert facts(model) == before


class Rewriting(Noting):
    """Turns the weights of an adapter into the other format."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            (file,) = Path(args.output_dir).glob("checkpoint-2/x/adapter_model.safetensors")
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()


def test_the_best_is_loaded_from_a_checkpoint_without_optimizer_in_another_format(tmp_path: Path) -> None:
    model, noting = with_head("default", "x"), Rewriting()
    trainer(model, tmp_path, noting, save_only_model=True, **BEST).train()
    assert unlike(model, noting.kept[2]) == []


def test_an_adapter_that_the_model_lacks_is_added_and_frozen(tmp_path: Path) -> None:
    first = trainer(with_head("default", "x"), tmp_path, max_steps=2)
    first.train()
    model = with_head("default")
    alone = [name for name, value in model.named_parameters() if value.requires_grad]
    trainer(model, tmp_path, ignore_data_skip=True).train(resume_from_checkpoint=True)
    assert list(model.peft_config) == ["default", "x"]
    assert model.active_adapters == ["default"]
    assert [name for name, value in model.named_parameters() if value.requires_grad] == alone
    expected = {name: value for name, value in first.model.state_dict().items() if ".x." in name}
    assert expected
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


def test_an_adapter_of_another_name_takes_the_only_one(tmp_path: Path) -> None:
    first = trainer(with_head("default"), tmp_path, max_steps=2)
    first.train()
    model = with_head("x")
    trainer(model, tmp_path, max_steps=2).train(resume_from_checkpoint=True)
    expected = {name.replace(".default", ".x"): value for name, value in first.model.state_dict().items()}
    assert unlike(model, expected) == []


def test_no_file_of_an_adapter_may_be_missing(tmp_path: Path) -> None:
    trainer(with_head("default", "x"), tmp_path).train()
    shutil.rmtree(tmp_path / "checkpoint-4" / "x")
    run = trainer(with_head("default", "x"), tmp_path)
    with pytest.raises(ArgumentError, match=r"`x/adapter_model\.safetensors`: missing"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4
    # Without a manifest the model alone tells.
    (tmp_path / "checkpoint-2" / "compat_manifest.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-2" / "x")
    with pytest.raises(CheckpointError, match=r"holds the adapters default, and no weights of x"):
        trainer(with_head("default", "x"), tmp_path).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (shutil.rmtree, r"checkpoint-2: `x/adapter_model\.safetensors`: missing"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"{}"),
            r"checkpoint-2: `x/adapter_model\.safetensors`: 2 bytes, and",
        ),
    ],
)
@pytest.mark.parametrize("names", [("x",), ("default", "x")])
def test_the_best_adapter_must_be_whole(
    names: tuple[str, ...], harm: Callable[[Path], Any], told: str, tmp_path: Path
) -> None:
    class Harming(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                harm(tmp_path / "checkpoint-2" / "x")

    run = trainer(with_head(*names), tmp_path, Harming(), **BEST)
    with pytest.raises(CheckpointError, match=told):
        run.train()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    trainer(with_head("x"), tmp_path, max_steps=2).train()
    wider = trainer(with_head("x", r=3), tmp_path)
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=.*do not fit the adapter 'x'"):
        wider.train(resume_from_checkpoint=True)


def thawed() -> nn.Module:
    """A base model of which a script has thawed a part that no configuration names."""
    model = with_head("default")
    model.base_model.model.bert.embeddings.LayerNorm.weight.requires_grad_(True)
    return model


def with_statistics() -> nn.Module:
    """A base model with running statistics."""
    torch.manual_seed(0)
    base = models.bert()
    base.bert.pooler.activation = torch.nn.BatchNorm1d(base.config.hidden_size)
    return peft.get_peft_model(base, lora(task_type="SEQ_CLS"))


HELD = {
    "computed prompts": prompts("PromptEncoderConfig", encoder_hidden_size=8),
    "thawed": thawed,
    "statistics": with_statistics,
}
"""Models of which PEFT saves less than training changes."""


@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_what_peft_leaves_out_is_held(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    whole = trainer(make(), tmp_path / "whole", label_names=["labels"])
    whole.train()
    again = trainer(make(), tmp_path / "again", label_names=["labels"])
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(again.model, whole.model)

    half = trainer(make(), tmp_path / "half", max_steps=2, lr_scheduler_type="constant", **BEST)
    half.train()
    best = trainer(make(), tmp_path / "best", lr_scheduler_type="constant", **BEST)
    best.train()
    assert best.state.best_global_step == 2
    assert_same(best.model, half.model)


def assert_same(ours: nn.Module, expected: nn.Module) -> None:
    found = ours.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_checkpoint_of_hfs_says_what_it_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = HELD["computed prompts"]
    trainer(make(), tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "unsaved_weights.safetensors").unlink()
    (tmp_path / "checkpoint-2" / "compat_manifest.json").unlink()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer(make(), tmp_path, label_names=["labels"]).train(resume_from_checkpoint=True)
    assert (
        "computes its prompts by an encoder, and the checkpoint holds the prompts without it" in caplog.text
    )


def test_no_warning_misleads(tmp_path: Path) -> None:
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: texts.append(entry.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("transformers.trainer")
    log.addHandler(handler)
    try:
        trainer(with_head("y", "x"), tmp_path, **BEST).train()
        names = {"label_names": ["labels"]}
        trainer(with_head("y", "x"), tmp_path, **names).train(resume_from_checkpoint=True)
    finally:
        log.removeHandler(handler)
    assert [text for text in texts if "going on from" not in text] == []


def test_weights_of_another_adapter_are_no_weights(tmp_path: Path) -> None:
    trainer(adapted("default"), tmp_path).train()
    checkpoint = tmp_path / "checkpoint-4"
    file = checkpoint / "adapter_model.safetensors"
    save_file({f"x.{name}": value for name, value in load_file(file).items()}, file)
    (checkpoint / "compat_manifest.json").unlink()
    run = trainer(adapted("default"), tmp_path)
    with pytest.raises(CheckpointError, match="not those of the adapter 'default', of which none is there"):
        run.train(resume_from_checkpoint=str(checkpoint))
