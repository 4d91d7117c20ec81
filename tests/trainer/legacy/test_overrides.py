"""Subclasses with the signatures of transformers 4.37, trained beside twins with those of today."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch.utils.data import SequentialSampler

import compat
from compat.trainer.legacy.overrides import Adapted
from tests.parity.parts.models import VOCABULARY, gpt2
from tests.small import Regression, arguments, losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path


def texts(count: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(VOCABULARY, (6,), generator=generator) for _ in range(count)]
    # Rows of different weight: a mean over micro-batches differs from a mean over tokens.
    masks = [torch.arange(6) < 2 + index % 5 for index in range(count)]
    return [{"input_ids": i, "labels": i.where(m, -100)} for i, m in zip(ids, masks, strict=True)]


def language_trainer(folder: Path, kind: type, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(model=gpt2(), args=arguments(folder, **options), train_dataset=texts())


class OldLoss(compat.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss * 2
        return (loss, outputs) if return_outputs else loss


class OldStep(compat.Trainer):
    def training_step(self, model, inputs):
        return super().training_step(model, {**inputs, "labels": inputs["labels"] + 1})


class OldWholeStep(compat.Trainer):
    """The whole body of 4.37's, and a factor."""

    def training_step(self, model, inputs):
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = 3 * self.compute_loss(model, inputs)
        if self.args.n_gpu > 1:
            loss = loss.mean()
        assert not self.use_apex
        self.accelerator.backward(loss)
        return loss.detach() / self.args.gradient_accumulation_steps


class OldLog(compat.Trainer):
    def log(self, logs):
        logs["doubled"] = 2 * logs.get("loss", 0)
        super().log(logs)


class OldOptimizer(compat.Trainer):
    def create_optimizer(self):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


class OldOptimizerClass(compat.Trainer):
    @staticmethod
    def get_optimizer_cls_and_kwargs(args):
        return torch.optim.SGD, {"lr": 2 * args.learning_rate}


class OldSampler(compat.Trainer):
    def _get_train_sampler(self):
        return SequentialSampler(self.train_dataset)


