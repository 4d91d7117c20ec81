from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers

import compat
from compat.trl.trainer.dpo_trainer import DPOTrainer
from tests.trl import runs
from tests.trl.setups import parts
from tests.trl.setups.dpo import PAIRS


def arguments(folder, **given):
    return compat.TrainingArguments(
        **runs.options(str(folder), **{"max_steps": 2, "remove_unused_columns": False, **given})
    )


def trainer(folder, given=None, kind=DPOTrainer, **options):
    rows = datasets.Dataset.from_dict(PAIRS)
    defaults = {
        "model": options.pop("model", None) or parts.causal(),
        "args": arguments(folder, **(given or {})),
        "train_dataset": rows,
        "eval_dataset": rows,
        "tokenizer": parts.tokenizer(),
        "max_length": 24,
        "max_prompt_length": 8,
    }
    return kind(**{**defaults, **options})


def log_sigmoid(value):
    return -math.log1p(math.exp(-value))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


class TestLosses:
    """Held against the formulas of the papers, in float64."""

    CHOSEN, REJECTED = [-3.0, -8.5, -2.0], [-4.0, -6.0, -9.0]
    REF_CHOSEN, REF_REJECTED = [-3.5, -7.0, -4.0], [-3.0, -7.5, -5.0]
    BETA = 0.3

    def loss_of(self, found, kind, smoothing=0.0):
        found.loss_type, found.beta, found.label_smoothing = kind, self.BETA, smoothing
        columns = (self.CHOSEN, self.REJECTED, self.REF_CHOSEN, self.REF_REJECTED)
        return found.dpo_loss(*(torch.tensor(column, dtype=torch.float64) for column in columns))

    @property
    def ratios(self):
        return [
            [one - other for one, other in zip(logps, references, strict=True)]
            for logps, references in ((self.CHOSEN, self.REF_CHOSEN), (self.REJECTED, self.REF_REJECTED))
        ]

    def test_each_kind(self, tmp_path):
        found, beta = trainer(tmp_path), self.BETA
        chosen, rejected = self.ratios
        margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
        expected = {
            "sigmoid": [-log_sigmoid(beta * h) for h in margins],
            "hinge": [max(0.0, 1 - beta * h) for h in margins],
            "ipo": [(h - 1 / (2 * beta)) ** 2 for h in margins],
        }
        for kind, values in expected.items():
            losses, *_ = self.loss_of(found, kind)
            assert losses.tolist() == pytest.approx(values, rel=1e-12)
        losses, *_ = self.loss_of(found, "sigmoid", smoothing=0.1)
        smoothed = [-0.9 * log_sigmoid(beta * h) - 0.1 * log_sigmoid(-beta * h) for h in margins]
        assert losses.tolist() == pytest.approx(smoothed, rel=1e-12)
        # KTO: each side against the divergence of the other one, which is no less than zero.
        of_chosen, of_rejected = (max(0.0, sum(ratios) / 3) for ratios in (chosen, rejected))
        losses, *_ = self.loss_of(found, "kto_pair")
        pairs = [1 - sigmoid(beta * (r - of_rejected)) for r in chosen]
        pairs += [1 - sigmoid(beta * (of_chosen - r)) for r in rejected]
        assert losses.tolist() == pytest.approx(pairs, rel=1e-12)

    def test_rewards(self, tmp_path):
        _, *rewards = self.loss_of(trainer(tmp_path), "sigmoid")
        for found, ratios in zip(rewards, self.ratios, strict=True):
            assert found.tolist() == pytest.approx([self.BETA * ratio for ratio in ratios])

    def test_a_reference_that_finds_all_answers_alike(self, tmp_path):
        found = trainer(tmp_path, reference_free=True)
        losses, *_ = self.loss_of(found, "hinge")
        margins = [one - other for one, other in zip(self.CHOSEN, self.REJECTED, strict=True)]
        assert losses.tolist() == pytest.approx([max(0.0, 1 - self.BETA * h) for h in margins])

    def test_an_unknown_kind_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"Unknown loss type: kto. .*'sigmoid', 'hinge', 'ipo', 'kto_pair'"
        ):
            self.loss_of(trainer(tmp_path), "kto")

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match=r"same shape: they are \(1, 2\) and \(1, 3\)"):
            DPOTrainer.get_batch_logps(torch.zeros(1, 2, 4), torch.zeros(1, 3, dtype=torch.long))


