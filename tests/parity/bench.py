"""What a set-up is, and the bench on which one is run under one API."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version

from tests.parity.events import EventRecorder
from tests.parity.parts import data, models, scripts
from tests.parity.parts.steps import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

NAMES = ("Trainer", "Seq2SeqTrainer", "TrainingArguments", "Seq2SeqTrainingArguments")

ALWAYS: Mapping[str, Any] = MappingProxyType(
    {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 0.01,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
    }
)

Fields = dict[str, dataclasses.Field]


def lacks(name: str) -> Callable[[Fields], bool]:
    """Whether a release has no field of this name."""
    return lambda known: name not in known


def is_not(name: str, kind: str) -> Callable[[Fields], bool]:
    """Whether a release takes no value of this kind for a field."""
    return lambda known: kind not in str(known[name].type)


@dataclass(frozen=True)
class Older:
    """How to say to an older release what a set-up says in the words of the newest one.

    Args:
        is_needed: whether a release that has these fields does not understand the newest words.
        said: the value in the newest words → fields in the older ones.
    """

    is_needed: Callable[[Fields], bool]
    said: Callable[[Any], dict[str, Any]]


OLDER: Mapping[str, Older] = MappingProxyType(
    {
        "activation_checkpointing": Older(
            lacks("activation_checkpointing"), lambda on: {"gradient_checkpointing": on}
        ),
        "activation_checkpointing_kwargs": Older(
            lacks("activation_checkpointing_kwargs"), lambda kw: {"gradient_checkpointing_kwargs": kw}
        ),
        "train_sampling_strategy": Older(
            lacks("train_sampling_strategy"), lambda how: {"group_by_length": how == "group_by_length"}
        ),
        "include_num_input_tokens_seen": Older(
            is_not("include_num_input_tokens_seen", "str"),
            lambda how: {"include_num_input_tokens_seen": how == "all"},
        ),
        "warmup_steps": Older(
            is_not("warmup_steps", "float"),
            lambda steps: {"warmup_ratio": steps} if 0 < steps < 1 else {"warmup_steps": steps},
        ),
    }
)


@dataclass(frozen=True)
class Api:
    """The four public classes of one library.

    Args:
        name: the module they come from.
    """

    name: str
    Trainer: type
    Seq2SeqTrainer: type
    TrainingArguments: type
    Seq2SeqTrainingArguments: type


def load_api(name: str) -> Api:
    """Import `transformers` or `compat` and take its four classes."""
    module = importlib.import_module(name)
    return Api(name, *(getattr(module, attribute) for attribute in NAMES))


@dataclass(frozen=True)
class Limit:
    """Releases of transformers on which a set-up means nothing.

    Args:
        why: what these releases do instead.
        since: first release that can do it.
        before: first release that no longer can.
    """

    why: str
    since: str = "0"
    before: str = "999"

    def excludes(self, release: str) -> bool:
        """Whether the release lies outside the range."""
        return not Version(self.since) <= Version(release) < Version(self.before)


@dataclass(frozen=True)
class Setup:
    """One script with its data, to be run under two APIs.

    Args:
        name: `group/what it shows`.
        args: fields of the training arguments, in the names of the newest release.
        model: builds the model.
        train: builds the training set.
        eval: builds the evaluation set.
        extras: further constructor arguments of the Trainer, built from the model.
        subclass: makes the user's Trainer from the API's.
        script: what the user does with it; what it returns is recorded.
        seq2seq: use the Seq2Seq classes.
        limit: releases that cannot do this.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] = models.regression
    train: Callable[[], Any] | None = data.regression
    eval: Callable[[], Any] | None = data.evaluation
    extras: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    subclass: Callable[[type], type] = plain
    script: Callable[[Bench], Any] = scripts.train
    seq2seq: bool = False
    limit: Limit | None = None

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    def why_not(self) -> str | None:
        """Why the installed release cannot do this, if it cannot."""
        release = transformers.__version__
        return self.limit.why if self.limit and self.limit.excludes(release) else None


class Bench:
    """Makes the trainers of a set-up under one API and remembers them.

    Args:
        api: whose classes to use.
        setup: what to build.
        out_dir: where the run may write.
    """

    def __init__(self, api: Api, setup: Setup, out_dir: Path) -> None:
        self.api = api
        self.setup = setup
        self.out_dir = out_dir
        self.trainers: list[tuple[Any, EventRecorder]] = []

    def arguments(self, **changes: Any) -> Any:
        """Build the training arguments in the names the installed release knows.

        Args:
            **changes: fields that differ from the set-up's.
        """
        setup, api = self.setup, self.api
        factory = api.Seq2SeqTrainingArguments if setup.seq2seq else api.TrainingArguments
        known = {f.name: f for f in dataclasses.fields(factory)}
        # Ours take the newest words under each release.
        is_newest = "activation_checkpointing" in known
        # transformers 5 writes into nested dictionaries it is given: each run gets its own.
        given = copy.deepcopy({**setup.args, **changes})
        wanted = {"output_dir": str(self.out_dir), **ALWAYS, **given}
        said: dict[str, Any] = {}
        for name, value in wanted.items():
            older = None if is_newest else OLDER.get(name)
            said |= older.said(value) if older and older.is_needed(known) else {name: value}
        return factory(**said)

    def trainer(self, callbacks: tuple = (), **changes: Any) -> Any:
        """Build one trainer of the set-up, watched by an event recorder.

        Args:
            callbacks: callbacks besides the set-up's own.
            **changes: fields of the training arguments that differ from the set-up's.
        """
        setup, recorder = self.setup, EventRecorder()
        args = self.arguments(**changes)
        cls = setup.subclass(self.api.Seq2SeqTrainer if setup.seq2seq else self.api.Trainer)
        model = setup.model()
        given: dict[str, Any] = {
            "model": model,
            "args": args,
            "train_dataset": setup.train and setup.train(),
            "eval_dataset": setup.eval and setup.eval(),
            **setup.extras(model),
        }
        given["callbacks"] = [*given.get("callbacks", ()), *callbacks, recorder]
        trainer = cls(**given)
        self.trainers.append((trainer, recorder))
        return trainer

    def run(self) -> Any:
        """Run the set-up's script."""
        return self.setup.script(self)
