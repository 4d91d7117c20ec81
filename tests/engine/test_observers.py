"""Only hooks that somebody has are called, and each that somebody has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest

from compat.engine.loops import AutomaticOptimization
from tests.small import losses, rows, trainer, weights

if TYPE_CHECKING:
    from pathlib import Path

WITHIN = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
AROUND = ("on_train_batch_start", "on_train_batch_end")


def callback_with(seen: list[str], *hooks: str, by_itself: bool = False) -> pl.Callback:
    """A callback that notes the hooks that it has, by its class or by the object."""

    def noting(hook: str) -> Any:
        return lambda *_, **__: seen.append(hook)

    methods = {hook: noting(hook) for hook in hooks}
    callback: pl.Callback = type("Noting", (pl.Callback,), {} if by_itself else methods)()
    if by_itself:
        vars(callback).update(methods)
    return callback


@pytest.fixture
def closures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each micro-batch that runs in a closure of Lightning's."""
    calls: list[int] = []
    run = AutomaticOptimization.run

    def counted(self: Any, optimizer: Any, batch_idx: int, kwargs: Any) -> Any:
        calls.append(batch_idx)
        return run(self, optimizer, batch_idx, kwargs)

    monkeypatch.setattr(AutomaticOptimization, "run", counted)
    return calls


def trained(folder: Path, *callbacks: Any) -> Any:
    made = trainer(folder, train_dataset=rows(4), lightning={"callbacks": list(callbacks)})
    made.train()
    return made


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("hook", [*WITHIN, *AROUND])
def test_a_hook_is_called_at_each_step(
    hook: str, by_itself: bool, tmp_path: Path, closures: list[int]
) -> None:
    seen: list[str] = []
    plain = trained(tmp_path / "plain")
    observed = trained(tmp_path / "observed", callback_with(seen, hook, by_itself=by_itself))
    assert seen == [hook] * observed.state.global_step
    assert observed.state.global_step > 0
    assert len(closures) == (len(seen) if hook in WITHIN[:3] else 0)
    assert losses(plain) == losses(observed)
    assert weights(plain) == weights(observed)


def test_a_callback_that_is_added_within_a_run_is_heard(tmp_path: Path, closures: list[int]) -> None:
    seen: list[str] = []

    class Adds(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if not seen and len(trainer.callbacks) == self.before:
                trainer.callbacks.append(callback_with(seen, *WITHIN[:3]))

        def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.before = len(trainer.callbacks)

    made = trained(tmp_path, Adds())
    assert seen == [*WITHIN[:3]] * (made.state.global_step - 1)
    assert len(closures) == made.state.global_step - 1 > 0


def test_a_metric_is_logged_from_a_hook_and_outputs_hold_the_loss(tmp_path: Path) -> None:
    outputs = []

    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, output: Any, *_: Any) -> None:
            outputs.append(output["loss"])
            module.log("mine", float(len(outputs)))

    made = trained(tmp_path, Logs())
    assert made.lightning.callback_metrics["mine"] == len(outputs) == made.state.global_step
    assert not any(loss.requires_grad for loss in outputs)
