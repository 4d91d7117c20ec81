"""Patches of HF's and accelerate's classes: they act, or the run is refused."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
import transformers
from transformers import trainer as hf_trainer

import compat
from compat.errors import ArgumentError, CompatError
from compat.upstream.environment import contained
from compat.upstream.patched import FILES, REPLACED, TARGETS, Handling, Target, is_patched
from tests.small import Regression, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

THERE = [target for target in TARGETS if hasattr(target.owner, target.name)]
REFUSED = [target for target in THERE if target.handling is Handling.REFUSED]


def patch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: list[str], **options: bool) -> None:
    """Put a function that calls the original in its place."""
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    wraps = functools.wraps(original) if options.get("wraps", True) else lambda one: one
    monkeypatch.setattr(owner, name, wraps(patched))


def test_nothing_is_taken_for_patched_that_is_not() -> None:
    assert [target.where for target in THERE if is_patched(target.owner, target.name)] == []
    assert {target.where for target in REFUSED} > {
        "transformers.Trainer._inner_training_loop",
        "accelerate.Accelerator.prepare",
        "accelerate.AcceleratedOptimizer.step",
        "transformers.trainer.OPTIMIZER_NAME",
    }


@pytest.mark.parametrize("target", REFUSED, ids=lambda target: target.where)
def test_a_patch_of_what_is_not_called_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    if target.name in FILES:
        monkeypatch.setattr(target.owner, target.name, "other")
        written = "'other'"
    else:
        patch(monkeypatch, target.owner, target.name, [])
        written = __file__
    assert is_patched(target.owner, target.name)
    with pytest.raises(ArgumentError) as caught:
        trainer(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"`{target.where}`: patched (")
    assert written in said
    assert target.instead in said


def test_a_patch_that_is_made_after_the_trainer_is_refused_in_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    patch(monkeypatch, transformers.Trainer, "_save_checkpoint", [], wraps=False)
    with pytest.raises(ArgumentError, match=r"`transformers\.Trainer\._save_checkpoint`: patched"):
        run.train()


CALLED = [
    *("training_step", "compute_loss", "log", "train", "evaluate", "prediction_step", "create_optimizer"),
    *("_prepare_inputs", "_save", "save_model", "get_train_dataloader", "_maybe_log_save_evaluate"),
]


@pytest.mark.parametrize("name", CALLED)
def test_a_patch_of_what_is_called_is_called_as_often_as_under_hf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[str] = []
    patch(monkeypatch, transformers.Trainer, name, calls)
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    counts = []
    for kind in (transformers.Trainer, compat.Trainer):
        calls.clear()
        train(kind, tmp_path / kind.__module__, **options)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def train(kind: Any, folder: Path, **options: Any) -> Any:
    """Train under HF's arguments or ours, as the trainer is HF's or ours."""
    arguments = transformers.TrainingArguments if kind is transformers.Trainer else compat.TrainingArguments
    # HF's arguments leave variables behind.
    with contained():
        given = arguments(
            str(folder), max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to=[], **options
        )
        torch.manual_seed(0)
        run = kind(model=Regression(), args=given, train_dataset=rows(), eval_dataset=rows(5))
        run.train()
    return run


SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}


@pytest.mark.parametrize("wraps", [True, False])
def test_gradients_are_there_for_a_patched_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wraps: bool
) -> None:
    original = transformers.Trainer.training_step

    def halving(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        for parameter in self.model.parameters():
            parameter.grad.mul_(0.5)
        return loss

    plain = weights(train(compat.Trainer, tmp_path / "plain", **SGD))
    monkeypatch.setattr(
        transformers.Trainer, "training_step", functools.wraps(original)(halving) if wraps else halving
    )
    theirs = weights(train(transformers.Trainer, tmp_path / "theirs", **SGD))
    ours = weights(train(compat.Trainer, tmp_path / "ours", **SGD))
    assert ours == theirs != plain


def test_a_patched_backward_runs_the_backward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = accelerate.Accelerator.backward

    def doubled(self: Any, loss: Any, **kwargs: Any) -> None:
        original(self, 2 * loss, **kwargs)

    plain = weights(train(compat.Trainer, tmp_path / "plain", **SGD))
    monkeypatch.setattr(accelerate.Accelerator, "backward", doubled)
    theirs = weights(train(transformers.Trainer, tmp_path / "theirs", **SGD))
    ours = weights(train(compat.Trainer, tmp_path / "ours", **SGD))
    assert ours == theirs != plain


@pytest.mark.parametrize("name", ["denumpify_detensorize", "find_batch_size", "EvalLoopContainer"])
def test_functions_are_looked_up_where_hf_looks_them_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[str] = []
    original = getattr(hf_trainer, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(hf_trainer, name, patched)
    trainer(tmp_path).evaluate(rows())
    assert calls


@pytest.mark.skipif(not hasattr(hf_trainer, "rotate_checkpoints"), reason="a method in this release")
def test_a_patched_rotation_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def keep_all(output_dir: str, save_total_limit: int | None = None, **_: Any) -> None:
        kept.append(save_total_limit)

    monkeypatch.setattr(hf_trainer, "rotate_checkpoints", keep_all)
    trainer(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1).train()
    assert kept == [1, 1, 1]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


@pytest.mark.parametrize(
    "name", [name for name in vars(compat.Trainer) if name in vars(transformers.Trainer) if name in REPLACED]
)
def test_the_source_of_a_method_is_hf_s(name: str) -> None:
    ours, theirs = getattr(compat.Trainer, name), getattr(transformers.Trainer, name)
    assert inspect.getsource(ours) == inspect.getsource(theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)


def test_a_constructor_that_hides_its_signature(tmp_path: Path) -> None:
    script = tmp_path / "early.py"
    script.write_text(
        "import transformers\n"
        "original, seen = transformers.Trainer.__init__, []\n"
        "def __init__(self, *args, **kwargs):\n"
        "    seen.append(sorted(kwargs))\n"
        "    original(self, *args, **kwargs)\n"
        "transformers.Trainer.__init__ = __init__\n"
        "import compat\n"
        "compat.install()\n"
        "import torch\n"
        "args = transformers.TrainingArguments('out', use_cpu=True, report_to='none')\n"
        "run = transformers.Trainer(torch.nn.Linear(1, 1), args, train_dataset=[1])\n"
        "assert isinstance(run, compat.Trainer), type(run)\n"
        "print(seen, list(__import__('inspect').signature(compat.Trainer).parameters)[:2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[['train_dataset']] ['model', 'args']"


def test_the_page_tells_what_becomes_of_each_patch(request: pytest.FixtureRequest) -> None:
    page = (request.config.rootpath / "docs" / "guides" / "patches.md").read_text(encoding="utf-8")
    for target in REFUSED:
        assert f"`{target.where}`" in page, target.where


def test_a_copy_of_hf_s_loop_that_lands_on_our_class_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = textwrap.dedent(inspect.getsource(compat.Trainer._inner_training_loop))
    edited = source.replace("def _inner_training_loop(", "def edited_loop(", 1)
    made: dict[str, Any] = {}
    exec(compile(edited, "a_library.py", "exec"), dict(vars(hf_trainer)), made)  # noqa: S102 (as libraries do)
    monkeypatch.setattr(compat.Trainer, "_inner_training_loop", made["edited_loop"])
    run = trainer(tmp_path)
    before = weights(run)
    with pytest.raises(CompatError, match=r"`Trainer\._inner_training_loop`: replaced \(a_library\.py:1\)"):
        run.train()
    assert weights(run) == before


def test_a_loop_that_calls_the_original_lands_on_our_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    patch(monkeypatch, compat.Trainer, "_inner_training_loop", calls)
    trainer(tmp_path).train()
    assert calls == ["_inner_training_loop"]


def test_a_subclass_may_have_a_loop_of_its_own(tmp_path: Path) -> None:
    class Once(compat.Trainer):
        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            batches, _ = self.get_batch_samples(iter(self.get_train_dataloader()), 1, self.args.device)
            return len(batches)

    run = trainer(tmp_path)
    run.__class__ = Once
    assert run.train() == 1
