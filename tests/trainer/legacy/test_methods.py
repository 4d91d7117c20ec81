"""What some release of transformers has and the installed one may lack."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.integrations import deepspeed
from transformers.trainer_callback import TrainerState

import compat
from compat.trainer.legacy.renamed import accept_renamed
from tests.parity.parts.models import gpt2, t5
from tests.small import Regression, arguments, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

HAS_IPEX = hasattr(transformers.Trainer, "ipex_optimize_model")
HAS_JIT = hasattr(transformers.Trainer, "torch_jit_model_eval")


class Words:
    """Stands for a tokenizer."""

    def save_pretrained(self, folder: str) -> None:
        """Nothing to save."""


def build(folder: Path, kind: type = compat.Trainer, **parts: Any) -> Any:
    return kind(model=Regression(), args=arguments(folder), train_dataset=rows(), **parts)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings in transformers' log."""
    lines: list[str] = []
    for name in ("transformers.trainer", "transformers.trainer_utils"):
        logger = transformers.utils.logging.get_logger(name)
        monkeypatch.setattr(logger, "warning", lambda text, *_: lines.append(text))
        monkeypatch.setattr(logger, "warning_once", lambda text, *_: lines.append(text), raising=False)
    return lines


def test_tokenizer_is_an_older_name_of_processing_class(tmp_path: Path) -> None:
    words = Words()
    with pytest.warns(FutureWarning, match="`tokenizer` is deprecated.*Use `processing_class`") as caught:
        run = build(tmp_path, tokenizer=words)
    assert run.processing_class is words
    assert [warning.filename for warning in caught] == [__file__]


def test_tokenizer_of_the_trainer_that_generates(tmp_path: Path) -> None:
    words, args = Words(), compat.Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.warns(FutureWarning, match="Use `processing_class`") as caught:
        run = compat.Seq2SeqTrainer(model=t5(), args=args, tokenizer=words)
    assert run.processing_class is words
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("kind", [compat.Trainer, compat.Seq2SeqTrainer])
def test_two_names_for_one_thing_are_refused(tmp_path: Path, kind: type) -> None:
    with pytest.raises(ValueError, match="Both `tokenizer` and `processing_class` are set"):
        build(tmp_path, kind, tokenizer=Words(), processing_class=Words())


def test_no_tokenizer_is_no_word_about_it(tmp_path: Path) -> None:
    assert build(tmp_path, tokenizer=None).processing_class is None


def test_an_older_name_that_is_not_given_changes_nothing() -> None:
    values = {"new": 1}
    accept_renamed(values, "old", "new", "f")
    assert values == {"new": 1}


def test_tokenizer_can_be_read_and_set(tmp_path: Path, log: list[str]) -> None:
    run, words = build(tmp_path), Words()
    run.tokenizer = words
    assert run.tokenizer is run.processing_class is words
    assert len(log) == 2
    assert all("Trainer.tokenizer" in line and "processing_class" in line for line in log)


def test_model_path_is_an_older_name_of_resume_from_checkpoint(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **options)
    whole.train()
    rest = trainer(tmp_path, **options)
    with pytest.warns(FutureWarning, match="`model_path` is deprecated.*Use `resume_from_checkpoint`"):
        rest.train(model_path=str(tmp_path / "checkpoint-2"))
    assert weights(rest) == weights(whole)
    assert losses(rest) == losses(whole)


def test_other_keywords_of_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument.*resume"):
        trainer(tmp_path).train(resume="checkpoint-2")


def test_num_tokens(tmp_path: Path, log: list[str]) -> None:
    run = trainer(tmp_path)
    batches = [{"input_ids": torch.zeros(2, 5)}, {"input_ids": torch.zeros(1, 7)}]
    assert run.num_tokens(batches) == 17
    assert compat.Trainer.num_tokens(batches, max_steps=4) == 40
    assert log == []
    assert run.num_tokens([{"x": torch.zeros(1)}]) == 0
    assert len(log) == 1


