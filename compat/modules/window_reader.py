"""Accumulation windows in a user's Lightning Trainer: batches are read ahead, as HF reads them."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.connectors.data_connector import (
    _DataLoaderSource,
    _process_dataloader,
    _resolve_overfit_batches,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from transformers.trainer_utils import has_length

from compat.engine.loader_state import Generators
from compat.engine.position import (
    Batches,
    Draws,
    Position,
    draws,
    draws_here,
    is_stateful,
    looks_ahead,
    redraw,
    wake,
)
from compat.engine.resumption import Resumed, count_pass
from compat.engine.windows import Window, fetch_windows, window_at
from compat.errors import ArgumentError
from compat.modules.hf_datamodule import HFLoader, ended
from compat.upstream.devices import random_states, restore_random_states
from compat.upstream.schedule import update_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    import torch

    from compat.engine.host import TrainerHost
    from compat.upstream.values import Loader, NumItems


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a micro-batch in its accumulation window.

    Attributes:
        num_items: the number of items of the whole window, HF's `num_items_in_batch`.
        count: micro-batches of the window.
        size: micro-batches of a full window.
        closes: whether the optimizer steps after it.
    """

    num_items: NumItems
    count: int
    size: int
    closes: bool


class WindowsModule(Protocol):
    """The members of an HFModule that a reader uses."""

    @property
    def trainer(self) -> Any:
        """The module's Lightning Trainer."""

    @property
    def hf(self) -> TrainerHost:
        """The module's HF Trainer, which fetches and counts."""

    @property
    def device(self) -> torch.device:
        """The device that it trains on."""

    @property
    def current_epoch(self) -> int:
        """The epoch in progress."""


class WindowSource(_DataLoaderSource):
    """The source of the fit loop's train dataloader, which is read in windows if an HFModule trains."""

    def dataloader(self) -> Loader:
        """Return the loader of the module, of the datamodule, or the one passed to `fit`."""
        loader: Loader = super().dataloader()
        trainer = self.trainer
        if getattr(trainer.lightning_module, "reads_windows", False):
            return _in_windows(loader, trainer)
        return loader

    @staticmethod
    def go_on(trainer: Any) -> None:
        """Set the position of a reader that was created before the checkpoint was read.

        Schedulers need the length of the data, and Lightning reads checkpoints only after that.
        """
        loop = trainer.fit_loop
        states, loop._combined_loader_states_to_load = loop._combined_loader_states_to_load, []
        if states:
            loop._combined_loader._load_state_dicts(states)
            iter(loop._data_fetcher)

    @classmethod
    def put_into(cls, trainer: Any) -> None:
        """Install this source in the fit loop of `trainer`."""
        loop = trainer.fit_loop
        if not isinstance(loop._data_source, cls):
            loop._data_source = cls(loop._data_source.instance, loop._data_source.name)
            loop._data_source.trainer = trainer

    trainer: Any = None


def _in_windows(loader: Loader, trainer: Any) -> WindowReader:
    combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
    if len(combined.flattened) != 1:
        msg = (
            f"`train_dataloader`: there are {len(combined.flattened)}, and an HFModule takes the batches of "
            "one. Give it one loader, or put the datasets together."
        )
        raise ArgumentError(msg)
    if trainer.overfit_batches > 0:
        # The same batches in each epoch.
        _resolve_overfit_batches(combined, mode=RunningStage.TRAINING)
    (only,) = combined.flattened
    # Lightning does not look inside a reader, so its changes to loaders are made here.
    processed = _process_dataloader(trainer, TrainerFn.FITTING, RunningStage.TRAINING, only)
    reader = WindowReader(processed, trainer.lightning_module)
    trainer.lightning_module.reader = reader
    return reader


