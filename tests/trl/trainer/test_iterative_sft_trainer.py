from __future__ import annotations

import datasets
import pytest
import torch

import compat
from compat.trl.core import PPODecorators
from compat.trl.trainer.iterative_sft_trainer import IterativeSFTTrainer
from tests.trl import runs
from tests.trl.setups import parts

pytestmark = pytest.mark.filterwarnings("ignore:No (data collator|labels)")


def trainer(folder, model=None, given=None, **options):
    args = compat.TrainingArguments(**runs.options(str(folder), **{"max_steps": 8, **(given or {})}))
    return IterativeSFTTrainer(model or parts.causal(), args, **{"tokenizer": parts.tokenizer(), **options})


def tensors(count=4):
    tokenizer = parts.tokenizer()
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in runs.TEXTS[:count]]


class TestConstruction:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tokenizer": "gpt2"}, "tokenizer must be a PreTrainedTokenizerBase.*<class 'str'>"),
            ({"model": torch.nn.Linear(1, 1)}, "model must be a PreTrainedModel.*Linear"),
            ({"given": {"max_steps": -1}}, "`max_steps=-1`: when no scheduler is provided"),
        ],
    )
    def test_refused(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **options)

    def test_collators_that_stand_in_are_told(self, tmp_path):
        with pytest.warns(UserWarning, match="'DataCollatorForLanguageModeling'"):
            trainer(tmp_path)
        with pytest.warns(UserWarning, match=r"'DataCollatorForSeq2Seq'.*'pad_to_multiple_of' set to 8"):
            trainer(tmp_path, parts.seq2seq())

    def test_a_model_that_cannot_write_is_told(self, tmp_path):
        with pytest.warns(
            UserWarning, match=r"GPT2ForSequenceClassification.*not compatible with `.generate"
        ):
            trainer(tmp_path, parts.classifier())

    @pytest.mark.parametrize(("mode", "side"), [("keep_end", "left"), ("keep_start", "right")])
    def test_side_of_texts_that_is_cut(self, tmp_path, mode, side):
        found = trainer(tmp_path, truncation_mode=mode, optimize_device_cache=True)
        assert found.tokenizer.truncation_side == side
        assert PPODecorators.optimize_device_cache is True
        trainer(tmp_path)
        assert PPODecorators.optimize_device_cache is False


class TestSteps:
    def test_gradients_of_zeros_stay(self, tmp_path):
        found = trainer(tmp_path)
        before = [p.detach().clone() for p in found.model.parameters()]
        found.step(input_ids=tensors(), labels=tensors())
        found.step(texts=runs.TEXTS[:4], texts_labels=runs.TEXTS[:4])
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in found.model.parameters())
        assert not any(torch.equal(*pair) for pair in zip(before, found.model.parameters(), strict=True))
        assert found.state.global_step == 4

    def test_gradients_of_a_window_that_goes_on(self, tmp_path):
        found = trainer(tmp_path, given={"gradient_accumulation_steps": 4})
        found.step(input_ids=tensors(), labels=tensors())
        assert all(p.grad.abs().sum() > 0 for p in found.model.parameters())

    def test_columns_of_a_dataset(self, tmp_path):
        rows = datasets.Dataset.from_dict(
            {"ids": [ids.tolist() for ids in tensors()], "texts": runs.TEXTS[:4]}
        )
        rows.set_format("torch")
        found = trainer(tmp_path)
        # Newer releases of datasets give what is no list.
        found.step(input_ids=rows["ids"], labels=rows["ids"])
        found.step(texts=rows["texts"])
        assert found.state.global_step == 4

    def test_other_trainers_count_their_windows_themselves(self, tmp_path):
        found = trainer(tmp_path, given={"gradient_accumulation_steps": 3})
        found.step(input_ids=tensors(), labels=tensors())
        assert found.accelerator.gradient_accumulation_steps == 1
        assert found.accelerator.sync_gradients

    def test_windows_go_on_in_the_next_step(self, tmp_path):
        found = trainer(tmp_path, given={"gradient_accumulation_steps": 4})
        weights = [found.model.transformer.wte.weight.detach().clone()]
        for _ in range(2):
            found.step(input_ids=tensors(), labels=tensors())
            weights.append(found.model.transformer.wte.weight.detach().clone())
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])
        # one update of eight, in a schedule of eight micro-steps
        assert found.lr_scheduler.get_last_lr() == [pytest.approx(1e-2 * 7 / 8)] * 2

    def test_logged_and_evaluated_where_it_is_time(self, tmp_path):
        rows = datasets.Dataset.from_dict({"input_ids": [ids.tolist() for ids in tensors()]})
        given = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
        found = trainer(tmp_path, given=given, eval_dataset={"a": rows})
        found.step(input_ids=tensors(6), labels=tensors(6))
        found.step(input_ids=tensors(6), labels=tensors(6))
        assert [e["step"] for e in found.state.log_history if "loss" in e] == [2, 4, 6]
        assert [e["step"] for e in found.state.log_history if "eval_a_loss" in e] == [3, 6]
        assert {n for e in found.state.log_history if "loss" in e for n in e} == {
            "loss",
            "learning_rate",
            "step",
        }

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "Step should include `input_ids` or `texts`"),
            ({"input_ids": [torch.tensor([1])]}, "labels must be a list of tensors - got <class 'NoneType'>"),
            (
                {"input_ids": torch.ones(1, 2), "labels": [torch.tensor([1])]},
                "input_ids must be a list of tensors",
            ),
            ({"input_ids": ["a"], "labels": [torch.tensor([1])]}, "Elements in input_ids must be tensors"),
            (
                {"input_ids": [torch.tensor([1])], "attention_mask": 1, "labels": [torch.tensor([1])]},
                "attention_mask must be a list of tensors - got <class 'int'>",
            ),
            ({"texts": "a"}, "'text' must be a list of strings - got <class 'str'>"),
            ({"texts": [1]}, "Elements in 'text' must be strings - got <class 'int'>"),
            ({"texts": ["a"], "texts_labels": "a"}, "'text_labels' must be a list of strings"),
            ({"texts": ["a"], "texts_labels": [1]}, "Elements in 'text_labels' must be strings"),
        ],
    )
    def test_refused(self, tmp_path, given, message):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path).step(**given)

    def test_labels_of_an_encoder_decoder_model(self, tmp_path):
        found = trainer(tmp_path, parts.seq2seq())
        with pytest.raises(ValueError, match="When using an encoder-decoder architecture"):
            found.step(texts=["a"])
        with pytest.warns(UserWarning, match=r"`texts_labels`: TRL 0.7.11 takes the `texts` themselves"):
            found.step(texts=["a"], texts_labels=["b"])

    def test_texts_win(self, tmp_path):
        with pytest.warns(UserWarning, match="Both 'input_ids' and 'texts' are provided"):
            trainer(tmp_path).step(input_ids=tensors(), texts=runs.TEXTS[:2])

    def test_samples_beyond_the_length_are_told(self, tmp_path):
        found = trainer(tmp_path, max_length=3)
        with pytest.warns(UserWarning, match=r"`max_length=3`.*4 are given; 1 are left out"):
            found.step(input_ids=tensors(), labels=tensors())
        found = trainer(tmp_path, max_length=3, truncation_mode="middle")
        with pytest.raises(ValueError, match="Unknown truncation mode: middle"):
            found.step(input_ids=tensors(2), labels=tensors(2))