def of_today(base: type) -> dict[type, type]:
    """The same subclasses of another base, with the signatures of today."""

    class Loss(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            loss = loss * 2
            return (loss, outputs) if return_outputs else loss

    class Step(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            inputs = {**inputs, "labels": inputs["labels"] + 1}
            return super().training_step(model, inputs, num_items_in_batch)

    class WholeStep(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = 3 * self.compute_loss(model, self._prepare_inputs(inputs))
            loss = loss / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    class Log(base):
        def log(self, logs, start_time=None):
            logs["doubled"] = 2 * logs.get("loss", 0)
            super().log(logs, start_time)

    class Optimizer(base):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    class OptimizerClass(base):
        @staticmethod
        def get_optimizer_cls_and_kwargs(args, model=None):
            return torch.optim.SGD, {"lr": 2 * args.learning_rate}

    class Sampler(base):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

    return {
        OldLoss: Loss,
        OldStep: Step,
        OldWholeStep: WholeStep,
        OldLog: Log,
        OldOptimizer: Optimizer,
        OldOptimizerClass: OptimizerClass,
        OldSampler: Sampler,
    }


OLD = [*of_today(compat.Trainer)]


def record(run: Any) -> tuple[Any, ...]:
    run.train()
    timings = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    history = [{k: v for k, v in entry.items() if k not in timings} for entry in run.state.log_history]
    return history, weights(run)


@pytest.mark.parametrize("base", [compat.Trainer, transformers.Trainer], ids=["ours", "theirs"])
@pytest.mark.parametrize("old", OLD, ids=lambda kind: kind.__name__)
def test_the_old_signature_trains_as_that_of_today(tmp_path: Path, old: type, base: type) -> None:
    options = {"gradient_accumulation_steps": 3, "max_steps": 4, "learning_rate": 0.01}
    ours = record(trainer(tmp_path, old, **options))
    assert ours == record(trainer(tmp_path, of_today(base)[old], **options))
    assert ours != record(trainer(tmp_path, **options))


@pytest.mark.parametrize("old", [OldLoss, OldStep, OldWholeStep, OldLog, OldOptimizerClass, OldSampler])
def test_what_the_installed_release_makes_of_it(tmp_path: Path, old: type) -> None:
    methods = {name: value for name, value in vars(old).items() if not name.startswith("__")}
    # `super()` in these is bound to our class: they are called before it matters.
    theirs = trainer(tmp_path, type(old.__name__, (transformers.Trainer,), methods))
    with pytest.raises(TypeError, match=r"positional argument|unexpected keyword argument"):
        theirs.train()


def test_a_loss_of_old_is_the_mean_of_its_micro_batches(tmp_path: Path) -> None:
    class Plain(compat.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    class Today(transformers.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            # What a script of today has to say: the loss is divided by the window.
            self.model_accepts_loss_kwargs = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    options = {"gradient_accumulation_steps": 2, "max_steps": 3}
    ours = language_trainer(tmp_path, Plain, **options)
    assert record(ours) == record(language_trainer(tmp_path, Today, **options))
    # About one `log(vocabulary)`, and not two: a window has two micro-batches.
    assert 3 < losses(ours)[0] < 5
    assert losses(ours) != losses_of(language_trainer(tmp_path, compat.Trainer, **options))


def losses_of(run: Any) -> list[float]:
    run.train()
    return losses(run)


def test_an_old_step_under_a_loss_of_today(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 3}

    class Both(OldStep):
        def training_step(self, model, inputs):
            return super(OldStep, self).training_step(model, inputs)

    class Today(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            return super().training_step(model, inputs)

    ours = record(language_trainer(tmp_path, Both, **options))
    assert ours == record(language_trainer(tmp_path, Today, **options))


def test_a_mixin_of_old(tmp_path: Path) -> None:
    class Doubled:
        def compute_loss(self, model, inputs, return_outputs=False):
            loss = super().compute_loss(model, inputs)
            return 2 * loss

    class Mixed(Doubled, compat.Trainer):
        pass

    def norm(kind: type) -> float:
        run = trainer(tmp_path, kind, max_steps=1)
        run.train()
        return run.state.log_history[0]["grad_norm"]

    assert norm(Mixed) == 2 * norm(compat.Trainer)


def test_an_old_save_is_given_the_metrics_of_its_step(tmp_path: Path) -> None:
    seen = []

    class OldSave(compat.Trainer):
        def _save_checkpoint(self, model, trial, metrics=None):
            seen.append(metrics and metrics["eval_loss"])
            super()._save_checkpoint(model, trial, metrics=metrics)

    run = trainer(tmp_path, OldSave, max_steps=4, eval_strategy="steps", eval_steps=2)
    run.args.save_strategy, run.args.save_steps = transformers.trainer_utils.SaveStrategy.STEPS, 1
    run.train()
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert seen == [None, evaluated[0], None, evaluated[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (1, 2, 3, 4)]


def test_a_model_that_is_wrapped_without_its_loader(tmp_path: Path) -> None:
    class Wrapping(compat.Trainer):
        def _wrap_model(self, model, training=True):
            return super()._wrap_model(model, training)

    options = {"eval_strategy": "steps", "eval_steps": 1}
    ours, plain = (trainer(tmp_path, kind, **options) for kind in (Wrapping, compat.Trainer))
    assert ours.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert ours.train().global_step == 3


def test_signatures_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, OldLoss)
    seen = []
    look = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda of, **k: (seen.append(of), look(of, **k))[1])
    run.train()
    assert not [of for of in seen if getattr(of, "__name__", "") in ("compute_loss", "training_step")]


def test_an_adapted_trainer_goes_at_once(tmp_path: Path) -> None:
    gc.disable()
    try:
        run = trainer(tmp_path, OldLoss)
        gone = weakref.ref(run)
        del run
        assert gone() is None
    finally:
        gc.enable()


def test_the_copy_of_an_adapted_method_belongs_to_the_copied_trainer() -> None:
    class Light:
        def compute_loss(self, model, inputs):
            return self

    light = Light()
    light.compute_loss = Adapted(light, "compute_loss")
    twin = copy.deepcopy(light)
    assert light.compute_loss("model", "inputs", num_items_in_batch=3) is light
    assert twin.compute_loss("model", "inputs", num_items_in_batch=3) is twin is not light


def test_a_modern_subclass_is_left_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path, of_today(compat.Trainer)[OldLoss])
    assert "compute_loss" not in vars(run)
    assert run.compute_loss.__func__ is type(run).compute_loss


def test_a_script_of_2024_runs_unedited_under_install(tmp_path: Path) -> None:
    class Script(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            return 2 * super().compute_loss(model, inputs)

        def log(self, logs):
            super().log({**logs, "mine": 1})

    compat.install()
    try:
        with pytest.warns(FutureWarning, match="Use `processing_class`"):
            run = Script(
                model=Regression(), args=arguments(tmp_path), train_dataset=rows(), tokenizer=Tokenizer()
            )
        run.train()
        assert isinstance(run, compat.Trainer)
    finally:
        compat.uninstall()
    assert [entry["mine"] for entry in run.state.log_history] == [1] * 4


class Tokenizer:
    """Stands for one."""
