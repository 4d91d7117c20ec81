from __future__ import annotations

import random
import sys

import datasets
import pytest
import torch
import transformers

import compat
from compat.trl.trainer.sft_trainer import SFTTrainer
from compat.trl.trainer.utils import ConstantLengthDataset, DataCollatorForCompletionOnlyLM
from tests.trl import runs
from tests.trl.setups import parts

PEFT_ASKS_BY_AN_OLDER_NAME = "ignore:`is_gradient_checkpointing`:FutureWarning"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def arguments(folder, **given):
    return compat.TrainingArguments(**runs.options(str(folder), **{"max_steps": 2, **given}))


def rows(count=6):
    return datasets.Dataset.from_dict({"text": runs.TEXTS[:count]})


def trainer(folder, given=None, kind=SFTTrainer, **options):
    defaults = {
        "model": options.pop("model", None) or parts.causal(),
        "args": arguments(folder, **(given or {})),
        "train_dataset": rows(),
        "tokenizer": parts.tokenizer(),
        "dataset_text_field": "text",
        "max_seq_length": 12,
    }
    return kind(**{**defaults, **options})


class TestDatasets:
    def test_texts_are_cut_and_columns_dropped(self, tmp_path):
        prepared = trainer(tmp_path, max_seq_length=4).train_dataset
        assert sorted(prepared.column_names) == ["attention_mask", "input_ids"]
        assert max(map(len, prepared["input_ids"])) == 4
        assert prepared[0]["input_ids"] == parts.tokenizer()(runs.TEXTS[0])["input_ids"][:4]

    def test_columns_that_are_kept_are_told(self, tmp_path):
        with pytest.warns(UserWarning, match=r"remove_unused_columns=False.*\['text'\]"):
            found = trainer(tmp_path, {"remove_unused_columns": False})
        assert "text" in found.train_dataset.column_names

    def test_one_text_for_a_batch_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"should return a list of processed strings.*returned str"):
            trainer(tmp_path, dataset_text_field=None, formatting_func=lambda batch: batch["text"][0])

    @pytest.mark.parametrize("packing", [False, True])
    def test_rows_without_a_text_are_refused(self, tmp_path, packing):
        with pytest.raises(ValueError, match=r"dataset_text_field.*formatting_func"):
            trainer(tmp_path, dataset_text_field=None, packing=packing)

    def test_too_little_text_to_pack_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"Error occurred while packing the dataset.*100 tokens"):
            trainer(tmp_path, train_dataset=rows(1), packing=True, max_seq_length=100)

    def test_templates_do_not_survive_packing(self, tmp_path):
        collator = DataCollatorForCompletionOnlyLM("a", tokenizer=parts.tokenizer())
        with pytest.raises(ValueError, match=r"DataCollatorForCompletionOnlyLM.*packing"):
            trainer(tmp_path, packing=True, data_collator=collator)

    def test_another_seed_is_not_read_from_the_cache(self, tmp_path):
        def packed(seed):
            random.seed(seed)
            found = trainer(tmp_path, {"max_steps": -1}, packing=True, max_seq_length=5)
            return [*found.train_dataset["input_ids"]]

        first = packed(1)
        assert packed(1) == first
        other = packed(2)
        assert other != first
        assert sorted(other) == sorted(first)

    # Its length is that of the texts, of which it makes more sequences.
    @pytest.mark.filterwarnings("ignore:Length of IterableDataset")
    def test_a_packed_stream_is_taken_as_it_is(self, tmp_path):
        tokenizer = parts.tokenizer()
        stream = ConstantLengthDataset(tokenizer, rows(), "text", seq_length=8)
        with pytest.warns(UserWarning, match=r"`packing=True`.*`max_steps=9`"):
            found = trainer(tmp_path, {"max_steps": 9}, train_dataset=stream, packing=True)
        assert found.train_dataset is stream
        assert stream.infinite
        with pytest.warns(UserWarning, match="iterator is reset"):
            assert found.train().global_step == 9
        assert not trainer(
            tmp_path, {"max_steps": -1}, train_dataset=stream, packing=True
        ).train_dataset.infinite

    def test_several_evaluations_leave_the_dictionary_alone(self, tmp_path):
        given = {"short": rows(2), "long": rows(3)}
        found = trainer(tmp_path, eval_dataset=given)
        assert given["short"].column_names == ["text"]
        metrics = found.evaluate()
        assert {"eval_short_loss", "eval_long_loss"} <= metrics.keys()


