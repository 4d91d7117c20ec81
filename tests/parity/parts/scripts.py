"""What users do with a trainer: `script(bench) -> result`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.checkpoint.layout import OURS, is_one_of
from tests.parity.parts import callbacks, data

if TYPE_CHECKING:
    from tests.parity.bench import Bench

Script = Callable[["Bench"], Any]


def train(bench: Bench) -> Any:
    """Train and nothing else."""
    return bench.trainer().train()


def train_and_evaluate(bench: Bench) -> Any:
    """Train, then evaluate and predict."""
    trainer = bench.trainer()
    return trainer.train(), trainer.evaluate(), trainer.predict(trainer.eval_dataset)


def evaluate_around(bench: Bench) -> Any:
    """Evaluate before and after training."""
    trainer = bench.trainer()
    return trainer.evaluate(), trainer.train(), trainer.evaluate()


def evaluate_only(bench: Bench) -> Any:
    """Evaluate and predict with a model that is never trained."""
    trainer = bench.trainer()
    return (
        trainer.evaluate(),
        trainer.predict(trainer.eval_dataset),
        trainer.evaluate(metric_key_prefix="again"),
    )


def predict_unlabelled(bench: Bench) -> Any:
    """Predict with labels, without, and once more under another prefix."""
    trainer = bench.trainer()
    trainer.train()
    return (
        trainer.predict(data.evaluation()),
        trainer.predict(data.unlabelled()),
        trainer.predict(data.evaluation(), metric_key_prefix="final"),
    )


def ignoring(*keys: str) -> Script:
    """Train and evaluate without some of the model's outputs."""

    def script(bench: Bench) -> Any:
        trainer = bench.trainer()
        ignored = list(keys)
        return (
            trainer.train(ignore_keys_for_eval=ignored),
            trainer.evaluate(ignore_keys=ignored),
            trainer.predict(trainer.eval_dataset, ignore_keys=ignored),
        )

    return script


def evaluate_sets(bench: Bench) -> Any:
    """Evaluate the sets of a dictionary by name, one by one and all others at once."""
    trainer = bench.trainer()
    return (
        trainer.train(),
        trainer.evaluate(),
        trainer.evaluate("small"),
        trainer.evaluate({"other": data.regression(6, 5)}),
        trainer.evaluate(data.regression(6, 5), metric_key_prefix="alone"),
    )


def call_afterwards(bench: Bench) -> Any:
    """Use the trained model by hand, before training, after it and after an evaluation."""
    trainer, batch = bench.trainer(), next(iter(data.table(4).iter(4)))["x"]
    model = trainer.model
    before = model(batch)["logits"]
    trainer.train()
    after = model(batch)["logits"]
    trainer.evaluate()
    return before, after, model(batch)["logits"], model is trainer.model


def add_callback_within(bench: Bench) -> Any:
    """Train with a callback that adds another in the first step and removes it in the fifth."""
    late = callbacks.flags("on_step_end", should_evaluate=True)
    add = callbacks.at("on_step_begin", 0, lambda *_, **__: trainer.add_callback(late))
    remove = callbacks.at("on_step_begin", 4, lambda *_, **__: trainer.remove_callback(late))
    trainer = bench.trainer(callbacks=(add, remove))
    return trainer.train()


def save_everything(bench: Bench) -> Any:
    """Write model, state and metrics by hand."""
    trainer = bench.trainer()
    output = trainer.train()
    trainer.save_model(str(bench.out_dir / "final"))
    trainer.save_state()
    trainer.save_metrics("train", output.metrics)
    return output, trainer.get_learning_rates(), trainer.get_num_trainable_parameters()


def notes(bench: Bench) -> Any:
    """Train and return what the subclass noted."""
    trainer = bench.trainer()
    return trainer.train(), trainer.evaluate(), trainer.notes


def train_twice(bench: Bench) -> Any:
    """Call `train` twice on one trainer."""
    trainer = bench.trainer()
    return trainer.train(), trainer.train()


def interleaved(bench: Bench) -> Any:
    """Use two trainers with different arguments in turn."""
    first, second = bench.trainer(), bench.trainer(gradient_accumulation_steps=2, seed=7)
    return (
        first.evaluate(),
        second.train(),
        first.train(),
        second.evaluate(),
        first.predict(data.unlabelled()),
        second.train(),
    )


