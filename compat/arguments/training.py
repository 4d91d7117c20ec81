"""`TrainingArguments`: HF's class for every generation, without its side effects on the process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from transformers.utils import logging

from compat.arguments.checks import Problem
from compat.arguments.fields import is_secret, masked
from compat.arguments.fsdp_entries import warn_of_first, wrap_by_size
from compat.arguments.generations import hidden
from compat.arguments.lightning import count
from compat.arguments.machine import machine_problems, processes_for
from compat.arguments.names import (
    COMPLETE,
    drop_overruled,
    names_of_subclass,
    native_defaults,
    own_fields,
    uncover,
    warn_of_old_names,
    with_other_names,
)
from compat.arguments.parser import FLAGS_OF_LIGHTNING
from compat.arguments.resolve import reconcile
from compat.arguments.setters import refuses_unknown_names, with_all_parameters
from compat.errors import ArgumentError
from compat.upstream import process, started
from compat.upstream.choices import CHOICES
from compat.upstream.environment import Here, concealed, contained, is_kept_on_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.get_logger("transformers.training_args")

_OfAllGenerations: Any = with_other_names(transformers.TrainingArguments, __name__)


@refuses_unknown_names
@with_all_parameters
@dataclass(repr=False)
class TrainingArguments(_OfAllGenerations):  # type: ignore[misc]
    """The arguments of a training run: HF's fields, defaults and methods, unchanged.

    Mirrors `transformers.TrainingArguments`; an instance is one. Step counts are update steps (optimizer
    steps), batch sizes are samples per device and micro-step. The names of other generations are accepted as
    well, and mean the same as the current names; an old name raises a `FutureWarning` with the new one.

    Mixed precision, compilation and sharding reach accelerate as `ACCELERATE_*` and `FSDP_*` variables, which
    HF's class leaves in the environment for the next run to read. This one keeps them in
    `accelerate_environment`; the trainer shows them to accelerate only while it builds the accelerator.

    Args:
        lightning: flags of `lightning.pytorch.Trainer` by name, which take precedence over HF's arguments.
            Flags that contradict HF's semantics are refused.

    Raises:
        ArgumentError: a name that does not exist, a value of the wrong type or out of range, arguments that
            contradict each other: all problems at once, before anything is built. It is a `ValueError`.
    """

    __doc__ = (transformers.TrainingArguments.__doc__ or "") + (
        "\n    Args of compat:\n"
        "        lightning (`dict`, *optional*):\n"
        "            Flags of `lightning.pytorch.Trainer`, which win over what the other arguments say.\n"
    )

    other_names: ClassVar[frozenset[str]]
    on_given: ClassVar[Any] = None
    """Called with the class and its arguments, before they are processed."""
    accelerate_environment: ClassVar[dict[str, str]] = {}
    given_otherwise: ClassVar[dict[str, Any]] = {}

    lightning: dict[str, Any] | str | None = dataclasses.field(default=None, metadata=FLAGS_OF_LIGHTNING)

    def __post_init__(self) -> None:
        values = self.__dict__
        given = dict(values)
        uncover(type(self))
        if TrainingArguments.on_given is not None:
            TrainingArguments.on_given(type(self), given)
        drop_overruled(values, type(self))
        migrated, found = reconcile(values, native_defaults(type(self)), CHOICES)
        started.join()
        here = Here.look(is_distributed=process.is_launched())
        kind = "cpu" if self._stays_on_cpu() else here.device_type
        found = [*found, *map(Problem, machine_problems(self, kind, here))]
        if found:
            self._refuse(found)
        warn_of_old_names(name for name in migrated.old if name not in names_of_subclass(type(self)))
        warn_of_first(given)
        self._start_other_processes(here.devices or 1 if kind == "cuda" else 1)
        replaced = hidden(values, native_defaults(type(self)))
        shown = {name: values[name] for name in replaced}
        values.update(replaced)
        with contained() as written, _said_already(migrated.old):
            super().__post_init__()
        wrap_by_size(self)
        values.update(shown)
        # `to_dict()` contains only fields; these are none, so that they are never logged or saved.
        values.update({COMPLETE: written, "given_otherwise": migrated.given})

    @functools.cached_property
    def _setup_devices(self) -> Any:
        """Run HF's method, which treats a backend as a sign of a distributed job."""
        values, backend = self.__dict__, self.ddp_backend
        if started.is_ahead_of_group():
            # Alone, like the process that has started this one, until the group is there.
            with concealed(started.TOLD_BY_LIGHTNING):
                return super()._setup_devices
        if backend is None or process.is_launched() or _has_group():
            return super()._setup_devices
        logger.warning_once(
            f"`ddp_backend={backend!r}` has no effect: this run has one process, which needs no other. "
            "torchrun, or `lightning={'devices': N}`, starts several."
        )
        values["ddp_backend"] = None
        try:
            return super()._setup_devices
        finally:
            values["ddp_backend"] = backend

    def _stays_on_cpu(self) -> bool:
        return bool(self.use_cpu or getattr(self, "no_cuda", False) or is_kept_on_cpu())

    def _start_other_processes(self, gpus: int) -> None:
        """Make this process the first of a job, if `lightning` or the number of GPUs requires several."""
        flags: Any = self.lightning or {}
        asked, nodes = flags.get("devices"), flags.get("num_nodes") or 1
        processes: int | None = count(asked) or 1
        if processes == 1 < gpus:
            processes = processes_for(
                gpus,
                is_told=asked is not None or process.is_told,
                is_launched=process.is_launched(),
                has_script=process.has_script(),
            )
        if processes is None:
            started.warn_of_idle(gpus)
        started.start(processes or 1, nodes)
        if self.deepspeed:
            started.require_group()
            # Done here already: under ZeRO-3, `from_pretrained` needs the process group.
            started.form_job_of_one()

    def _refuse(self, found: list[Problem]) -> None:
        """Raise one error for all problems, with HF's own messages where they exist."""
        lines = [problem.text for problem in found]
        cause = None
        if any(problem.upstream_raises for problem in found):
            try:
                with contained(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    super().__post_init__()
            except Exception as error:  # noqa: BLE001 (whatever HF raises for these values)
                cause = error
                lines.append(f"In transformers' words: {error}")
        msg = "\n".join(lines)
        raise ArgumentError(msg) from cause

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the number of update steps over which the learning rate rises.

        Mirrors `transformers.TrainingArguments.get_warmup_steps`; `warmup_steps` below 1 is a fraction of the
        run under every release.

        Args:
            num_training_steps: length of the run in update steps.
        """
        if 0 < self.warmup_steps < 1:
            fraction: float = self.warmup_steps
            return math.ceil(num_training_steps * fraction)
        steps: int = super().get_warmup_steps(num_training_steps)
        return steps

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain data, tokens masked: the installed release's names, and others set.

        Mirrors `transformers.TrainingArguments.to_dict`.
        """
        shown: dict[str, Any] = super().to_dict()
        for name in [name for name in own_fields(type(self)) if name in shown]:
            # At the position of a subclass's field, even if it is the name of another generation.
            shown[name] = shown.pop(name)
        if "lightning" in shown:
            shown["lightning"] = described(self.lightning)
        # HF masks only values that are tokens themselves.
        return {
            name: value if isinstance(value, str) else masked(name, value) for name, value in shown.items()
        }

    def __str__(self) -> str:
        names = sorted(field.name for field in dataclasses.fields(self))
        lines = [f"{name}={self._text(name)},\n" for name in names if not name.startswith("per_gpu_")]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    __repr__ = __str__

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        if name.endswith("_token"):
            return f"<{name.upper()}>"
        value = masked(name, described(value) if name == "lightning" else value)
        is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
        return f"{dataclasses.asdict(value) if is_record else value}"


def _has_group() -> bool:
    """Whether a script has created a process group itself."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def described(value: object) -> Any:
    """Convert `value` for JSON: a live object becomes the name of its class."""
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


class Secret(str):
    """A token that can be used, but is not pickled."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


@contextlib.contextmanager
def fit_to_save(args: Any) -> Iterator[None]:
    """Make arguments picklable without their secrets and live objects; both remain usable meanwhile.

    Args:
        args: HF arguments, HF's own or ours.
    """
    values = vars(args)
    before = dict(values)
    if before.get("lightning"):
        values["lightning"] = described(before["lightning"])
    values.update({name: _fit_to_save(name, value) for name, value in values.items()})
    try:
        yield
    finally:
        values.update(before)


def _fit_to_save(name: str, value: Any) -> Any:
    """Replace secrets in `value` by ones that are not pickled."""
    if isinstance(value, str):
        return Secret(value) if is_secret(name) else value
    if type(value) is dict:
        return {key: _fit_to_save(str(key), item) for key, item in value.items()}
    return type(value)(_fit_to_save(name, item) for item in value) if type(value) in (list, tuple) else value


@contextlib.contextmanager
def _said_already(names: tuple[str, ...]) -> Iterator[None]:
    """Suppress HF's own warnings about names that ours has already warned about."""
    with warnings.catch_warnings():
        for name in names:
            warnings.filterwarnings("ignore", message=f".*{name}", category=FutureWarning)
        yield
