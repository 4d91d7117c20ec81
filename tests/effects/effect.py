"""An effect: the same small script run without an argument and with it, and what is seen in either run."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

import compat
from tests import small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pytest

ALWAYS = {
    "output_dir": "out",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}
"""Options of every run, unless its effect says otherwise."""


def differ(without: Any, with_it: Any) -> bool:
    """Whether the runs differ, where numbers cannot be told beforehand."""
    return without != with_it


def same(without: Any, with_it: Any) -> bool:
    """Whether the runs are equal."""
    return without == with_it


@dataclass(frozen=True)
class Effect:
    """What one argument does.

    Attributes:
        field: the argument.
        value: what it is given.
        observe: runs a script on a bench and returns what was seen.
        expected: what is seen without the argument and with it, or what must hold between the two.
        base: other options of both runs.
        replaced_by: for a name that the newest release no longer has: what its warning must name as well.
        warns: whether it warns; every name that the newest release no longer has does.
        note: tells apart several effects of one argument.
    """

    field: str
    value: Any
    observe: Callable[[Bench], Any]
    expected: tuple[Any, Any] | Callable[[Any, Any], bool]
    base: Mapping[str, Any] = field(default_factory=dict)
    replaced_by: str = ""
    warns: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """Its id among the tests."""
        return f"{self.field}-{self.note}" if self.note else self.field

    def options(self, *, given: bool) -> dict[str, Any]:
        """The arguments of one of the two runs.

        Args:
            given: whether the argument is among them.
        """
        # transformers 5 writes into dictionaries that it is given.
        options = copy.deepcopy({**ALWAYS, **self.base})
        if given:
            return {**options, self.field: copy.deepcopy(self.value)}
        if self.field not in self.base:
            options.pop(self.field, None)
        return options


@dataclass
class Bench:
    """Makes the arguments and the trainers of one run.

    Attributes:
        options: the arguments, as they are given.
        patch: changes that end with the run.
        warned: the warnings of each time that arguments were made.
    """

    options: Mapping[str, Any]
    patch: pytest.MonkeyPatch
    warned: list[list[str]] = field(default_factory=list)

    def arguments(self, kind: type | None = None) -> Any:
        """Make the arguments, keeping their warnings for the test to look at.

        Args:
            kind: their class.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", category=FutureWarning)
            args = (kind or compat.TrainingArguments)(**self.options)
        self.warned.append([str(warning.message) for warning in caught])
        return args

    def trainer(self, kind: type | None = None, **parts: Any) -> Any:
        """Make a trainer of small parts.

        Args:
            kind: its class.
            **parts: what differs from `tests.small`; arguments are those of the run if none are given.
        """
        torch.manual_seed(0)
        args = parts.pop("args", None) or self.arguments()
        defaults = {"train_dataset": small.rows(), "eval_dataset": small.rows(5)}
        # Made one by one: a model that is given must not draw from the generator for one that is not.
        model = parts.pop("model", None) or small.Regression()
        return (kind or compat.Trainer)(model=model, args=args, **{**defaults, **parts})

    def trained(self, **parts: Any) -> Any:
        """Make a trainer, train and give it back."""
        trainer = self.trainer(**parts)
        trainer.train()
        return trainer

    def spy(self, owner: Any, name: str, then: Callable[..., Any] | None = None) -> list[Any]:
        """Note the calls of a function, and go on with it.

        Args:
            owner: what it is an attribute of.
            name: its name there.
            then: what to call in its place.

        Returns:
            A list that grows by one namespace of keywords at each call.
        """
        calls: list[SimpleNamespace] = []
        target = then or getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            calls.append(SimpleNamespace(**kwargs))
            return target(*args, **kwargs)

        self.patch.setattr(owner, name, noted)
        return calls


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back what transformers sets for the whole process."""
    verbosity = logging.get_verbosity()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cudnn.deterministic = False
