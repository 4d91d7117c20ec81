"""What Lightning itself makes of a converted checkpoint, and what becomes of one that it has written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

import compat
from compat.checkpoint.convert import convert
from compat.errors import CheckpointError
from tests.checkpoint.convert import made
from tests.checkpoint.convert.modules import Foreign, Module, fit
from tests.distributed import sharded
from tests.gan import GAN, Data
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # Lightning's advice.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode"),
    # Its own use of torch.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec."),
]


def module(name: str, steps: int = made.STEPS) -> Module:
    return Module(sharded.make(made.MODELS[name]).train(), steps)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "lora"])
def test_lightning_goes_on_as_hf_would(tmp_path: Path, name: str) -> None:
    _, expected = made.train("transformers", tmp_path / "run", name, in_order=True, max_grad_norm=0.0)
    convert(tmp_path / "run" / "checkpoint-2", tmp_path / "step.ckpt")
    ours = module(name)
    ours.strict_loading = name != "lora"
    trainer = fit(ours, tmp_path, tmp_path / "step.ckpt", seen=made.SAVED)
    assert ours.places == [(0, 2, 2), (0, 3, 3)]
    assert trainer.global_step == made.STEPS
    assert made.same(dict(ours.model.state_dict()), expected)


@pytest.mark.parametrize("limited_by", ["steps", "epochs"])
@pytest.mark.parametrize(
    ("options", "steps", "places"),
    {
        # 16 rows: 8 batches an epoch.
        "in the middle": ({"max_steps": 13, "save_steps": 11}, 13, [(1, 3, 11), (1, 4, 12)]),
        "at the end of an epoch": ({"max_steps": 10, "save_steps": 8}, 10, [(1, 0, 8), (1, 1, 9)]),
        "accumulating": (
            {"max_steps": 6, "save_steps": 5, "gradient_accumulation_steps": 2},
            6,
            [(1, 2, 5), (1, 3, 5)],
        ),
        "accumulating, at the end": (
            {"max_steps": 5, "save_steps": 4, "gradient_accumulation_steps": 2},
            5,
            [(1, 0, 4), (1, 1, 4)],
        ),
    }.values(),
)
def test_lightning_begins_where_hf_has_ended(
    tmp_path: Path,
    options: dict[str, int],
    steps: int,
    places: list[tuple[int, int, int]],
    limited_by: str,
) -> None:
    made.train("transformers", tmp_path / "run", "gpt2", in_order=True, **options)
    convert(tmp_path / "run" / f"checkpoint-{options['save_steps']}", tmp_path / "step.ckpt")
    limit = {"max_steps": steps} if limited_by == "steps" else {"max_steps": -1, "max_epochs": 2}
    ours = module("gpt2", steps)
    accumulated = options.get("gradient_accumulation_steps", 1)
    limits = {**limit, "accumulate_grad_batches": accumulated}
    trainer = fit(ours, tmp_path, tmp_path / "step.ckpt", seen=places[0][1], **limits)
    assert ours.places[: len(places)] == places
    assert trainer.global_step == (steps if limited_by == "steps" else 16 // accumulated)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step


def test_what_is_in_the_file(tmp_path: Path) -> None:
    made.train("transformers", tmp_path / "run", "gpt2")
    source = tmp_path / "run" / "checkpoint-2"
    torch.save({"scale": 1024.0, "_growth_tracker": 3}, source / "scaler.pt")
    convert(source, tmp_path / "step.ckpt")
    found = torch.load(tmp_path / "step.ckpt", weights_only=True)
    assert (found["epoch"], found["global_step"]) == (0, 2)
    assert found["MixedPrecision"] == {"scale": 1024.0, "_growth_tracker": 3}
    assert made.same(found["optimizer_states"], [torch.load(source / "optimizer.pt", weights_only=True)])
    assert made.same(found["lr_schedulers"], [torch.load(source / "scheduler.pt", weights_only=True)])
    state = found["state_dict"]
    assert set(state) == {f"model.{name}" for name in sharded.make(made.MODELS["gpt2"]).state_dict()}
    tied = [state[f"model.{name}"].data_ptr() for name in ("lm_head.weight", "transformer.wte.weight")]
    assert tied[0] == tied[1]
    assert (
        bytes(found["hf_files"]["trainer_state.json"].numpy()) == (source / "trainer_state.json").read_bytes()
    )
    convert(tmp_path / "step.ckpt", tmp_path / "checkpoint-2")
    made.assert_equal(source, tmp_path / "checkpoint-2")


def test_weights_that_the_model_would_miss(tmp_path: Path) -> None:
    sharded.make(made.MODELS["gpt2"]).save_pretrained(tmp_path / "saved")
    weights = made.weights(tmp_path / "saved")
    del weights["transformer.ln_f.bias"]
    save_file(weights, tmp_path / "saved" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 are missing, `transformer.ln_f.bias` for one, .*`lightning`"
    ):
        convert(tmp_path / "saved", tmp_path / "step.ckpt")


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_foreign_modules_checkpoint(tmp_path: Path, name: str) -> None:
    model = sharded.make(made.MODELS[name])
    model.save_pretrained(tmp_path / "saved")
    foreign = Foreign(model)
    torch.save({"state_dict": foreign.state_dict()}, tmp_path / "foreign.ckpt")
    done = convert(tmp_path / "foreign.ckpt", tmp_path / "final", config=tmp_path / "saved")
    assert made.same(made.weights(tmp_path / "final"), made.weights(tmp_path / "saved"))
    assert "2 tensors outside of `net.` left out" in str(done)
    with pytest.raises(
        CheckpointError, match=r"no HF Trainer has written it .*`--to pretrained`|--to pretrained"
    ):
        convert(tmp_path / "foreign.ckpt", tmp_path / "checkpoint-1", config=tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"no config.json was found .*--config PATH"):
        convert(tmp_path / "foreign.ckpt", tmp_path / "other")


def test_a_foreign_modules_checkpoint_with_adapters(tmp_path: Path) -> None:
    model = sharded.make(made.MODELS["lora"])
    model.save_pretrained(tmp_path / "saved")
    torch.save({"state_dict": Foreign(model).state_dict()}, tmp_path / "foreign.ckpt")
    done = convert(tmp_path / "foreign.ckpt", tmp_path / "final", config=tmp_path / "saved")
    assert made.same(made.weights(tmp_path / "final"), made.weights(tmp_path / "saved"))
    assert done.tensors == 4


def test_a_prefix_that_is_told(tmp_path: Path) -> None:
    model = sharded.make(made.MODELS["gpt2"])
    model.save_pretrained(tmp_path / "saved")
    state = {
        f"{student}.{name}": tensor
        for student in ("one", "two")
        for name, tensor in model.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "two.ckpt")
    with pytest.raises(
        CheckpointError, match=r"2 prefixes make its names those of the model, `one.`, `two.`"
    ):
        convert(tmp_path / "two.ckpt", tmp_path / "final", config=tmp_path / "saved" / "config.json")
    convert(tmp_path / "two.ckpt", tmp_path / "final", config=tmp_path / "saved", prefix="two")
    assert made.same(made.weights(tmp_path / "final"), made.weights(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match=r"nothing in it begins with `three.`"):
        convert(tmp_path / "two.ckpt", tmp_path / "x", config=tmp_path / "saved", prefix="three.")


def test_a_prefix_where_no_lightning_checkpoint_is_read(tmp_path: Path) -> None:
    sharded.make(made.MODELS["gpt2"]).save_pretrained(tmp_path / "saved")
    refused = "`prefix=''`: it says how names begin in a Lightning checkpoint that is read"
    with pytest.raises(CheckpointError, match=refused):
        convert(tmp_path / "saved", tmp_path / "x.ckpt", prefix="")


def test_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    state = {
        "inner.net.weight": torch.ones(2),
        "inner.net.bias": torch.zeros(2),
        "inner.again": torch.ones(3),
    }
    state["inner.tied"] = state["inner.again"]
    torch.save({"state_dict": state}, tmp_path / "own.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own"}))
    convert(tmp_path / "own.ckpt", tmp_path / "final")
    assert set(made.weights(tmp_path / "final")) == {"net.weight", "net.bias", "again"}


def test_what_is_no_checkpoint_of_lightnings(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x.ckpt`: not a checkpoint of Lightning's"):
        convert(tmp_path / "x.ckpt", tmp_path / "final")


def test_states_of_a_module_that_optimizes_manually_go_there_and_back(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    compat.Trainer(GAN(), args, train_dataset=Data()).train()
    source = tmp_path / "checkpoint-3"
    convert(source, tmp_path / "x.ckpt")
    tree = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert [len(tree[name]) for name in ("optimizer_states", "lr_schedulers")] == [2, 2]
    counted = tree["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]["total"]
    assert counted["completed"] == tree["global_step"] == 6
    back = tmp_path / "back" / "checkpoint-3"
    back.parent.mkdir()
    convert(tmp_path / "x.ckpt", back)
    for file in ("optimizer.pt", "scheduler.pt", "optimizer_extra.pth"):
        assert made.same(*(torch.load(folder / file, weights_only=True) for folder in (source, back)))
    with pytest.raises(CheckpointError, match="states of a module that optimizes manually, and shards hold"):
        convert(source, tmp_path / "shards", to="sharded")
