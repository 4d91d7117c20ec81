"""Agreement of HF's arguments with the flags of the Lightning Trainer: data and pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.arguments.fields import FIELDS, shown
from compat.arguments.names import native_defaults
from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.callbacks.loggers import ALIASES, REPORTS
from compat.cli.lightning.handling import HANDLING, OPTIMIZERS, Part
from compat.planning import plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SAID: dict[str, str] = {
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "gradient_clip_val": "max_grad_norm",
    "max_epochs": "num_train_epochs",
    "max_steps": "max_steps",
}
"""Flag of the Lightning Trainer → the equivalent HF argument."""

PRECISIONS = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Lightning's name of a precision → the equivalent HF argument."""

CLASHES = {**{field: flag for flag, field in SAID.items()}, "bf16": "precision", "fp16": "precision"}
"""HF argument → the flag of the Lightning Trainer that it may contradict."""


def flags_given(trainer: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of the Lightning Trainer that differ from their defaults.

    Args:
        trainer: flag → value.
        defaults: flag → its default value.
    """
    return {name: value for name, value in trainer.items() if value != defaults.get(name)}


def preset_flags(
    defaults: Mapping[str, Any], of_lightning: Mapping[str, Any], given: Iterable[str]
) -> dict[str, Any]:
    """Return the flags of the Lightning Trainer for which a command has other defaults.

    Args:
        defaults: flag → its default value.
        of_lightning: flag → the default value of any Lightning Trainer.
        given: the given HF arguments, which take precedence over defaults.
    """
    said = {CLASHES[field] for field in given if field in CLASHES}
    return {
        name: value
        for name, value in defaults.items()
        if name not in said and value != of_lightning.get(name, value)
    }


def arguments_given(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the HF arguments among the settings of a command."""
    return {name: _typed_as(name, own[name]) for name in FIELDS if name in own}


def said_by_flags(explicit: Mapping[str, Any], seed: object) -> dict[str, Any]:
    """Convert flags of the Lightning Trainer to HF arguments, so that schedules take them into account.

    Args:
        explicit: the given flags.
        seed: `seed_everything`.
    """
    said = {
        field: explicit[flag]
        for flag, field in SAID.items()
        if flag in explicit and explicit[flag] is not None and explicit[flag] >= 0
    }
    if field := PRECISIONS.get(str(explicit.get("precision"))):
        said[field] = True
    if explicit.get("accelerator") == "cpu":
        said["use_cpu"] = True
    if explicit.get("enable_progress_bar") is False:
        said["disable_tqdm"] = True
    if seed not in (None, False, True):
        said["seed"] = seed
    asked = {name: explicit[name] for name in ("devices", "num_nodes") if name in explicit}
    return {**said, **({"lightning": asked} if asked else {})}


def clashes(own: Mapping[str, Any], given: Mapping[str, Any], explicit: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each contradiction between HF's arguments and Lightning's flags.

    Args:
        own: the settings of the command.
        given: the HF arguments among them.
        explicit: the flags of the Lightning Trainer among them.
    """
    both_say = {name: value for name, value in given.items() if name in CLASHES}
    flags = plan(both_say).flags if both_say else {}
    for field, value in both_say.items():
        flag = CLASHES[field]
        if flag in explicit and explicit[flag] != flags[flag]:
            yield (
                f"`{shown(field, value)}` and `trainer.{flag}={explicit[flag]!r}`: they contradict "
                "each other. Leave one out."
            )
    seed = own.get("seed_everything")
    if given.get("seed", seed) != seed and seed not in (None, False, True):
        yield f"`seed={given['seed']}` and `seed_everything={seed}`: they differ. Leave one out."
    for key, fields in (("optimizer", OPTIMIZERS), ("lr_scheduler", OPTIMIZERS)):
        if own.get(key) and (both := sorted(fields & given.keys())):
            yield (
                f"`{shown(both[0], given[both[0]])}` and `{key}`: both describe the optimizer. Leave one out."
            )
    epochs = given.get("num_train_epochs", 1)
    if isinstance(epochs, float) and epochs % 1 and given.get("max_steps", -1) <= 0:
        yield f"`num_train_epochs={epochs}`: Lightning counts whole epochs. Give `--max_steps` instead."


NEED_LOGGERS = ("LearningRateMonitor", "DeviceStatsMonitor")
"""Lightning callbacks that fail without a logger."""


def lacks_logger(callbacks: Iterable[Any], report_to: Iterable[str], *, is_off: bool) -> Iterator[str]:
    """Yield a message for each callback that needs a logger when there is none.

    Args:
        callbacks: the callbacks of the Lightning Trainer, or their settings.
        report_to: HF's argument, resolved.
        is_off: whether the loggers of Lightning are disabled.
    """
    shared = {report.name for report in REPORTS if report.logger}
    if not is_off and shared & {ALIASES.get(name, name) for name in report_to}:
        return
    for callback in callbacks:
        name = str(getattr(callback, "class_path", type(callback).__name__)).rpartition(".")[2]
        if name in NEED_LOGGERS:
            reason = "`trainer.logger=False`" if is_off else f"`report_to={[*report_to] or 'none'!r}`"
            yield (
                f"`trainer.callbacks={name}`: it writes to a logger, and by {reason} there is none. Give "
                "`--report_to csv` or another one that Lightning has a logger for, or leave the callback out."
            )


def refused(given: dict[str, Any]) -> Iterator[str]:
    """Yield a message for each given argument that none of these commands supports."""
    defaults = native_defaults(Seq2SeqTrainingArguments)
    for name, value in given.items():
        handling = HANDLING[name]
        if handling.part is Part.REFUSED and value != defaults.get(name, FIELDS[name].default):
            yield f"`{shown(name, value)}`: `compat fit` and its like cannot do it. {handling.note}"


def _typed_as(name: str, value: object) -> Any:
    """Restore a string that a file or a variable has parsed as another type: YAML's `no` is False."""
    if not FIELDS[name].kind.startswith("str"):
        return value
    if isinstance(value, bool):
        return "no" if value is False else "True"
    return str(value) if isinstance(value, (int, float)) else value