class TestRows:
    def test_a_token_of_both_belongs_to_the_answer(self, tmp_path):
        class Merging:
            """A token for each letter, and one for "ab"."""

            bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

            def __call__(self, text, **options):
                ids = [99 if part == "*" else ord(part) for part in text.replace("ab", "*")]
                return {"input_ids": ids, "attention_mask": [1] * len(ids)}

        found = trainer(tmp_path)
        found.tokenizer = Merging()
        split = found.build_tokenized_answer("xa", "bc")
        assert split["prompt_input_ids"] == [ord("x")]
        assert split["input_ids"] == [99, ord("c")]
        row = found.tokenize_row({"prompt": "xa", "chosen": "bc", "rejected": "cc"})
        assert row["prompt_input_ids"] == [1, ord("x")]
        assert row["chosen_input_ids"] == [1, ord("x"), 99, ord("c"), 2]
        assert row["rejected_input_ids"] == [1, ord("x"), ord("a"), ord("c"), ord("c"), 2]
        assert row["chosen_labels"] == [-100, -100, 99, ord("c"), 2]
        with pytest.raises(ValueError, match="might only differ on the last token"):
            found._rows.tokenize(
                {"prompt": "xa", "chosen": "bc", "rejected": "cc"},
                lambda prompt, answer: {
                    "prompt_input_ids": [5, 6, 7] if answer == "bc" else [8, 9, 7],
                    "prompt_attention_mask": [1, 1, 1],
                    "input_ids": [3],
                    "attention_mask": [1],
                },
            )

    def test_a_tokenizer_without_special_tokens(self, tmp_path):
        tokenizer = parts.tokenizer()
        tokenizer.bos_token = None
        row = trainer(tmp_path, tokenizer=tokenizer).train_dataset[0]
        assert row["prompt_input_ids"] == tokenizer(PAIRS["prompt"][0])["input_ids"][-8:]

    def test_parts_that_are_no_texts_are_refused(self, tmp_path):
        rows = datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": [["c"]]})
        with pytest.raises(ValueError, match="rejected should be an str but got <class 'list'>"):
            trainer(tmp_path, train_dataset=rows)

    def test_an_unknown_end_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"Unknown truncation mode: middle.*\['keep_start', 'keep_end'\]"
        ):
            trainer(tmp_path, truncation_mode="middle", max_length=8)

    def test_overrides_see_each_row(self, tmp_path):
        class Own(DPOTrainer):
            def build_tokenized_answer(self, prompt, answer):
                return super().build_tokenized_answer(prompt, answer.upper())

        found = trainer(tmp_path, kind=Own, max_length=200, max_prompt_length=100)
        tokens = found.tokenizer(PAIRS["chosen"][0].upper())["input_ids"]
        assert found.train_dataset[0]["chosen_input_ids"][-len(tokens) - 1 : -1] == tokens

    def test_decoder_inputs_of_the_model(self, tmp_path):
        model = parts.seq2seq()
        found = trainer(tmp_path, model=model, max_target_length=6)
        row = found.tokenize_row({name: texts[0] for name, texts in PAIRS.items()}, model)
        assert row["chosen_decoder_input_ids"] == [0, *row["chosen_labels"][:-1]]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"model_init_kwargs": {}},
                "You passed model_kwargs to the DPOTrainer. But your model is already",
            ),
            ({"ref_model_init_kwargs": {}}, "You passed ref_model_kwargs.*your ref_model is already"),
            ({"tokenizer": None}, "tokenizer must be specified"),
            (
                {"generate_during_eval": True},
                "`generate_during_eval=True` requires Weights and Biases to be installed"
                ". Please install `wandb` to resolve",
            ),
        ],
    )
    def test_refused(self, tmp_path, monkeypatch, options, message):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **options)

    def test_nothing_to_tell_the_architecture_by(self, tmp_path):
        with pytest.raises(ValueError, match="you need to pass the parameter is_encoder_decoder"):
            DPOTrainer(model_init=parts.causal, args=arguments(tmp_path), tokenizer=parts.tokenizer())

    def test_a_model_that_is_made_later(self, tmp_path):
        rows = datasets.Dataset.from_dict(PAIRS)
        found = DPOTrainer(
            model_init=parts.causal,
            is_encoder_decoder=False,
            args=arguments(tmp_path),
            train_dataset=rows,
            tokenizer=parts.tokenizer(),
            max_length=24,
            max_prompt_length=8,
        )
        assert found.ref_model is not found.model
        assert not any(p.requires_grad for p in found.ref_model.parameters())

    def test_what_is_left_out_is_told(self, tmp_path):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = trainer(
                tmp_path,
                {"remove_unused_columns": True},
                model=parts.seq2seq(),
                max_length=None,
                max_prompt_length=None,
                loss_type="ipo",
                label_smoothing=0.1,
            )
        told = " ".join(str(one.message) for one in said)
        for name in (
            "`max_length`",
            "`max_prompt_length`",
            "`max_target_length`",
            "remove_unused_columns=False",
        ):
            assert name in told
        assert "does not support label smoothing" in told
        assert (found.max_length, found.max_prompt_length, found.max_target_length) == (512, 128, 128)
        assert found.args.remove_unused_columns is False

    def test_another_collator_is_told(self, tmp_path):
        collator = compat.trl.trainer.utils.DPODataCollatorWithPadding()
        found = trainer(tmp_path, data_collator=collator)
        with pytest.warns(
            UserWarning, match="compute_loss is only implemented for DPODataCollatorWithPadding"
        ):
            found.train()
        with pytest.warns(UserWarning, match="prediction_step is only implemented for DPODataCollator"):
            found.evaluate()

    def test_dropout(self, tmp_path):
        def dropout(found):
            return {m.p for m in found.model.modules() if isinstance(m, torch.nn.Dropout)}

        model = parts.causal()
        model.transformer.drop.p = 0.5
        assert dropout(trainer(tmp_path, model=model, disable_dropout=False)) == {0.0, 0.5}
        assert dropout(trainer(tmp_path, model=model)) == {0}

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    def test_adapters(self, tmp_path, monkeypatch):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match=r"both a ref_model and a peft_config.*`ref_model=None`"):
            trainer(tmp_path, ref_model=parts.causal(), peft_config=config)
        found = trainer(tmp_path, peft_config=config)
        assert found.ref_model is None
        with found.null_ref_context():
            assert found.model.base_model.model.transformer.h[0].attn.c_attn.disable_adapters
        assert not found.model.base_model.model.transformer.h[0].attn.c_attn.disable_adapters
        before = {n: p.detach().clone() for n, p in found.model.named_parameters()}
        found.train()
        changed = {n for n, p in found.model.named_parameters() if not torch.equal(p, before[n])}
        # B is zero at first, so that A learns from the second step on.
        assert changed == {n for n in before if "lora_" in n}
        # An adapter that is there already becomes part of the model.
        again = trainer(tmp_path, model=found.model, peft_config=config)
        assert sum("lora_A" in n for n, _ in again.model.named_parameters()) == 2
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match="PEFT is not installed"):
            trainer(tmp_path, peft_config=config)


