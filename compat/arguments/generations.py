"""Translation of the names of other generations to those of the installed release: one migration each.

Migrations work on plain mappings of names to values, so that a plan can be made where nothing is built.
"""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import FIELDS, shown
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping


@dataclass(frozen=True)
class Migration:
    """How to express a name that the installed release lacks by a name that it has.

    Attributes:
        name: the name.
        says: the corresponding name there.
        write: puts a value into a mapping under that other name; also gets everything that was given by the
            names of other generations, which is nothing where an attribute is set later.
        read: the value that this name would have, from such a mapping.
        is_synonym: whether two different values of the two names contradict each other; otherwise this name
            rules.
    """

    name: str
    says: str
    write: Callable[[MutableMapping[str, Any], Any, Mapping[str, Any]], None]
    read: Callable[[Mapping[str, Any]], Any]
    is_synonym: bool = False


def _renamed(name: str, says: str, *, is_synonym: bool = True) -> Migration:
    def write(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
        values[says] = value

    return Migration(name, says, write, lambda values: values.get(says), is_synonym)


def _flag(name: str, says: str, *, meaning: Any) -> Migration:
    """Create the migration of a switch that has become one value of another argument."""

    def write(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
        if value:
            values[says] = meaning
        elif not given and read(values):
            values[says] = FIELDS[says].default

    def read(values: Mapping[str, Any]) -> bool:
        current = values.get(says)
        return bool(getattr(current, "value", current) == meaning)

    return Migration(name, says, write, read)


def _entry(name: str, config: str, key: str, *, appends: bool = False, **along: Any) -> Migration:
    """Create the migration of an argument that is now a configuration entry (of an object or None).

    Args:
        name: the argument.
        config: the argument that holds the configuration.
        key: the entry.
        appends: whether the entry is a list that the value is appended to.
        along: other entries to set with it, if they are not set.
    """

    def write(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
        if not value and value is not False:
            return
        opened = _opened(config, values.get(config), name, value)
        if opened is None:
            # The checks report that it is not JSON.
            return
        if not isinstance(opened, dict):
            setattr(opened, key, value)
        else:
            opened[key] = [*_as_list(opened.get(key)), value] if appends else value
            for other, meaning in along.items():
                opened.setdefault(other, meaning)
        values[config] = opened

    def read(values: Mapping[str, Any]) -> Any:
        current = values.get(config)
        found = current.get(key) if isinstance(current, dict) else getattr(current, key, None)
        if appends and isinstance(found, list) and len(found) == 1:
            return found[0]
        return FIELDS[name].default if found is None else found

    return Migration(name, config, write, read)


def _opened(config: str, current: Any, name: str, value: Any) -> Any:
    """Return a private copy of a configuration that may be modified."""
    if isinstance(current, str) and current.lstrip().startswith("{"):
        try:
            return json.loads(current)
        except json.JSONDecodeError:
            return None
    if isinstance(current, str):
        msg = (
            f"`{name}={value!r}`: has become an entry of `{config}`, which is the file {current!r} here. "
            "Write the entry into that file."
        )
        raise ArgumentError(msg)
    return {} if current is None else copy.copy(current)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _write_warmup_ratio(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    # A number of steps always takes precedence over a ratio; a ratio set later replaces an earlier one.
    steps = values.get("warmup_steps") or 0
    if steps >= 1 or (given and (steps or not value)):
        return
    # Exactly 1 would mean one step.
    if value is not None:
        values["warmup_steps"] = min(value, math.nextafter(1.0, 0.0)) if value <= 1 else value


def _read_warmup_ratio(values: Mapping[str, Any]) -> float:
    steps: float = values.get("warmup_steps") or 0
    if steps == math.nextafter(1.0, 0.0):
        return 1.0
    return steps if steps < 1 else 0.0


def _write_metrics_inputs(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    if value:
        included = _as_list(values.get("include_for_metrics"))
        values["include_for_metrics"] = list(dict.fromkeys([*included, "inputs"]))


def _write_tokens_per_second(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    if value and values.get("include_num_input_tokens_seen") in (None, False, "no"):
        values["include_num_input_tokens_seen"] = "all"


def _write_debug(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    if value:
        current = values.get("debug") or ""
        words = current.split() if isinstance(current, str) else [getattr(x, "value", x) for x in current]
        values["debug"] = " ".join(dict.fromkeys([*words, "tpu_metrics_debug"]))


def _write_hub_model(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    organization = given.get("push_to_hub_organization")
    values["hub_model_id"] = f"{organization}/{value}" if organization and "/" not in value else value


def _write_hub_organization(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    if value and not given.get("push_to_hub_model_id"):
        folder = os.path.basename(os.path.normpath(values.get("output_dir") or "trainer_output"))
        values["hub_model_id"] = f"{value}/{folder}"


def _organization(values: Mapping[str, Any]) -> str | None:
    owner, slash, _ = (values.get("hub_model_id") or "").partition("/")
    return owner if slash else None


def _write_sampling(values: MutableMapping[str, Any], value: Any, given: Mapping[str, Any]) -> None:
    if value == "batch_rebalance":
        msg = (
            "`train_sampling_strategy='batch_rebalance'`: this release of transformers has no such sampler. "
            "Update transformers, or give 'group_by_length'."
        )
        raise ArgumentError(msg)
    values["group_by_length"] = value == "group_by_length"
    if value != "group_by_length":
        values["train_sampling_strategy"] = value


def _read_sampling(values: Mapping[str, Any]) -> Any:
    return "group_by_length" if values.get("group_by_length") else "random"


OLD: dict[str, Migration] = {
    migration.name: migration
    for migration in (
        _renamed("evaluation_strategy", "eval_strategy"),
        _renamed("per_gpu_train_batch_size", "per_device_train_batch_size", is_synonym=False),
        _renamed("per_gpu_eval_batch_size", "per_device_eval_batch_size", is_synonym=False),
        _renamed("torchdynamo", "torch_compile_backend"),
        _renamed("push_to_hub_token", "hub_token"),
        _flag("no_cuda", "use_cpu", meaning=True),
        _flag("adafactor", "optim", meaning="adafactor"),
        _flag("group_by_length", "train_sampling_strategy", meaning="group_by_length"),
        _entry("dispatch_batches", "accelerator_config", "dispatch_batches"),
        _entry("split_batches", "accelerator_config", "split_batches"),
        _entry("fsdp_min_num_params", "fsdp_config", "min_num_params", auto_wrap_policy="SIZE_BASED_WRAP"),
        _entry(
            "fsdp_transformer_layer_cls_to_wrap", "fsdp_config", "transformer_layer_cls_to_wrap", appends=True
        ),
        Migration("warmup_ratio", "warmup_steps", _write_warmup_ratio, _read_warmup_ratio),
        Migration(
            "include_inputs_for_metrics",
            "include_for_metrics",
            _write_metrics_inputs,
            lambda values: "inputs" in _as_list(values.get("include_for_metrics")),
        ),
        Migration(
            "include_tokens_per_second",
            "include_num_input_tokens_seen",
            _write_tokens_per_second,
            lambda values: values.get("include_num_input_tokens_seen") not in (None, False, "no"),
        ),
        Migration(
            "tpu_metrics_debug",
            "debug",
            _write_debug,
            lambda values: "tpu_metrics_debug" in str(values.get("debug")),
        ),
        Migration(
            "push_to_hub_model_id",
            "hub_model_id",
            _write_hub_model,
            lambda values: values.get("hub_model_id"),
        ),
        Migration("push_to_hub_organization", "hub_model_id", _write_hub_organization, _organization),
    )
}
"""Old name → how the current release expresses it."""

NEW: dict[str, Migration] = {
    migration.name: migration
    for migration in (
        _renamed("activation_checkpointing", "gradient_checkpointing", is_synonym=False),
        _renamed("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", is_synonym=False),
        Migration("train_sampling_strategy", "group_by_length", _write_sampling, _read_sampling),
    )
}
"""Name new in transformers 5 → how transformers 4 expresses it."""

ALONE: dict[str, str] = {
    "fp16_backend": "autocast is the only backend",
    "fp16_opt_level": "it was apex's",
    "half_precision_backend": "autocast is the only backend",
    "jit_mode_eval": "models are no longer traced for evaluation; `torch_compile` is what is left",
    "logging_dir": "compat still has TensorBoard write there; a script for transformers 5 sets the variable "
    "TENSORBOARD_LOGGING_DIR",
    "mp_parameters": "SageMaker's model parallelism was configured by it",
    "overwrite_output_dir": "scripts alone have ever read it; no Trainer does",
    "past_index": "compat still hands the past on",
    "ray_scope": "compat still passes it to Ray; a script for transformers 5 sets the variable RAY_SCOPE",
    "save_safetensors": "compat still writes `pytorch_model.bin` for `save_safetensors=False`",
    "tpu_num_cores": "the launcher decides on the number of processes",
    "use_ipex": "torch alone has its optimizations now",
    "use_legacy_prediction_loop": "compat still calls `prediction_loop` in place of `evaluation_loop`",
    "use_mps_device": "an MPS device is found without it",
}
"""Old name without a replacement → how it is handled."""


@dataclass(frozen=True)
class Migrated:
    """The result of `migrate`.

    Attributes:
        given: the names of other generations that were given, with their values.
        old: those of them, and of the installed release's own names, that the newest release no longer has.
        problems: the names that could not be translated, a line each.
    """

    given: dict[str, Any]
    old: tuple[str, ...]
    problems: tuple[str, ...]


def migration(name: str, native: Mapping[str, Any]) -> Migration | None:
    """Return the migration of `name`; None if it has no equivalent.

    Args:
        name: an argument that the installed release lacks.
        native: the installed release's own arguments, with their defaults.
    """
    found = OLD.get(name) or NEW.get(name)
    return found if found is not None and found.says in native else None


def migrate(values: MutableMapping[str, Any], native: Mapping[str, Any]) -> Migrated:
    """Translate all names of other generations to those of the installed release.

    Args:
        values: all arguments; a name of another generation is given where it is not None. Changed in place:
            what another name says moves there, what stands alone stays.
        native: the installed release's own arguments, with their defaults.

    Returns:
        What was passed, and what could not be translated.
    """
    own = [
        name
        for name, default in native.items()
        # Most are the default itself, and are compared no further.
        if (value := values.get(name)) is not default and name in FIELDS and value != default
    ]
    foreign = [name for name in FIELDS if name not in native and values.get(name) is not None]
    spoken = [name for name in own if name in SPOKEN_FOR]
    given = {name: values[name] for name in (*foreign, *spoken)}
    problems = []
    for name in (*foreign, *spoken):
        found = migration(name, native)
        if found is None:
            continue
        try:
            _say(found, values[name] if name in native else values.pop(name), values, native, given)
        except ArgumentError as error:
            problems.append(str(error))
    _adapt_values(values, native)
    typed = [name for name in own if not _is_filled_in(name, values)]
    old = tuple(name for name in (*foreign, *typed) if FIELDS[name].is_old)
    return Migrated({name: given[name] for name in foreign}, old, tuple(problems))


def _is_filled_in(name: str, values: Mapping[str, Any]) -> bool:
    # transformers 4 derives a missing value, and copies of the arguments receive the derived one.
    runs = os.path.join(values.get("output_dir") or "trainer_output", "runs")
    return name == "logging_dir" and str(values[name]).startswith(runs)


SPOKEN_FOR = frozenset(
    {
        "per_gpu_train_batch_size",
        "per_gpu_eval_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_organization",
    }
)
"""Old names that are said by today's also where a release has them: it would warn at each use of a batch
size, and ask the Hub who is logged in."""


def hidden(values: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Return values to hide from the installed release's checks, which would refuse supported values.

    Args:
        values: all arguments.
        native: the installed release's own arguments, with their defaults.

    Returns:
        Argument → the value to show instead.
    """
    stand_ins = {
        name: native[name] for name in (*SPOKEN_FOR, "use_mps_device") if name in native and values.get(name)
    }
    if "warmup_ratio" in native and 0 < (values.get("warmup_steps") or 0) < 1:
        # transformers 4 takes only whole numbers.
        stand_ins["warmup_steps"] = 0
    return stand_ins


def _say(
    found: Migration,
    value: Any,
    values: MutableMapping[str, Any],
    native: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    current = values.get(found.says)
    if found.is_synonym and current not in (native[found.says], value):
        if value == FIELDS[found.name].default:
            return
        msg = (
            f"`{shown(found.name, value)}` and `{shown(found.says, current)}`: the first is the old name "
            "of the second. Give one of them."
        )
        raise ArgumentError(msg)
    found.write(values, value, given)


def _adapt_values(values: MutableMapping[str, Any], native: Mapping[str, Any]) -> None:
    """Translate values that only another generation has to those of the installed release."""
    if native.get("include_num_input_tokens_seen") is False:
        known = {"no": False, "all": True}
        current = values.get("include_num_input_tokens_seen")
        values["include_num_input_tokens_seen"] = known.get(str(current), current)
    steps = values.get("warmup_steps")
    if "warmup_ratio" in native and isinstance(steps, float) and 1 <= steps < math.inf:
        values["warmup_steps"] = int(steps)
    if native.get("fsdp") == "" and values.get("fsdp") is None:
        values["fsdp"] = ""
    if native.get("report_to") == "none" and values.get("report_to") is None:
        values["report_to"] = "none"