class WindowReader:
    """A train dataloader that reads one accumulation window at a time and yields its batches.

    HF counts the items of a window before its first forward. The windows are those of Lightning's Trainer:
    `accumulate_grad_batches` batches each, counted from the beginning of the epoch, and a shorter one at its
    end. A run that resumes in the middle of an epoch continues with the next batch.

    Args:
        loader: the loader.
        module: the module whose HF Trainer fetches and counts.
    """

    def __init__(self, loader: Loader, module: WindowsModule) -> None:
        self._loader: Loader = loader
        self._module = module
        self._places: deque[Place] = deque()
        self._taken = 0
        self._is_over = False
        self._order: Draws | None = None
        self._batches: Batches | None = None
        self._goes_on: dict[str, Any] = {}
        self._generators = Generators(self.raw)

    @property
    def raw(self) -> Loader:
        """The wrapped loader."""
        return self._loader.loader if isinstance(self._loader, HFLoader) else self._loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Fetch lazily: Lightning requests iterators early, and more than once."""
        self._places = deque()
        return self._read(self._places)

    def take(self) -> Place:
        """Return the place of the batch that the next training step receives.

        Raises:
            ArgumentError: its window was read for another accumulation than Lightning's current one.
        """
        self._taken += 1
        place, size = self._places.popleft(), self._module.trainer.accumulate_grad_batches
        if place.size != size:
            msg = (
                f"`accumulate_grad_batches={size}`: data without a length is read ahead, and its first "
                f"window was of {place.size}. Keep one number for the whole run, or give data with a length."
            )
            raise ArgumentError(msg)
        return place

    def _read(self, places: deque[Place]) -> Iterator[Any]:
        goes_on, self._goes_on = self._goes_on, {}
        step: int = goes_on.get("batches", 0)
        self._taken, self._is_over = step, False
        self._generators = Generators(self.raw)
        rest = None
        if goes_on:
            position = _position(goes_on)
            if step:
                restore = partial(_restore, goes_on)
                rest = Resumed(self.raw, seen=step, position=position, restore=restore)
            else:
                count_pass(self.raw, position)
        if goes_on:
            _redraw(goes_on["order"] if step else goes_on["draws"], self._generators)
        loader = self.raw if rest is None else rest.loader
        if isinstance(self._loader, HFLoader):
            self._loader.seed(loader)
        if self._module.current_epoch > 0:
            wake(loader, self._generators)
        self._order = _draws(self._generators)
        notes = looks_ahead(loader) and draws_here(loader)
        self._batches = batches = Batches(iter(loader), notes=notes, generators=self._generators)
        if rest is None:
            yield from self._windows(loader, batches, places, step, None)
            return
        rest.begin(batches)
        try:
            yield from self._windows(loader, batches, places, step, rest)
        finally:
            rest.end()

    def _windows(
        self, loader: Loader, batches: Batches, places: deque[Place], step: int, rest: Resumed | None
    ) -> Iterator[Any]:
        trainer = self._module.trainer
        last = trainer.fit_loop._combined_loader.limits[0]

        def window_from(at: int) -> Window | None:
            return window_at(at, size=trainer.accumulate_grad_batches, length=last)

        with ended(loader):
            for window in fetch_windows(batches, step, window_from, self._fetch):
                step += len(window.batches)
                self._is_over = window.is_short or step >= last
                if rest is not None:
                    # Batches beyond Lightning's limit must not be drawn.
                    ends = self._is_over and not (has_length(loader) and last < len(loader))
                    rest.after_window(batches if ends else None)
                count, size = len(window.batches), trainer.accumulate_grad_batches
                for index, batch in enumerate(window.batches):
                    places.append(Place(window.num_items, count, size, index == count - 1))
                    yield batch
                if window.is_short:
                    return

    def _fetch(self, batches: Batches, count: int) -> tuple[list[Any], Any]:
        read: tuple[list[Any], Any] = self._module.hf.get_batch_samples(batches, count, self._module.device)
        return read

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the run in its data, which Lightning stores in its checkpoints."""
        is_between = self._is_over and not self._places
        return {
            "batches": 0 if is_between else self._taken,
            "order": self._order,
            "ahead": None if self._batches is None else self._batches.ahead,
            "draws": _draws(self._generators),
            "loader": self.raw.state_dict() if is_stateful(self.raw) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a run.

        Args:
            state: the result of `state_dict`.
        """
        self._goes_on = dict(state)


def _position(state: dict[str, Any]) -> Position:
    """Return the position of a run from the result of `WindowReader.state_dict`."""
    return Position.of(
        {"epoch": 0, "is_over": False, "depends_on": {}, "own": state["draws"].get("own"), **state}
    )


def _restore(state: dict[str, Any]) -> None:
    # The loader's own random states are restored where its batches are drawn.
    _redraw({**state["draws"], "own": {}}, Generators())


def _draws(generators: Generators) -> dict[str, Any]:
    state: dict[str, Any] = draws(generators)
    state["devices"] = random_states()
    return state


def _redraw(state: dict[str, Any], generators: Generators) -> None:
    redraw(state, generators)
    # Checkpoints of 0.2.0 have those of CUDA devices only.
    restore_random_states(state.get("devices") or {"cuda": state.get("cuda", ())})


def total_steps(trainer: Any) -> int:
    """Return the number of update steps of a Lightning Trainer, even if the size of windows changes.

    Raises:
        ArgumentError: the length of the run cannot be determined.
    """
    changing = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
    if changing and trainer.max_epochs > 0:
        trainer.fit_loop.setup_data()
        sizes = map(changing[0].get_accumulate_grad_batches, range(trainer.max_epochs))
        steps = update_steps(trainer.num_training_batches, sizes)
        steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
        return _finite(steps, trainer)
    if trainer.max_steps > 0 and trainer.max_epochs == sys.maxsize:
        return int(trainer.max_steps)
    return _finite(trainer.estimated_stepping_batches, trainer)


def _finite(steps: float, trainer: pl.Trainer) -> int:
    if steps in {-1, math.inf}:
        msg = (
            f"`max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}`: HF's schedules need to know "
            "how long the run is. Give the Lightning Trainer `max_steps`, or `max_epochs` and sized data."
        )
        raise ArgumentError(msg)
    return int(steps)