class TestReference:
    def test_asked_once(self, tmp_path):
        asked = []

        class Own(DPOTrainer):
            def compute_reference_log_probs(self, padded_batch):
                asked.append(len(padded_batch["prompt"]))
                return super().compute_reference_log_probs(padded_batch)

        rows = datasets.Dataset.from_dict(PAIRS)
        found = trainer(
            tmp_path, kind=Own, precompute_ref_log_probs=True, eval_dataset={"a": rows, "b": rows}
        )
        found.evaluate()
        found.evaluate()
        assert asked == [3, 1, 3, 1]
        found.train()
        assert asked[4:] == [2, 2]
        logps = found.train_dataset["reference_chosen_logps"]
        batch = found.data_collator([found.train_dataset[0]])
        with torch.no_grad():
            expected, *_ = found.concatenated_forward(parts.causal(), batch)
        assert logps[0] == pytest.approx(expected.item(), rel=1e-5)
        with pytest.warns(UserWarning, match="the model has been trained already"):
            found.evaluate(found._tokenized(rows))

    def test_nothing_to_evaluate(self, tmp_path):
        with pytest.raises(ValueError, match="evaluation requires an eval_dataset"):
            trainer(tmp_path, eval_dataset=None).get_eval_dataloader()


class TestSamples:
    def test_both_methods_of_one_name(self, tmp_path):
        class Own(DPOTrainer):
            def get_batch_samples(self, model, batch):
                texts, others = super().get_batch_samples(model, batch)
                return [text.upper() for text in texts], others

        found = trainer(tmp_path, {"gradient_accumulation_steps": 2}, kind=Own)
        assert found.train().global_step == 2
        batch = next(iter(found.get_eval_dataloader()))
        batch["reference_output"] = batch["prompt_input_ids"]
        policy, reference = found.get_batch_samples(found.model, batch)
        assert len(policy) == 3
        assert policy[0].startswith(PAIRS["prompt"][0].upper())
        assert reference == found.tokenizer.batch_decode(batch["prompt_input_ids"], skip_special_tokens=True)

    def test_shown_in_each_evaluation(self, tmp_path, monkeypatch):
        tables = []
        wandb = SimpleNamespace(
            Table=lambda columns, rows: tables.append((columns, rows)) or "a table",
            __spec__=SimpleNamespace(),
        )
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        logged = []

        class Look(transformers.TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                logged.append(dict(logs))

        found = trainer(
            tmp_path, {"per_device_eval_batch_size": 9}, generate_during_eval=True, callbacks=[Look()]
        )
        metrics = found.evaluate()
        ((columns, shown),) = tables
        assert columns == ["Prompt", "Policy", "Ref Model"]
        assert sorted(prompt for prompt, *_ in shown) == sorted(PAIRS["prompt"])
        assert logged[0]["game_log"] == "a table"
        assert all("game_log" not in entry for entry in found.state.log_history)
        assert metrics["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)

    def test_means_of_what_was_kept(self, tmp_path):
        found = trainer(tmp_path)
        found.store_metrics({"a": 1.0}, "train")
        found.store_metrics({"a": torch.tensor(2.0)}, "train")
        found.store_metrics({"eval_a": 5.0}, "eval")
        found.log({"loss": 1.0})
        found.log({"eval_loss": 1.0})
        found.log({"loss": 1.0})
        kept = [{n: v for n, v in entry.items() if n.endswith("a")} for entry in found.state.log_history]
        assert kept == [{"a": 1.5}, {"eval_a": 5.0}, {}]