def test_num_examples(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.num_examples(run.get_train_dataloader()) == 12
    assert run.num_examples(run.get_eval_dataloader()) == 5
    assert run.num_examples([None] * 7) == 14  # no dataset: batches of two


def test_floating_point_ops(tmp_path: Path) -> None:
    model = gpt2()
    run = compat.Trainer(model=model, args=arguments(tmp_path))
    parameters = sum(p.numel() for n, p in model.named_parameters() if "wte" not in n and "wpe" not in n)
    assert run.floating_point_ops({"input_ids": torch.zeros(2, 5)}) == 6 * 10 * parameters
    assert trainer(tmp_path).floating_point_ops({"x": torch.zeros(2, 4)}) == 0


def test_trainable_parameters_and_groups_of_the_optimizer(tmp_path: Path) -> None:
    run = trainer(tmp_path, learning_rate=0.25)
    run.model.out.bias.requires_grad_(False)
    assert run.get_num_trainable_parameters() == 4 * 3 + 3 + 3
    for method in (run.get_learning_rates, run.get_optimizer_group):
        with pytest.raises(ValueError, match="make sure you have setup the optimizer before"):
            method()
    run.create_optimizer()
    assert run.get_learning_rates() == [0.25, 0.25]
    decayed, others = run.get_optimizer_group()
    assert [len(decayed), len(others)] == [2, 1]
    group = run.get_optimizer_group(run.model.hidden.weight)
    assert group is run.optimizer.param_groups[0]


def test_the_optimizer_of_another_model(tmp_path: Path) -> None:
    run, other = trainer(tmp_path), Regression()
    own = run.model
    optimizer = run.create_optimizer(other)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in other.parameters()}
    assert run.model is own


@pytest.mark.skipif(HAS_JIT, reason="this release traces")
def test_tracing_is_left_out_and_said_so(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="torch_jit_model_eval.*returned as it is") as caught:
        assert run.torch_jit_model_eval(run.model, None) is run.model
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.skipif(not HAS_JIT, reason="this release does not trace")
def test_tracing_is_the_release_s_own(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.torch_jit_model_eval(run.model, None, training=True) is run.model
    assert compat.Trainer.torch_jit_model_eval is transformers.Trainer.torch_jit_model_eval


@pytest.mark.skipif(HAS_IPEX, reason="this release has IPEX")
def test_ipex_is_left_out_and_said_so(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="ipex_optimize_model.*returned as it is"):
        assert run.ipex_optimize_model(run.model, training=True, dtype=torch.bfloat16) is run.model


def test_the_legacy_prediction_loop(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    legacy = run.prediction_loop(run.get_eval_dataloader(), "Evaluation", metric_key_prefix="old")
    assert legacy.metrics["old_loss"] == run.evaluate()["eval_loss"]
    assert legacy.num_samples == 5


def test_arguments_reach_a_deepspeed_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Configuration:
        """Stands for HF's, which needs DeepSpeed to be there."""

        def __init__(self, config: dict[str, Any]) -> None:
            self.config = config

        def trainer_config_process(self, args: Any, auto_find_batch_size: bool = False) -> None:
            self.config.update(batch=args.per_device_train_batch_size, found=auto_find_batch_size)

    monkeypatch.setattr(deepspeed, "HfTrainerDeepSpeedConfig", Configuration)
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config={"batch": "auto"}), deepspeed_config=None)
    run = trainer(tmp_path, per_device_train_batch_size=3)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    monkeypatch.setattr(run, "accelerator", SimpleNamespace(state=state))
    run.propagate_args_to_deepspeed(auto_find_batch_size=True)
    assert plugin.deepspeed_config is plugin.hf_ds_config.config
    assert plugin.deepspeed_config == {"batch": 3, "found": True}


def test_a_checkpoint_of_other_arguments_is_told(tmp_path: Path, log: list[str]) -> None:
    run = trainer(tmp_path, logging_steps=3)
    state = TrainerState(logging_steps=3, eval_steps=500, save_steps=500, train_batch_size=2)
    run.compare_trainer_and_checkpoint_args(run.args, state)
    assert log == []
    state.logging_steps, state.train_batch_size = 9, 8
    run.compare_trainer_and_checkpoint_args(run.args, state)
    assert len(log) == 1
    assert "logging_steps: 3 (from args) != 9" in log[0]
    assert "per_device_train_batch_size: 2 (from args) != 8" in log[0]


