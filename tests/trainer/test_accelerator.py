from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import accelerate
import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

import compat
from compat.errors import ArgumentError
from compat.trainer.accelerator import LightningAccelerator
from compat.upstream.accelerator import ACCELERATOR, AS_IT_IS
from compat.upstream.features import SHARES_CONTEXTS
from tests.parity.parts.optimizers import Fused
from tests.parity.record import isolated
from tests.small import Regression, arguments, losses, rows, trainer, weights

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_it_is_an_accelerator(tmp_path: Path) -> None:
    face = trainer(tmp_path).accelerator
    assert isinstance(face, accelerate.Accelerator)
    assert (face.num_processes, face.process_index, face.is_main_process) == (1, 0, True)


def test_it_wraps_neither_model_nor_optimizer(tmp_path: Path) -> None:
    face = trainer(tmp_path).accelerator
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    prepared = face.prepare(model, optimizer, scheduler)
    assert prepared[0] is model
    assert prepared[1].optimizer is optimizer
    assert prepared[2] is scheduler
    assert "forward" not in vars(model)
    assert not isinstance(prepared[1], AcceleratedOptimizer)


def test_its_state_is_its_own(tmp_path: Path) -> None:
    half, full = trainer(tmp_path, bf16=True), trainer(tmp_path)
    assert (half.accelerator.mixed_precision, full.accelerator.mixed_precision) == ("bf16", "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert half.accelerator.device == torch.device("cpu")
    assert half.accelerator.mixed_precision == "bf16"


def test_backward_outside_of_a_run(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    trainer(tmp_path).accelerator.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3


def test_gradients_are_in_sync_at_the_end_of_a_window(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Looking(compat.Trainer):
        def compute_loss(self, *args: object, **kwargs: object) -> object:
            seen.append(self.accelerator.sync_gradients)
            return super().compute_loss(*args, **kwargs)

    trainer(tmp_path, Looking, gradient_accumulation_steps=3, max_steps=2).train()
    assert seen == [False, False, True] * 2


def test_an_accelerator_that_a_subclass_builds_is_adopted(tmp_path: Path) -> None:
    def with_own_accelerator(base: type) -> type:
        class Own(base):
            def create_accelerator_and_postprocess(self) -> None:
                super().create_accelerator_and_postprocess()
                self.accelerator = accelerate.Accelerator(cpu=True)
                self.gather_function = self.accelerator.gather_for_metrics

        return Own

    theirs = trainer(tmp_path, with_own_accelerator(transformers.Trainer))
    theirs.train()
    ours = trainer(tmp_path, with_own_accelerator(compat.Trainer))
    ours.train()
    assert losses(ours) == losses(theirs)
    replaced = trainer(tmp_path)
    replaced.accelerator = accelerate.Accelerator(cpu=True)
    assert replaced.evaluate()["eval_loss"] > 0
    assert isinstance(replaced.accelerator, LightningAccelerator)


def test_its_own_accumulation_divides_the_loss(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    face = trainer(tmp_path).accelerator
    face.gradient_accumulation_steps = 4
    face.backward((weight * 3).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 0.75


def test_unwrapping_takes_mixed_precision_off(tmp_path: Path) -> None:
    half = trainer(tmp_path, bf16=True)
    half.train()
    assert "forward" in vars(half.model)
    assert half.accelerator.unwrap_model(half.model, keep_fp32_wrapper=False) is half.model
    assert "forward" not in vars(half.model)
    assert half.model(torch.ones(1, 4))["logits"].shape == (1, 1)


def test_a_spy_on_backward_sees_gradients(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    backward, seen = ours.accelerator.backward, []

    def spy(loss: torch.Tensor, **kwargs: object) -> None:
        backward(loss, **kwargs)
        seen.append(ours.model.out.weight.grad is not None)

    ours.accelerator.backward = spy
    ours.train()
    assert seen == [True, True, True]


def test_a_loss_that_is_no_scalar_is_refused_by_torch(tmp_path: Path) -> None:
    class Vector(compat.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict, **kwargs: object) -> torch.Tensor:
            return model(**inputs)["logits"].flatten()

    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        trainer(tmp_path, Vector).train()


def test_its_autocast_handler_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # HF's own Trainer of transformers 4 is told by this alone; our arguments keep it to themselves.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    def run(base: type, **options: object) -> list[float]:
        made = trainer(tmp_path, base, bf16=True)
        for name, value in options.items():
            setattr(made.accelerator, name, value)
        made.train()
        return losses(made)

    off = AutocastKwargs(enabled=False)
    assert run(compat.Trainer, autocast_handler=off) == run(transformers.Trainer, autocast_handler=off)
    assert run(compat.Trainer, autocast_handler=off) != run(compat.Trainer)


@pytest.mark.parametrize("name", ACCELERATOR)
def test_each_name_is_served_by_whom_the_table_says(name: str) -> None:
    theirs, ours = (
        inspect.getattr_static(cls, name) for cls in (accelerate.Accelerator, LightningAccelerator)
    )
    assert (ours is theirs) == (ACCELERATOR[name] == AS_IT_IS)


def test_the_table_knows_every_name_and_the_docs_every_difference() -> None:
    public = {name for name in dir(accelerate.Accelerator) if not name.startswith("_")}
    assert public == ACCELERATOR.keys(), "accelerate has changed: say in the table who serves the new names"
    page = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
    missing = [
        name
        for name, note in ACCELERATOR.items()
        if note != AS_IT_IS and f"| `{name}` | {note} |" not in page
    ]
    assert missing == []


def own_loop(accelerator: accelerate.Accelerator, folder: Path) -> list[list[float]]:
    """A loop over batches as it is written for accelerate: saved halfway, spoilt, loaded and gone on with."""
    torch.manual_seed(0)
    model: Any = nn.Linear(4, 1)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler: Any = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    loader: Any = torch.utils.data.DataLoader([(row["x"], row["labels"]) for row in rows(16)], 2)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    accelerator.gradient_accumulation_steps = 2

    def steps(loader: Any) -> None:
        for x, y in loader:
            with accelerator.accumulate(model), accelerator.autocast():
                accelerator.backward(((model(x) - y) ** 2).mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    accelerator.clip_grad_value_(model.parameters(), 0.2)
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()

    steps(loader)
    accelerator.save_state(str(folder))
    steps(loader)
    accelerator.load_state(str(folder))
    steps(accelerator.skip_first_batches(loader, 4))
    accelerator.save_model(accelerator.unwrap_model(model), folder / "model")
    saved = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    assert {name: value.tolist() for name, value in saved.items()} == {
        name: value.tolist() for name, value in accelerator.get_state_dict(model).items()
    }
    return [*(value.flatten().tolist() for value in model.parameters()), [scheduler.get_last_lr()[0]]]


def test_a_loop_of_ones_own_is_that_of_accelerate(tmp_path: Path) -> None:
    face = trainer(tmp_path).accelerator
    ours = own_loop(face, tmp_path / "ours")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert ours == own_loop(accelerate.Accelerator(cpu=True), tmp_path / "theirs")
    face.free_memory()
    assert face._models == face._optimizers == face._schedulers == face._dataloaders == []


def test_a_state_saved_within_a_run_is_that_of_the_run(tmp_path: Path) -> None:
    class Saving(transformers.TrainerCallback):
        def on_step_end(self, args: object, state: Any, control: object, **kwargs: object) -> None:
            if state.global_step == 2:
                ours.accelerator.save_state(str(tmp_path / "state"))
                self.weights = weights(ours)
                self.moments = copy.deepcopy(ours.optimizer.state_dict()["state"][0]["exp_avg"])

    saving = Saving()
    ours = trainer(tmp_path, callbacks=[saving])

    class Loading(transformers.TrainerCallback):
        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            again.accelerator.load_state(str(tmp_path / "state"))
            assert weights(again) == saving.weights
            assert torch.equal(again.optimizer.state_dict()["state"][0]["exp_avg"], saving.moments)
            self.looked = True

    ours.train()
    assert weights(ours) != saving.weights
    loading = Loading()
    again = trainer(tmp_path, callbacks=[loading])
    again.train()
    assert loading.looked


def test_lomo_is_found_without_a_wrapper(tmp_path: Path) -> None:
    class Fused(torch.optim.SGD):
        def fused_backward(self, loss: torch.Tensor, rate: float) -> None:
            self.told = (loss.item(), rate)

    face, weight = trainer(tmp_path).accelerator, nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="no optimizer of LOMO's"):
        face.lomo_backward(weight.sum(), 0.1)
    optimizer = face.prepare(Fused([weight]))
    face.lomo_backward(weight.sum(), 0.1)
    assert optimizer.told == (1.0, 0.1)


@pytest.fixture
def with_lomo(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("lomo_optim")
    library.__spec__ = ModuleSpec("lomo_optim", None)
    library.Lomo = library.AdaLomo = Fused
    monkeypatch.setitem(sys.modules, "lomo_optim", library)
    for module in ("transformers.trainer", "transformers.trainer_optimizer"):
        if hasattr(sys.modules.get(module), "is_lomo_available"):
            monkeypatch.setattr(f"{module}.is_lomo_available", lambda: True)


@pytest.mark.usefixtures("with_lomo")
def test_lomo_trains_in_the_backward(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1}
    as_sgd = trainer(tmp_path / "sgd", transformers.Trainer, optim="sgd", max_grad_norm=0.0, **options)
    as_sgd.train()
    seen: list[bool] = []

    class Listening(pl.Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            seen.append(module.model.out.weight.grad is None)

    log = logging.getLogger("transformers.trainer")
    log.addHandler(caplog.handler)
    whole = trainer(tmp_path / "whole", optim="lomo", callbacks=[Listening()], **options)
    whole.train()
    log.removeHandler(caplog.handler)
    assert losses(whole) == losses(as_sgd)
    assert weights(whole) == weights(as_sgd)
    assert seen == [True] * 3
    (told,) = {text for text in caplog.messages if "optim='lomo'" in text}
    assert "so that `max_grad_norm=1.0` neither clips nor adds up gradients" in told
    again = trainer(tmp_path / "again", optim="lomo", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert weights(again) == weights(whole)
    # Each batch is an update, as under HF.
    windows = trainer(tmp_path / "windows", optim="lomo", gradient_accumulation_steps=2, **options)
    windows.train()
    assert weights(windows) != weights(whole)


def test_what_an_optimizer_lacks_is_told_before_training(tmp_path: Path) -> None:
    made = trainer(tmp_path, optim="galore_adafactor_layerwise")
    with pytest.raises(ArgumentError, match=r"Give optim='galore_adafactor'\."):
        made.train()
    assert made.state.global_step == 0


def training_by_itself(base: Any) -> Any:
    """As some trainers do: an accelerator and a loop of their own, and HF's constructor never called."""

    class Alone(base):  # type: ignore[misc]
        def __init__(self, model: nn.Module, args: Any, data: list[Any]) -> None:
            self.args, self.model, self.model_init = args, model, None
            accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
            self.accelerator = accelerator
            self.is_deepspeed_enabled = self.is_fsdp_enabled = False
            self.is_fsdp_xla_enabled = self.is_tp_enabled = False
            self.hub_model_id = self.hp_search_backend = self.processing_class = self.data_collator = None
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
            self.callback_handler = CallbackHandler(
                [DefaultFlowCallback], model, None, self.optimizer, self.lr_scheduler
            )
            self.control, self.current_flos = TrainerControl(), 0
            self.state = TrainerState(stateful_callbacks=[self.control])
            self.add_callback(TrainerCallback)
            loader = torch.utils.data.DataLoader(data, batch_size=2)
            self.model, self.optimizer, self.dataloader = accelerator.prepare(model, self.optimizer, loader)
            self.model_wrapped = self.model

        def train(self) -> list[float]:
            found = []
            for batch in self.dataloader:
                with self.accelerator.accumulate(self.model):
                    loss = self.model(**batch)["loss"]
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    found.append(loss.item())
            self.state.global_step = 3
            self._save_checkpoint(self.model, None)
            return found

    return Alone


@pytest.mark.parametrize("bf16", [False, True])
def test_a_subclass_that_trains_by_itself(tmp_path: Path, bf16: bool) -> None:
    found = []
    for library in (transformers, compat):
        options = {"bf16": bf16, "use_cpu": True, "report_to": []}
        with isolated(forgiving=library is transformers):
            args = library.TrainingArguments(str(tmp_path / library.__name__), **options)
            torch.manual_seed(0)
            alone = training_by_itself(library.Trainer)(Regression(), args, rows())
            found.append((alone.train(), weights(alone)))
    assert found[0] == found[1]
    assert type(alone.accelerator) is LightningAccelerator
    saved = [
        sorted(f.name for f in tmp_path.glob(f"{of}/checkpoint-3/*.*")) for of in ("transformers", "compat")
    ]
    assert set(saved[0]) <= set(saved[1])
    assert "optimizer.pt" in saved[0]


def test_another_precision_than_bf16_is_refused_there(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    vars(args)["accelerate_environment"] = {"ACCELERATE_MIXED_PRECISION": "fp16"}
    with pytest.raises(ArgumentError, match="`fp16=True`: this trainer builds an accelerator of its own"):
        training_by_itself(compat.Trainer)(Regression(), args, rows())


def test_what_is_no_accelerator_stays_what_it_is(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    face, stand_in = ours.accelerator, Mock(spec=accelerate.Accelerator)
    ours.accelerator = stand_in
    assert ours.accelerator is stand_in
    del ours.accelerator
    assert not hasattr(ours, "accelerator")
    with pytest.raises(AttributeError, match="accelerator"):
        del ours.accelerator
    ours.accelerator = face
    assert ours.accelerator is face


@pytest.mark.skipif(not SHARES_CONTEXTS, reason="this release of transformers has no context parallel")
@pytest.mark.parametrize("shares", [True, False])
def test_a_backward_runs_within_a_shared_context(
    shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    run = trainer(tmp_path, max_steps=1, gradient_accumulation_steps=1)
    run.model.out.weight.register_hook(lambda grad: events.append("backward") or grad)

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        events.append("opened")
        yield
        events.append("closed")

    monkeypatch.setattr(run, "_prepare_context_parallel_inputs", lambda _, inputs: (context, inputs))
    monkeypatch.setattr(type(run.accelerator), "shares_contexts", property(lambda _: shares))
    run.train()
    order = ["opened", "backward", "closed"] if shares else ["opened", "closed", "backward"]
    assert events == order
