from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn

import compat
from compat.errors import CompatError
from compat.upstream.seams.common import HFTrainer
from tests.small import Regression, losses, rows, trainer

if TYPE_CHECKING:
    from pathlib import Path


class Interrupt(transformers.TrainerCallback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), RuntimeError("broken")])
def test_an_exception_reaches_the_script_and_leaves_nothing_switched_on(
    tmp_path: Path, error: BaseException
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    ours = trainer(tmp_path, callbacks=[Interrupt(error)])
    with pytest.raises(type(error)) as caught:
        ours.train()
    assert caught.value is error
    assert signal.getsignal(signal.SIGINT) is handler
    assert not ours.is_in_train
    assert ours.accelerator.sync_gradients


def test_training_can_begin_again_after_an_exception(tmp_path: Path) -> None:
    ours = trainer(tmp_path, callbacks=[Interrupt(RuntimeError("broken"))])
    with pytest.raises(RuntimeError, match="broken"):
        ours.train()
    ours.remove_callback(Interrupt)
    ours.train()
    assert ours.state.global_step == 3


def test_an_exception_takes_the_noise_off_the_embeddings(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config)
    tokens = [{"input_ids": torch.arange(4), "labels": torch.arange(4)} for _ in range(8)]
    ours = trainer(
        tmp_path,
        model=model,
        train_dataset=tokens,
        neftune_noise_alpha=1.0,
        callbacks=[Interrupt(RuntimeError("broken"))],
    )
    with pytest.raises(RuntimeError, match="broken"):
        ours.train()
    assert len(model.get_input_embeddings()._forward_hooks) == 0


def test_a_dataset_without_length_needs_max_steps(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(rows())

    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, max_steps=-1, train_dataset=Stream()).train()


def test_a_model_without_loss_is_named(tmp_path: Path) -> None:
    unlabelled = [{"x": row["x"]} for row in rows()]
    with pytest.raises(ValueError, match="did not return a loss from the inputs"):
        trainer(tmp_path, train_dataset=unlabelled).train()


def test_a_loss_without_gradient_is_not_passed_over(tmp_path: Path) -> None:
    model = Regression()
    model.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    ours = compat.Trainer(
        model=model,
        args=trainer(tmp_path).args,
        train_dataset=rows(),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)),
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        ours.train()


def test_an_unknown_metric_for_the_best_model_is_named(tmp_path: Path) -> None:
    ours = trainer(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    with pytest.raises(KeyError, match="eval_accuracy"):
        ours.train()


def test_two_trainers_take_turns(tmp_path: Path) -> None:
    """One trains inside a callback of the other, in another precision."""
    inner: list[float] = []

    class Inner(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                with torch.random.fork_rng():
                    other = trainer(tmp_path, bf16=True)
                    other.train()
                inner.extend(losses(other))

    alone = trainer(tmp_path)
    alone.train()
    outer = trainer(tmp_path, callbacks=[Inner()])
    outer.train()
    assert len(inner) == 3
    assert losses(outer) == losses(alone)


def test_backward_is_lightnings_unless_somebody_may_look_at_gradients(tmp_path: Path) -> None:
    class Looking(compat.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            assert self.model.out.weight.grad is not None
            return loss

    plain = trainer(tmp_path)
    assert plain._fit._leaves_backward_to_lightning()
    plain.train()
    looking = trainer(tmp_path, Looking)
    assert not looking._fit._leaves_backward_to_lightning()
    looking.train()
    assert losses(plain) == losses(looking)
    assert compat.Trainer.training_step is HFTrainer.training_step


@pytest.mark.skipif(not hasattr(HFTrainer, "_run_epoch"), reason="came with transformers 5")
def test_an_overridden_epoch_is_refused(tmp_path: Path) -> None:
    class Own(compat.Trainer):
        def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    with pytest.raises(CompatError, match=r"`Own._run_epoch`: overridden"):
        trainer(tmp_path, Own).train()


def test_losses_of_a_double_model_add_up_as_in_hf(tmp_path: Path) -> None:
    doubled = [{name: value.double() for name, value in row.items()} for row in rows()]

    def run(base: type) -> tuple[float, list[float]]:
        torch.manual_seed(0)
        made = trainer(tmp_path, base, model=Regression().double(), train_dataset=doubled)
        return made.train().training_loss, losses(made)

    assert run(compat.Trainer) == run(HFTrainer)


def test_clipping_that_is_switched_off_midway_logs_as_in_hf(tmp_path: Path) -> None:
    class Switch(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.max_grad_norm = float(state.global_step % 2)

    def run(base: type) -> list[Any]:
        made = trainer(tmp_path, base, callbacks=[Switch()])
        made.train()
        return [entry.get("grad_norm") for entry in made.state.log_history]

    assert run(compat.Trainer) == run(HFTrainer)