def test_sizes_of_parallelism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    assert (run.get_sp_size(), run.get_cp_size(), run.get_tp_size()) == (1, 1, 1)
    shape = SimpleNamespace(sp_size=2, cp_size=4, tp_size=1)
    monkeypatch.setattr(run, "accelerator", SimpleNamespace(parallelism_config=shape))
    assert (run.get_sp_size(), run.get_cp_size()) == (2, 4)


def test_the_end_leaves_the_process_group(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.end()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    assert torch.distributed.is_initialized()
    run.end()
    assert not torch.distributed.is_initialized()


def test_the_end_finishes_trackers(tmp_path: Path) -> None:
    run, finished = trainer(tmp_path), []
    run.accelerator.trackers = [SimpleNamespace(finish=lambda: finished.append(True))]
    run.end()
    assert finished == [True]


@pytest.mark.parametrize(
    ("options", "of_4", "of_5"),
    [
        (
            {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4},
            (2, 2, 12, 24, True, 6, 4),
            (2, 2, 12, 24, 8, 6, 4),
        ),
        (
            {"max_steps": 3, "gradient_accumulation_steps": 4},
            (2, 2, 12, 24, False, 6, 3),
            (2, 2, 12, 24, 8, 6, 3),
        ),
    ],
    ids=["epochs", "steps"],
)
def test_the_length_of_a_run(tmp_path: Path, options: dict[str, Any], of_4: tuple, of_5: tuple) -> None:
    run = trainer(tmp_path, **options)
    loader = run.get_train_dataloader()
    assert tuple(run.set_initial_training_values(run.args, loader, 8)) == of_4
    assert tuple(run.set_initial_training_values(run.args, loader)) == of_5


def test_the_length_of_a_run_without_end(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(rows())

    run = trainer(tmp_path, train_dataset=Stream(), max_steps=3, gradient_accumulation_steps=2)
    loader = run.get_train_dataloader()
    of_4 = run.set_initial_training_values(run.args, loader, total_train_batch_size=10)
    assert tuple(of_4)[1:] == (3, 30, 30, False, None, 3)
    assert tuple(run.set_initial_training_values(run.args, loader))[1:] == (3, 12, 12, 4, 6, 3)


def test_metrics_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path)
    metrics = {"train_runtime": 3661.25, "total_flos": 2.0**31, "train_loss": 0.123456, "train_samples": 12}
    told = {"train_runtime": "1:01:01.25", "total_flos": "2GF", "train_loss": 0.1235, "train_samples": 12}
    assert run.metrics_format(metrics) == told
    run.log_metrics("train", metrics)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "***** train metrics *****"
    assert [line.split() for line in printed[1:]] == [[k, "=", str(v)] for k, v in sorted(told.items())]


def test_metrics_are_saved_and_gathered(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save_metrics("train", {"train_loss": 1.5})
    run.save_metrics("eval", {"eval_loss": 2.5})
    run.save_metrics("test", {"test_loss": 3.5}, combined=False)
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert read == {
        "all_results": {"train_loss": 1.5, "eval_loss": 2.5},
        "train_results": {"train_loss": 1.5},
        "eval_results": {"eval_loss": 2.5},
        "test_results": {"test_loss": 3.5},
    }


def test_the_state_is_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.train()
    run.save_state()
    saved = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (saved["global_step"], saved["max_steps"]) == (2, 2)
    assert [entry["loss"] for entry in saved["log_history"][:2]] == losses(run)


def test_names_of_releases_before_are_there(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    assert (run.use_apex, run.use_cpu_amp, run.is_tp_enabled) == (False, False, False)
    assert run._nested_gather(torch.ones(2)).tolist() == [1, 1]
    run.train()
    steps = [path.rpartition("-")[2] for path in run._sorted_checkpoints(output_dir=str(tmp_path))]
    assert steps == ["1", "2", "3"]
    run.args.save_total_limit = 1
    run._rotate_checkpoints(output_dir=str(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_nothing_of_it_warns_where_it_is_not_used(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1).train()
    assert [str(w.message) for w in caught if "deprecated for" in str(w.message)] == []