class TestOptions:
    def test_length_of_the_tokenizer(self, tmp_path):
        tokenizer = parts.tokenizer()
        tokenizer.model_max_length = 5
        with pytest.warns(UserWarning, match=r"didn't pass a `max_seq_length`.*default to 5"):
            found = trainer(tmp_path, tokenizer=tokenizer, max_seq_length=None)
        assert max(map(len, found.train_dataset["input_ids"])) == 5
        tokenizer.model_max_length = int(1e30)
        with pytest.warns(UserWarning, match="default to 1024"):
            trainer(tmp_path, tokenizer=tokenizer, max_seq_length=None)

    def test_a_model_by_name(self, tmp_path):
        folder = tmp_path / "model"
        parts.causal().save_pretrained(folder)
        with pytest.warns(UserWarning, match="You passed a model_id to the SFTTrainer"):
            found = trainer(tmp_path, model=str(folder), model_init_kwargs={"use_cache": False})
        assert isinstance(found.model, transformers.GPT2LMHeadModel)
        assert found.model.config.use_cache is False
        with pytest.raises(
            ValueError, match=r"model_kwargs to the SFTTrainer. But your model is already instan"
        ):
            trainer(tmp_path, model_init_kwargs={})

    def test_the_tokenizer_of_the_model(self, tmp_path):
        folder = tmp_path / "model"
        parts.causal().save_pretrained(folder)
        tokenizer = parts.tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
        found = trainer(tmp_path, model=transformers.GPT2LMHeadModel.from_pretrained(folder), tokenizer=None)
        assert found.tokenizer.pad_token == tokenizer.eos_token
        with pytest.raises(ValueError, match=r"`tokenizer=None`.*Pass a `tokenizer`"):
            trainer(tmp_path, model=torch.nn.Linear(1, 1), tokenizer=None)

    def test_what_has_no_effect_is_told(self, tmp_path):
        with pytest.warns(UserWarning, match="`infinite=True` is deprecated"):
            trainer(tmp_path, infinite=True)
        tokenizer = parts.tokenizer()
        tokenizer.padding_side = "left"
        with pytest.warns(UserWarning, match="`padding_side='left'`"):
            trainer(tmp_path, tokenizer=tokenizer)

    def test_noise_lasts_as_long_as_training(self, tmp_path):
        during = []

        class Look(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                embeddings = model.get_input_embeddings()
                during.append((embeddings.neftune_noise_alpha, len(embeddings._forward_hooks)))

        with pytest.warns(UserWarning, match=r"`neftune_noise_alpha=5`.*override"):
            found = trainer(tmp_path, neftune_noise_alpha=5, callbacks=[Look()])
        assert found.args.neftune_noise_alpha == 5
        found.train()
        embeddings = found.model.get_input_embeddings()
        assert during == [(5, 1), (5, 1)]
        assert not embeddings._forward_hooks
        assert not hasattr(embeddings, "neftune_noise_alpha")
        # The method that scripts call by themselves.
        assert found._trl_activate_neftune(found.model) is found.model
        ids = torch.tensor([[1, 2, 3]])
        assert not torch.equal(embeddings.train()(ids), embeddings(ids))
        found.neftune_hook_handle.remove()
        assert torch.equal(embeddings(ids), embeddings(ids))


class TestAdapters:
    def test_only_a_configuration_of_peft(self, tmp_path):
        pytest.importorskip("peft")
        with pytest.raises(ValueError, match=r"you need to pass a PeftConfig.*dict"):
            trainer(tmp_path, peft_config={"r": 2})

    def test_without_peft(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match=r"`peft_config=dict`.*PEFT is not installed"):
            trainer(tmp_path, peft_config={"r": 2})

    @pytest.mark.filterwarnings(PEFT_ASKS_BY_AN_OLDER_NAME)
    def test_the_adapter_learns_through_checkpointed_layers(self, tmp_path):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        args = arguments(tmp_path, max_steps=3)
        # Set behind the constructor, as these are old names under transformers 5.
        args.gradient_checkpointing, args.gradient_checkpointing_kwargs = True, {"use_reentrant": True}
        found = trainer(tmp_path, args=args, peft_config=config)
        before = {n: p.detach().clone() for n, p in found.model.named_parameters()}
        found.train()
        changed = {n for n, p in found.model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {n for n in before if "lora_" in n}


class TestAsATrainerOfOurs:
    def test_overrides_of_that_time(self, tmp_path):
        losses = []

        class Own(SFTTrainer):
            def compute_loss(self, model, inputs, return_outputs=False):
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
                losses.append(loss.item())
                return (loss, outputs) if return_outputs else loss

            def training_step(self, model, inputs):
                return super().training_step(model, inputs)

        found = trainer(tmp_path, {"gradient_accumulation_steps": 2}, kind=Own, train_dataset=rows(8))
        output = found.train()
        assert len(losses) == 4
        assert output.training_loss == pytest.approx(sum(losses) / 4, rel=1e-6)
        plain = trainer(tmp_path, {"gradient_accumulation_steps": 2}, train_dataset=rows(8))
        assert plain.train().training_loss == output.training_loss

    def test_saved_resumed_and_the_best_loaded(self, tmp_path):
        given = {
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "lightning": {"profiler": "simple"},
        }
        whole = trainer(tmp_path / "whole", given, eval_dataset=rows(3))
        whole.train()
        assert type(whole.lightning.profiler).__name__ == "SimpleProfiler"
        assert whole.state.best_model_checkpoint.endswith("checkpoint-4")
        half = trainer(tmp_path / "whole", given, eval_dataset=rows(3))
        half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        for one, other in zip(whole.model.parameters(), half.model.parameters(), strict=True):
            assert torch.equal(one, other)
        assert [entry.get("eval_loss") for entry in half.state.log_history] == [
            entry.get("eval_loss") for entry in whole.state.log_history
        ]
