"""What HF's Trainer is asked to do in a run, whichever release is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import transformers
from transformers.utils import logging

import compat
from compat.upstream.environment import contained
from tests.small import Regression, arguments, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HF_OPTIONS = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def environment() -> Iterator[None]:
    """A process of its own: HF's arguments leave variables behind under transformers 4."""
    with contained():
        yield


class WithInputs(Regression):
    main_input_name = "x"


def test_tokens_are_not_counted_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = compat.Trainer(model=Regression(), args=arguments(tmp_path), train_dataset=rows())
    gathered: list[Any] = []
    warned: list[str] = []
    gather = trainer.accelerator.gather
    monkeypatch.setattr(trainer.accelerator, "gather", lambda it: gathered.append(it) or gather(it))
    monkeypatch.setattr(logging.get_logger("transformers.trainer"), "warning", warned.append)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 0
    assert gathered == []
    assert warned == []
    assert "num_input_tokens_seen" not in trainer.state.log_history[0]


@pytest.mark.parametrize("how", [True, "all"])
def test_tokens_are_counted_where_the_arguments_say_so(tmp_path: Path, how: Any) -> None:
    args = arguments(tmp_path, include_num_input_tokens_seen=how)
    trainer = compat.Trainer(model=WithInputs(), args=args, train_dataset=rows())
    trainer.train()
    history = trainer.state.log_history
    assert trainer.state.num_input_tokens_seen == 3 * 2 * 4
    assert [entry["num_input_tokens_seen"] for entry in history] == [8, 16, 24, 24]


@pytest.mark.usefixtures("environment")
def test_arguments_of_hf_itself_are_taken(tmp_path: Path) -> None:
    args = transformers.TrainingArguments(str(tmp_path), **HF_OPTIONS)
    trainer = compat.Trainer(model=Regression(), args=args, train_dataset=rows(), eval_dataset=rows(4))
    assert trainer.train().global_step == 3
    assert trainer.evaluate()["epoch"] == 0.5


def calls_of(base: type[Any]) -> tuple[type[Any], list[str]]:
    """A subclass that notes which of its methods make optimizer and scheduler, and these."""
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(super(kind, self), name)(*args, **kwargs)

        return method

    names = ("create_optimizer", "create_optimizer_and_scheduler", "create_scheduler")
    kind = type("Noting", (base,), {name: noted(name) for name in names})
    return kind, calls


@pytest.mark.usefixtures("environment")
def test_optimizer_and_scheduler_are_made_by_the_methods_that_hf_calls(tmp_path: Path) -> None:
    made = {}
    for module in (transformers, compat):
        kind, made[module] = calls_of(module.Trainer)
        args = module.TrainingArguments(str(tmp_path), **HF_OPTIONS)
        kind(model=Regression(), args=args, train_dataset=rows()).train()
    assert made[compat] == made[transformers] != []
