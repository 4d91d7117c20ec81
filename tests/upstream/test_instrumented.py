"""Tools that listen to Lightning's `fit` hear nothing of a run that HF's callbacks report."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import transformers

from tests.small import losses, rows, trainer, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Tool:
    """Autologging in the manner of mlflow: a run for each `fit`, named at random, and a callback.

    Attributes:
        heard: the names of its runs, and the metrics that it has seen.
    """

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def instrument(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `fit` in a function."""

        @functools.wraps(fit)
        def patched(instance: pl.Trainer, *args: Any, **kwargs: Any) -> Any:
            self.heard.append(random.random())  # noqa: S311 (a name)
            instance.callbacks.append(Reports(self.heard))
            return fit(instance, *args, **kwargs)

        return patched


class Reports(pl.Callback):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.heard.append(dict(trainer.callback_metrics))


class Proxy:
    """A wrapper that is an object, in the manner of wrapt, on which OpenTelemetry stands."""

    def __init__(self, wrapped: Any, wrapper: Any) -> None:
        self.__wrapped__, self.wrapper = wrapped, wrapper

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)


WAYS: dict[str, Callable[[Tool, Any], Any]] = {
    "a function": Tool.instrument,
    "an object": lambda tool, fit: Proxy(fit, tool.instrument(fit)),
    "one around the other": lambda tool, fit: tool.instrument(Proxy(fit, tool.instrument(fit))),
}


class HFReports(transformers.TrainerCallback):
    """What an integration of HF's sees of a run."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append((state.global_step, sorted(logs)))


def trained(folder: Path) -> tuple[Any, ...]:
    random.seed(3)
    reports = HFReports()
    made = trainer(folder, callbacks=[reports], train_dataset=rows(6), eval_strategy="epoch")
    made.train()
    return losses(made), weights(made), reports.seen, random.random()  # noqa: S311 (whether one was drawn)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_reported_once(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(tmp_path / "alone")
    tool = Tool()
    monkeypatch.setattr(pl.Trainer, "fit", WAYS[way](tool, pl.Trainer.fit))
    assert trained(tmp_path / "instrumented") == expected
    assert tool.heard == []
    assert [step for step, names in expected[2] if "eval_loss" in names] == [3]


def test_what_a_tool_has_wrapped_stays_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = Tool().instrument(pl.Trainer.fit)
    monkeypatch.setattr(pl.Trainer, "fit", patched)
    trained(tmp_path)
    assert pl.Trainer.fit is patched
