"""Subclasses that change evaluation, loading, optimizers and saving, as people write them.

Each function makes a subclass of the base it is given.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler


def own_prediction_step(base: type) -> type:
    """Changes loss and logits of each evaluated batch."""

    class OwnPredictionStep(base):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
            loss = None if loss is None else loss * 2
            return (loss, None, None) if prediction_loss_only else (loss, logits + 1, labels)

    return OwnPredictionStep


def gradient_in_prediction(base: type) -> type:
    """Takes a gradient while it evaluates (of the inputs, say, for a robustness score)."""

    class GradientInPrediction(base):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            inputs = self._prepare_inputs(inputs)
            x = inputs["x"].clone().requires_grad_()
            loss = model(x=x, labels=inputs["labels"])["loss"]
            (slope,) = torch.autograd.grad(loss, x)
            return loss.detach(), slope, inputs["labels"]

    return GradientInPrediction


def own_evaluate(base: type) -> type:
    """Evaluates, then adds a metric and logs it."""

    class OwnEvaluate(base):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **kwargs):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
            extra = {f"{metric_key_prefix}_double": 2 * metrics[f"{metric_key_prefix}_loss"]}
            self.log(extra)
            return {**metrics, **extra}

    return OwnEvaluate


def own_evaluation_loop(base: type) -> type:
    """Adds a metric inside the evaluation loop, as preference trainers do."""

    class OwnEvaluationLoop(base):
        def evaluation_loop(
            self,
            dataloader,
            description,
            prediction_loss_only=None,
            ignore_keys=None,
            metric_key_prefix="eval",
        ):
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
            output.metrics[f"{metric_key_prefix}_spread"] = float(output.predictions.std())
            return output

    return OwnEvaluationLoop


def whole_evaluation_loop(base: type) -> type:
    """An evaluation loop written from nothing: the inherited one never runs."""

    class WholeEvaluationLoop(base):
        def evaluation_loop(
            self,
            dataloader,
            description,
            prediction_loss_only=None,
            ignore_keys=None,
            metric_key_prefix="eval",
        ):
            from transformers.trainer_utils import EvalLoopOutput

            self.model.eval()
            with torch.no_grad():
                losses = [
                    self.compute_loss(self.model, self._prepare_inputs(batch)).item() for batch in dataloader
                ]
            metrics = {f"{metric_key_prefix}_loss": max(losses)}
            return EvalLoopOutput(None, None, metrics, num_samples=len(losses))

    return WholeEvaluationLoop


def own_log(base: type) -> type:
    """Adds an entry to every log and drops another."""

    class OwnLog(base):
        def log(self, logs, *args, **kwargs):
            logs["steps_left"] = self.state.max_steps - self.state.global_step
            logs.pop("grad_norm", None)
            super().log(logs, *args, **kwargs)

    return OwnLog


def own_optimizer(base: type) -> type:
    """Builds its optimizer itself."""

    class OwnOptimizer(base):
        def create_optimizer(self, *args, **kwargs):
            if self.optimizer is None:
                self.optimizer = torch.optim.SGD(
                    [{"params": [p], "lr": 0.1 / (i + 1)} for i, p in enumerate(self.weights())],
                    momentum=0.9,
                )
            return self.optimizer

        def weights(self):
            return [p for p in self.model.parameters() if p.requires_grad]

    return OwnOptimizer


def own_scheduler(base: type) -> type:
    """Builds its scheduler itself."""

    class OwnScheduler(base):
        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer or self.optimizer, max_lr=0.1, total_steps=num_training_steps + 1
            )
            return self.lr_scheduler

    return OwnScheduler


def own_optimizer_and_scheduler(base: type) -> type:
    """Builds both in the method that releases before the fifth call for it."""

    class OwnBoth(base):
        def create_optimizer_and_scheduler(self, num_training_steps):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
            self.lr_scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)

    return OwnBoth


def raw_train_loader(base: type) -> type:
    """A train loader that accelerate never saw."""

    class RawTrainLoader(base):
        def get_train_dataloader(self):
            order = torch.Generator().manual_seed(5)
            return DataLoader(self.train_dataset, batch_size=4, shuffle=True, generator=order)

    return RawTrainLoader


def prepared_train_loader(base: type) -> type:
    """A train loader with a batch sampler of its own, given to the accelerator by hand."""

    class PreparedTrainLoader(base):
        def get_train_dataloader(self):
            batches = BatchSampler(RandomSampler(self.train_dataset), 3, drop_last=False)
            return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=batches))

    return PreparedTrainLoader


def list_train_loader(base: type) -> type:
    """A train loader that is a list: neither a data set nor a sampler in sight."""

    class ListTrainLoader(base):
        def get_train_dataloader(self):
            return list(DataLoader(self.train_dataset, batch_size=4))

    return ListTrainLoader


def raw_eval_loader(base: type) -> type:
    """Evaluation and test loaders that accelerate never saw, in another batch size."""

    class RawEvalLoader(base):
        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(eval_dataset or self.eval_dataset, batch_size=3)

        def get_test_dataloader(self, test_dataset):
            return DataLoader(test_dataset, batch_size=3)

    return RawEvalLoader


def sequential(base: type) -> type:
    """Reads the training set in order."""

    class Sequential(base):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

    return Sequential


def own_save(base: type) -> type:
    """Writes a file of its own beside the weights."""

    class OwnSave(base):
        def _save(self, output_dir=None, state_dict=None):
            super()._save(output_dir, state_dict)
            Path(output_dir or self.args.output_dir, "mine.json").write_text('{"mine": 1}')

    return OwnSave


def own_save_checkpoint(base: type) -> type:
    """Adds to a checkpoint after the inherited method has written it."""

    class OwnSaveCheckpoint(base):
        def _save_checkpoint(self, model, trial):
            super()._save_checkpoint(model, trial)
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            torch.save({"same": model is self.model_wrapped}, folder / "mine.pt")

    return OwnSaveCheckpoint


def own_windows(base: type) -> type:
    """Fetches the batches of a window itself and changes the count of items."""

    class OwnWindows(base):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            self.__dict__.setdefault("notes", []).append((len(batches), num_batches, items))
            return batches, None if items is None else items + 5

    return OwnWindows


def own_inputs(base: type) -> type:
    """Changes every batch on its way to the model, in training and evaluation."""

    class OwnInputs(base):
        def _prepare_inputs(self, inputs):
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "x": inputs["x"] * (2 if self.model.training else 3)}

    return OwnInputs


def own_context(base: type) -> type:
    """Enters a context of its own around each loss."""

    class OwnContext(base):
        def compute_loss_context_manager(self):
            stack = contextlib.ExitStack()
            stack.enter_context(super().compute_loss_context_manager())
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            return stack

    return OwnContext


def own_flos(base: type) -> type:
    """Counts its own floating-point operations."""

    class OwnFlos(base):
        def floating_point_ops(self, inputs):
            return 7 * inputs["x"].numel()

    return OwnFlos


def own_inner_loop(base: type) -> type:
    """Prepares something around the inner training loop."""

    class OwnInnerLoop(base):
        def _inner_training_loop(self, *args, **kwargs):
            self.notes = ["begin"]
            output = super()._inner_training_loop(*args, **kwargs)
            self.notes.append("end")
            return output

    return OwnInnerLoop


WATCHED = (
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_best_model",
    "_load_callback_state",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_save_rng_state",
    "_maybe_log_save_evaluate",
    "_evaluate",
    "_determine_best_metric",
    "get_train_dataloader",
    "get_eval_dataloader",
    "create_optimizer",
    "create_scheduler",
    "save_model",
    "compute_loss",
)


def watched(base: type) -> type:
    """Notes which of the methods that others override run, and in which order."""

    def watch(name):
        def method(self, *args, **kwargs):
            self.__dict__.setdefault("notes", []).append(name)
            return getattr(super(cls, self), name)(*args, **kwargs)

        return method

    cls = type("Watched", (base,), {name: watch(name) for name in WATCHED})
    return cls
