from __future__ import annotations

import math
import sys

import pytest
import torch
import transformers

import compat
from compat.errors import ArgumentError
from compat.trl.trainer.reward_config import RewardConfig
from compat.trl.trainer.reward_trainer import RewardTrainer
from tests.trl import runs
from tests.trl.setups import parts
from tests.trl.setups.reward import _rows


def config(folder, kind=RewardConfig, **given):
    return kind(**runs.options(str(folder), **{"max_steps": 2, "remove_unused_columns": False, **given}))


def trainer(folder, **options):
    defaults = {
        "model": parts.classifier(),
        "args": config(folder, max_length=32),
        "train_dataset": _rows(),
        "eval_dataset": _rows(),
        "tokenizer": parts.tokenizer(),
    }
    return RewardTrainer(**{**defaults, **options})


class TestLoss:
    def test_bradley_and_terry_with_a_margin(self, tmp_path):
        found = trainer(tmp_path, train_dataset=_rows(margin=[0.5] * 6))
        batch = found.data_collator([found.train_dataset[0]])
        loss, scores = found.compute_loss(found.model, batch, return_outputs=True)
        lead = scores["rewards_chosen"].item() - scores["rewards_rejected"].item()
        assert loss.item() == pytest.approx(math.log1p(math.exp(0.5 - lead)), rel=1e-5)
        del batch["margin"]
        assert found.compute_loss(found.model, batch).item() == pytest.approx(
            math.log1p(math.exp(-lead)), rel=1e-5
        )

    def test_preferences_sum_to_one(self, tmp_path):
        found = trainer(tmp_path)
        batch = found.data_collator([found.train_dataset[place] for place in range(3)])
        loss, preferences, labels = found.prediction_step(found.model, batch, False)
        assert preferences.sum(1).tolist() == pytest.approx([1, 1, 1])
        assert labels.tolist() == [0, 0, 0]
        assert found.prediction_step(found.model, batch, True) == (loss, None, None)
        alone = found.prediction_step(found.model, batch, False, ignore_keys=["rewards_rejected"])
        assert alone[1].shape == (3, 1)


class TestArguments:
    def test_names_of_any_release(self, tmp_path):
        with pytest.warns(FutureWarning, match="evaluation_strategy"):
            given = config(tmp_path, max_length=7, evaluation_strategy="steps", eval_steps=1)
        assert isinstance(given, transformers.TrainingArguments)
        assert given.max_length == 7
        assert given.to_dict()["max_length"] == 7
        with pytest.raises(ArgumentError, match="max_lenght"):
            config(tmp_path, max_lenght=7)
        parser = transformers.HfArgumentParser(RewardConfig)
        (parsed,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--max_length", "9"])
        assert parsed.max_length == 9

    def test_length_is_set_once(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"`max_length=8`, `args.max_length=32`: you cannot specify both"
        ):
            trainer(tmp_path, max_length=8)
        with pytest.warns(FutureWarning, match="`max_length=8`: the argument is deprecated"):
            found = trainer(tmp_path, args=config(tmp_path), max_length=8)
        assert found.data_collator.max_length == 8
        with pytest.warns(UserWarning, match=r"should set `max_length` in RewardConfig.*`512`"):
            found = trainer(tmp_path, args=config(tmp_path))
        assert found.data_collator.max_length == 512

    def test_plain_arguments_are_taken(self, tmp_path):
        plain = config(tmp_path, kind=compat.TrainingArguments, remove_unused_columns=True)
        with pytest.warns() as said:
            found = trainer(tmp_path, args=plain, max_length=8)
        kinds = {str(one.message).split(" ")[0]: one.category for one in said}
        assert kinds == {"Using": FutureWarning, "`max_length=8`:": FutureWarning, "When": UserWarning}
        assert plain.remove_unused_columns is False
        assert found.train().global_step == 2

    def test_the_collator_needs_a_tokenizer(self, tmp_path):
        with pytest.raises(ValueError, match=r"`tokenizer=None`.*RewardDataCollatorWithPadding"):
            trainer(tmp_path, tokenizer=None)

    def test_another_collator_is_told(self, tmp_path):
        collator = compat.trl.trainer.utils.RewardDataCollatorWithPadding(parts.tokenizer())
        with pytest.warns(UserWarning, match="implemented for RewardDataCollatorWithPadding"):
            trainer(tmp_path, data_collator=collator).train()

    def test_own_metrics_take_the_place_of_accuracy(self, tmp_path):
        assert "eval_accuracy" in trainer(tmp_path).evaluate()
        own = trainer(tmp_path, compute_metrics=lambda found: {"pairs": len(found.label_ids)}).evaluate()
        assert own["eval_pairs"] == 6
        assert "eval_accuracy" not in own

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    def test_adapters(self, tmp_path, monkeypatch):
        peft = pytest.importorskip("peft")
        given = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="SEQ_CLS")
        found = trainer(tmp_path, peft_config=given)
        before = {n: p.detach().clone() for n, p in found.model.named_parameters()}
        found.train()
        changed = {n for n, p in found.model.named_parameters() if not torch.equal(p, before[n])}
        # PEFT trains the head as a whole.
        assert changed == {n for n in before if "lora_" in n or "modules_to_save" in n}
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match="PEFT is not installed"):
            trainer(tmp_path, peft_config=given)