def within(event: str, ask: Callable[[Any], Any], another: bool = False) -> Script:
    """Train with a callback that calls a trainer from within.

    Args:
        event: when to call, `on_step_end` or `on_epoch_end`.
        ask: what to call.
        another: call a second trainer, not the one that trains.
    """

    def script(bench: Bench) -> Any:
        callback = callbacks.AskTrainer(event, ask)
        trainer = bench.trainer(callbacks=(callback,))
        callback.trainer = bench.trainer(seed=9) if another else trainer
        return trainer.train(), callback.answers

    return script


def interrupted(step: int, error: type[BaseException] = callbacks.MachineCrashError, **changes) -> Script:
    """Train until the run dies after some update steps.

    Args:
        step: count of update steps that are still done.
        error: what is raised.
        **changes: fields of the training arguments of this run alone.
    """

    def script(bench: Bench) -> Any:
        trainer = bench.trainer(callbacks=(callbacks.crash(step, error),), **changes)
        try:
            trainer.train(resume_from_checkpoint=changes.get("resume_from_checkpoint"))
        except error as caught:
            return str(caught)
        return "not interrupted"

    return script


def failing(bench: Bench) -> Any:
    """Train to an error and return what it says."""
    try:
        return bench.trainer().train()
    except Exception as error:  # noqa: BLE001 (any error is the result here)
        return type(error).__name__, str(error)


def resumed(checkpoint: int | bool = True, *, as_of_hf: bool = False, **changes: Any) -> Script:
    """Train on from a checkpoint with a new trainer.

    Args:
        checkpoint: the step of the checkpoint; True takes the last one.
        as_of_hf: whether the checkpoint loses beforehand what only ours have, with which a run goes on as
            if it had not been interrupted, and so otherwise than under HF.
        **changes: fields of the training arguments of this run alone.
    """

    def script(bench: Bench) -> Any:
        for file in bench.out_dir.glob("checkpoint-*/*") if as_of_hf else ():
            if is_one_of(file.name, OURS):
                # Every process of a job runs this.
                file.unlink(missing_ok=True)
        path = checkpoint if checkpoint is True else str(bench.out_dir / f"checkpoint-{checkpoint}")
        return bench.trainer(**changes).train(resume_from_checkpoint=path)

    return script


def resumed_elsewhere(bench: Bench) -> Any:
    """Train on in another folder than the checkpoint's."""
    trainer = bench.trainer(output_dir=str(bench.out_dir / "elsewhere"))
    return trainer.train(resume_from_checkpoint=str(bench.out_dir / "checkpoint-3"))


@dataclass(frozen=True)
class InTurn:
    """A script of several parts, which tests may also run one at a time.

    Args:
        parts: in order.
    """

    parts: tuple[Script, ...]

    def __call__(self, bench: Bench) -> Any:
        """Run all parts."""
        return [part(bench) for part in self.parts]


def in_turn(*scripts: Script) -> Script:
    """Run several scripts one after the other."""
    return InTurn(scripts)


def generate(**options: Any) -> Script:
    """Train, evaluate and predict by generation.

    Args:
        **options: of generation, given to `evaluate` and `predict`.
    """

    def script(bench: Bench) -> Any:
        trainer = bench.trainer()
        return (
            trainer.train(),
            trainer.evaluate(**options),
            trainer.predict(data.pairs(6, 1), **options),
            trainer.predict(data.unlabelled_pairs(), **options),
        )

    return script


def weighed(bench: Bench) -> Any:
    """Train and return the sums of the weights around each optimizer step."""
    seen: list[Any] = []
    return bench.trainer(callbacks=(callbacks.weight_sum(seen),)).train(), seen


def resumed_with_notes(bench: Bench) -> Any:
    """Resume and return what the subclass noted."""
    trainer = bench.trainer()
    return trainer.train(resume_from_checkpoint=True), trainer.notes


def train_then_resume(bench: Bench) -> Any:
    """Resume with the very trainer that has trained."""
    trainer = bench.trainer()
    path = str(bench.out_dir / "checkpoint-6")
    return trainer.train(), trainer.train(resume_from_checkpoint=path)


def _crashed(bench: Bench) -> Any:
    crash = callbacks.crash(4)
    trainer = bench.trainer(callbacks=(crash,))
    try:
        trainer.train()
    except callbacks.MachineCrashError:
        trainer.remove_callback(crash)
    return trainer


def train_after_crash(bench: Bench) -> Any:
    """Go on with a trainer whose run has died: from its checkpoint, then from the start."""
    trainer = _crashed(bench)
    return trainer.train(resume_from_checkpoint=True), trainer.train()


def evaluate_after_crash(bench: Bench) -> Any:
    """Evaluate with a trainer whose run has died."""
    trainer = _crashed(bench)
    return trainer.evaluate(), trainer.predict(data.unlabelled())
