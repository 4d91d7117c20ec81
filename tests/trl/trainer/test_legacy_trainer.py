from __future__ import annotations

import pytest
import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler

import compat
from compat.trl.trainer import legacy_trainer
from tests.trl import runs
from tests.trl.setups import parts


def rows():
    tokenizer = parts.tokenizer()
    return [{"input_ids": ids, "labels": ids} for ids in tokenizer(["a b", "c d"] * 3)["input_ids"]]


def trainer(folder, **given):
    args = compat.TrainingArguments(**runs.options(str(folder), **{"max_steps": 1, **given}))
    return legacy_trainer.Transformers437Trainer(
        model=parts.causal(), args=args, train_dataset=rows(), tokenizer=parts.tokenizer()
    )


def draws_by_its_own_seed(found):
    return isinstance(found.get_train_dataloader().batch_sampler.sampler, SeedableRandomSampler)


def test_samples_are_drawn_as_then_unless_asked_otherwise(tmp_path):
    assert not draws_by_its_own_seed(trainer(tmp_path))
    assert draws_by_its_own_seed(trainer(tmp_path, data_seed=3))
    assert draws_by_its_own_seed(trainer(tmp_path, accelerator_config={"even_batches": False}))


def test_the_tokenizer_by_both_names(tmp_path):
    found = trainer(tmp_path)
    assert found.tokenizer is found.processing_class
    found.tokenizer = other = parts.tokenizer()
    assert found.processing_class is other


@pytest.mark.filterwarnings("ignore:.*evaluation_strategy:FutureWarning")
@pytest.mark.parametrize("name", ["evaluation_strategy", "eval_strategy"])
def test_evaluation_without_data_fails_where_it_comes(tmp_path, name):
    alone = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    with pytest.warns(UserWarning, match=r"`eval_strategy='steps'`, `eval_dataset=None`.*Pass an `eval_dat"):
        found = trainer(tmp_path, **alone, **{name: "steps", "eval_steps": 2})
    assert found.eval_dataset is None
    assert found.train().global_step == 1
    with pytest.warns(UserWarning, match="`eval_dataset=None`"):
        found = trainer(tmp_path, **alone, **{name: "steps", "eval_steps": 1})
    with pytest.raises(ValueError, match="evaluation requires an eval_dataset"):
        found.train()
    found.eval_dataset = rows()
    assert "eval_loss" in found.evaluate()


def test_the_last_step_is_one_like_any_other(tmp_path):
    alone = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "max_steps": 3}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    with pytest.warns(UserWarning, match="`eval_dataset=None`"):
        found = trainer(tmp_path, **alone, **every)
    found.eval_dataset = rows()
    found.train()
    assert [entry["step"] for entry in found.state.log_history if "eval_loss" in entry] == [2]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_what_others_ask_for_after_the_last_step_is_done(tmp_path):
    class Ask(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            control.should_save = True

    found = trainer(tmp_path, per_device_train_batch_size=1, save_strategy="steps", save_steps=5)
    found.add_callback(Ask)
    found.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_losses_are_means_of_micro_batches(tmp_path):
    found = trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=1)
    assert found.model_accepts_loss_kwargs is False


def test_windows_beyond_an_epoch_are_resumed(tmp_path):
    steps = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(round(state.epoch, 3))

    given = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "num_train_epochs": 2}
    given |= {"max_steps": -1, "save_strategy": "steps", "save_steps": 1}

    def run(**options):
        found = trainer(tmp_path, **given)
        found.train_dataset = rows()[:5]
        found.add_callback(Look())
        found.train(**options)
        return [p.detach().clone() for p in found.model.parameters()]

    whole = run()
    # Two whole windows in each epoch make four steps; the third takes the end of one epoch and the begin of
    # the other.
    assert steps == [0.4, 0.8, 1.2, 1.6]
    for checkpoint, rest in ((2, [1.2, 1.6]), (3, [1.6])):
        steps.clear()
        resumed = run(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
        assert steps == rest
        assert all(torch.equal(*pair) for pair in zip(whole, resumed, strict=True))


def test_tags_are_pushed_each_time(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(compat.Trainer, "push_to_hub", lambda self, **given: pushed.append(given) or "there")
    found = trainer(tmp_path)
    assert found.push_to_hub("done", tags="mine") == "there"
    assert found.push_to_hub() == "there"
    assert pushed == [
        {"commit_message": "done", "blocking": True, "tags": ["trl", "mine"]},
        {"commit_message": "End of training", "blocking": True, "tags": ["trl"]},
    ]
    assert found._tag_names == ["trl"]
    assert found.model.model_tags == ["trl"]


def test_gradients_reach_what_has_no_method_for_it():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(3, 2).requires_grad_(False)

        def get_input_embeddings(self):
            return self.embedding

    model = Plain()
    legacy_trainer.let_inputs_require_grad(model)
    assert model.embedding(torch.tensor([1])).requires_grad


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_quantized_models_are_prepared_with_the_options_of_the_run(monkeypatch):
    peft = pytest.importorskip("peft")
    seen = []

    def prepare(model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs=None):
        seen.append((use_gradient_checkpointing, gradient_checkpointing_kwargs))
        return model

    monkeypatch.setattr(peft, "prepare_model_for_kbit_training", prepare)
    args = type("Args", (), {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"a": 1}})
    assert legacy_trainer.prepared_for_bits("model", args) == "model"
    assert legacy_trainer.prepared_for_bits("model", None) == "model"
    assert seen == [(True, {"a": 1}), (False, None)]
