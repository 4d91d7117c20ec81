"""Resolves given arguments to effective ones, on plain values: for plans of runs that are not built here.

`TrainingArguments` does the same on itself and leaves the last part to HF's class, which also looks for a
device. `tests/arguments/test_resolve.py` compares both.
"""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from compat.arguments import checks, lightning
from compat.arguments.checks import Problem
from compat.arguments.fields import FIELDS, shown_of_unknown
from compat.arguments.fsdp_entries import take_fsdp
from compat.arguments.generations import OLD, Migrated, migrate
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping


def reconcile(
    values: MutableMapping[str, Any], native: Mapping[str, Any], choices: Mapping[str, Iterable[str]]
) -> tuple[Migrated, list[Problem]]:
    """Translate everything to the installed release's names, and find every problem.

    Args:
        values: all arguments; changed in place.
        native: the installed release's own arguments, with their defaults.
        choices: the values that the installed release knows of an argument.

    Returns:
        What was passed under names of other generations, and the problems.
    """
    found = _take_out_mistaken(values, native)
    migrated = migrate(values, native)
    found += [*map(Problem, migrated.problems), *_take_lightning(values)]
    take_fsdp(values)
    return migrated, [*found, *checks.problems(values, choices)]


def _take_out_mistaken(values: MutableMapping[str, Any], native: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of names of other generations, under the name that was passed."""
    found = []
    for name in FIELDS:
        if name in native or name not in values:
            continue
        if wrong := checks.alone({name: values[name]}):
            found += wrong
            values[name] = None
    return found


def _take_lightning(values: MutableMapping[str, Any]) -> list[Problem]:
    flags = values.get("lightning")
    if isinstance(flags, str):
        try:
            flags = values["lightning"] = json.loads(flags)
        except json.JSONDecodeError as error:
            return [Problem(f'`lightning=<str>`: not JSON ({error}). Give \'{{"profiler": "simple"}}\'.')]
    if not isinstance(flags, (dict, type(None))):
        return [
            Problem(
                f"`{shown_of_unknown('lightning', flags)}`: flags by name are wanted. "
                "Give {'profiler': 'simple'}."
            )
        ]
    found = list(lightning.problems(flags or {}))
    if not found:
        lightning.say(flags or {}, values)
    return found


def resolve(
    given: Mapping[str, Any], native: Mapping[str, Any], choices: Mapping[str, Iterable[str]]
) -> SimpleNamespace:
    """Return the effective arguments for `given`.

    Args:
        given: arguments by any generation's names.
        native: the installed release's own arguments, with their defaults.
        choices: the values that the installed release knows of an argument.

    Returns:
        An object with the attributes of `TrainingArguments`; `typed` are the names that were passed.

    Raises:
        ArgumentError: every problem, at once.
    """
    values = {name: copy.copy(value) for name, value in native.items()}
    values.update({"lightning": None, **given})
    migrated, found = reconcile(values, native, choices)
    if found:
        msg = "\n".join(problem.text for problem in found)
        raise ArgumentError(msg)
    _derive(values, native)
    return SimpleNamespace(**values, defaults=native, typed=frozenset(given), given_otherwise=migrated.given)


def _derive(values: MutableMapping[str, Any], native: Mapping[str, Any]) -> None:
    """Set the values that HF derives from other arguments."""
    _derive_from_old_names(values, native)
    for name, value in list(values.items()):
        values[name] = getattr(value, "value", value)
    values["output_dir"] = values.get("output_dir") or "trainer_output"
    for derive in (_derive_evaluation, _derive_best_model, _derive_compilation, _derive_logs):
        derive(values)
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if new in native:
            given = values[old] if values[new] is None else values[new]
            values[old] = values[new] = given if given is not None or "kwargs" in old else False
    if isinstance(values["debug"], str):
        values["debug"] = values["debug"].split()
    if values["use_cpu"]:
        values["dataloader_pin_memory"] = False
    tokens = values["include_num_input_tokens_seen"]
    if isinstance(tokens, bool) and native["include_num_input_tokens_seen"] == "no":
        values["include_num_input_tokens_seen"] = "all" if tokens else "no"


DERIVED = (
    "adafactor",
    "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap",
    "include_inputs_for_metrics",
    "no_cuda",
    "push_to_hub_token",
    "torchdynamo",
    "tpu_metrics_debug",
)
"""Old names that a release which still has them says itself by other ones."""


def _derive_from_old_names(values: MutableMapping[str, Any], native: Mapping[str, Any]) -> None:
    for name in DERIVED:
        if name in native and values[name] != native[name]:
            OLD[name].write(values, values[name], values)
    if "tpu_metrics_debug" in native:
        values["tpu_metrics_debug"] = False


def _derive_evaluation(values: MutableMapping[str, Any]) -> None:
    values["do_eval"] = values["do_eval"] or values["eval_strategy"] != "no"
    if values["eval_strategy"] == "steps":
        values["eval_steps"] = values["eval_steps"] or values["logging_steps"]


def _derive_best_model(values: MutableMapping[str, Any]) -> None:
    waits = values["lr_scheduler_type"] in {"reduce_lr_on_plateau", "greedy"}
    if values["load_best_model_at_end"] or waits:
        values["metric_for_best_model"] = values["metric_for_best_model"] or "loss"
    metric = values["metric_for_best_model"]
    if values["greater_is_better"] is None and metric is not None:
        values["greater_is_better"] = not metric.endswith("loss")


def _derive_compilation(values: MutableMapping[str, Any]) -> None:
    if values["torch_compile_mode"] or values["torch_compile_backend"]:
        values["torch_compile"] = True
    if values["torch_compile"]:
        values["torch_compile_backend"] = values["torch_compile_backend"] or "inductor"


def _derive_logs(values: MutableMapping[str, Any]) -> None:
    report_to = values["report_to"]
    if isinstance(report_to, str):
        values["report_to"] = [] if report_to == "none" else [report_to]
    elif report_to == ["none"]:
        values["report_to"] = []
