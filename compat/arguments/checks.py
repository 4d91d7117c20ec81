"""Checks of a set of arguments: every problem at once, found on plain values.

Each check yields problems that name the argument, its value, and the remedy. Checks run before anything is
built, and before HF's own, which stop at the first problem.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from compat.arguments.fields import FIELDS, shown, shown_of_unknown
from compat.arguments.sharding import sharding_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        text: the argument, its value, the reason, and what to do.
        upstream_raises: whether HF also raises an error for it.
    """

    text: str
    upstream_raises: bool = False


AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "per_gpu_train_batch_size": 1,
    "per_gpu_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
    "warmup_steps": 0,
    "generation_num_beams": 1,
    "generation_max_length": 1,
    "torch_empty_cache_steps": 1,
    "seed": 0,
    "ddp_timeout": 0,
}
"""Smallest value of a number."""

WITHIN: dict[str, tuple[float, float]] = {
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "warmup_ratio": (0, 1),
}
"""Range of a number, inclusive."""

WITH_STEPS = {
    "logging_strategy": "logging_steps",
    "eval_strategy": "eval_steps",
    "save_strategy": "save_steps",
}
"""Strategy argument → the argument of its interval in steps."""

NUMBERS = frozenset({"int", "float"})
UNTYPED = frozenset({"local_rank"})
"""Arguments that HF sets itself."""
SOUND = {"bool": bool, "dict": dict, "int": int, "float": float}
"""Kind of an argument → the type of which each value passes."""
TYPED = {
    name: kind
    for name, field in FIELDS.items()
    if (kind := field.kind.rstrip("?")) in SOUND and name not in UNTYPED
}
"""Argument whose type is checked → its kind."""


def problems(values: Mapping[str, Any], choices: Mapping[str, Iterable[str]] | None = None) -> list[Problem]:
    """Return every problem of a set of arguments.

    Args:
        values: the arguments by today's names; those that are missing are not checked.
        choices: the valid values of an argument in the installed release, if it defines a list.
    """
    mistyped = list(_types(values))
    if mistyped:
        # The other checks compute with the values.
        return mistyped
    found = [problem for check in CHECKS for problem in check(values)]
    return [*found, *_choices(values, choices or {})]


def alone(values: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of single arguments: a wrong type, or a value out of range."""
    return [*_types(values), *_ranges(values)]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion of a similar name; empty if there is none."""
    names = list(known)
    longer = [other for other in names if len(name) > 3 and other.startswith(name)]  # noqa: PLR2004 (letters)
    close = longer or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else ""


def _plain(values: Mapping[str, Any], name: str) -> Any:
    value = values.get(name)
    return getattr(value, "value", value)


def _is_number(value: object) -> TypeGuard[float]:
    # The first two spare the rest the look-up of an abstract class.
    return isinstance(value, (int, float, numbers.Real))


def _types(values: Mapping[str, Any]) -> Iterator[Problem]:
    for name, kind in TYPED.items():
        value = values.get(name)
        if value is None or type(value) is SOUND[kind]:
            continue
        if kind == "bool" and isinstance(value, str):
            yield Problem(
                f"`{shown(name, value)}`: text, where True or False is wanted; any text counts as True. "
                f"Give {name}={value.strip().lower() in {'true', '1', 'yes', 'on'}}."
            )
        if kind == "dict" and isinstance(value, str) and value.lstrip().startswith("{"):
            yield from _not_json(name, value)
        if kind in NUMBERS and (reason := _not_a_number(value, whole=kind == "int")):
            yield Problem(f"`{shown(name, value)}`: {reason}")


def _not_json(name: str, text: str) -> Iterator[Problem]:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        yield Problem(
            f"`{shown_of_unknown(name, text)}`: not JSON ({error}). Give '{{\"entry\": 1}}', or a file."
        )


def _not_a_number(value: object, *, whole: bool) -> str:
    if isinstance(value, str):
        wanted = "whole number" if whole else "number"
        try:
            number = float(value)
        except ValueError:
            return f"text, where a {wanted} is wanted. Give a number."
        return f"text, where a {wanted} is wanted. Give {_as_number(value, number)}."
    if isinstance(value, (list, tuple, dict, set)):
        return f"a {type(value).__name__}, where a number is wanted. Give one number."
    if whole and _is_number(value) and not math.isfinite(value):
        return "no number, where a whole number is wanted. Give one."
    if whole and _is_number(value) and float(value) % 1:
        return f"a fraction, where a whole number is wanted. Give {round(float(value))}, say."
    return ""


def _as_number(text: str, number: float) -> str:
    mantissa, e, exponent = text.strip().lower().partition("e")
    if not e or not math.isfinite(number):
        return str(int(number) if number.is_integer() else number)
    dotted = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{number}; YAML wants a dot and a sign in it: {dotted}e{int(exponent):+}"


def _ranges(values: Mapping[str, Any]) -> Iterator[Problem]:
    for name, least in AT_LEAST.items():
        value = values.get(name)
        if _is_number(value) and value < least:
            known = name in {"warmup_steps", "torch_empty_cache_steps"}
            yield Problem(f"`{shown(name, value)}`: too small. Give {least} or more.", known)
    for name, (low, high) in WITHIN.items():
        value = values.get(name)
        if _is_number(value) and not low <= value <= high:
            yield Problem(
                f"`{shown(name, value)}`: out of range. Give a number from {low} to {high}.",
                name == "warmup_ratio",
            )


def _half_precision(values: Mapping[str, Any]) -> Iterator[Problem]:
    for one, other in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if values.get(one) and values.get(other):
            yield Problem(
                f"`{one}=True` and `{other}=True`: a run computes in one precision. Give one of them.",
                upstream_raises=True,
            )
    for name in ("half_precision_backend", "fp16_backend"):
        if values.get(name) == "apex":
            yield Problem(
                f"`{name}='apex'`: apex's precision has been retired. Remove the argument: "
                "`fp16=True` and `bf16=True` use torch's autocast."
            )


def _strategies(values: Mapping[str, Any]) -> Iterator[Problem]:
    yield from map(Problem, sharding_problems(values))


def _steps(values: Mapping[str, Any]) -> Iterator[Problem]:
    for strategy, steps in WITH_STEPS.items():
        value = values.get(steps)
        if _plain(values, strategy) != "steps" or not _is_number(value):
            continue
        if value > 1 and value % 1:
            near = round(value) if math.isfinite(value) else 500
            yield Problem(
                f"`{shown(steps, value)}`: neither a fraction of the run nor a whole number of update steps. "
                f"Give {near}, or a number below 1.",
                upstream_raises=True,
            )
    if _plain(values, "logging_strategy") == "steps" and values.get("logging_steps") == 0:
        yield Problem(
            "`logging_steps=0` with `logging_strategy='steps'`: never. Give a number of update steps, or "
            "logging_strategy='no'.",
            upstream_raises=True,
        )
    needs_steps = _plain(values, "eval_strategy") == "steps" and not values.get("eval_steps")
    if needs_steps and "eval_steps" in values and not (values.get("logging_steps") or 0) > 0:
        yield Problem(
            "`eval_strategy='steps'`: neither `eval_steps` nor `logging_steps` says how often. "
            "Give eval_steps.",
            upstream_raises=True,
        )


def _best_model(values: Mapping[str, Any]) -> Iterator[Problem]:
    evaluates, saves = _plain(values, "eval_strategy"), _plain(values, "save_strategy")
    if not values.get("load_best_model_at_end") or saves == "best" or None in (evaluates, saves):
        return
    if evaluates != saves:
        yield Problem(
            f"`load_best_model_at_end=True` with `eval_strategy={evaluates!r}` and "
            f"`save_strategy={saves!r}`: the best checkpoint is known only where each one is evaluated. "
            "Give both the same value.",
            upstream_raises=True,
        )
    elif evaluates == "steps" and not _is_multiple(values):
        yield Problem(
            f"`load_best_model_at_end=True` with `{shown('save_steps', values['save_steps'])}` and "
            f"`{shown('eval_steps', _eval_steps(values))}`: some checkpoints would not be evaluated. "
            "Give a save_steps that is a multiple of eval_steps, both as steps or both as fractions.",
            upstream_raises=True,
        )


def _eval_steps(values: Mapping[str, Any]) -> float | None:
    return values.get("eval_steps") or values.get("logging_steps")


def _is_multiple(values: Mapping[str, Any]) -> bool:
    save, evaluate = values.get("save_steps"), _eval_steps(values)
    if not save or not evaluate:
        return True
    if (save < 1) != (evaluate < 1):
        return False
    # Fractions are compared as millionths of the run.
    scale = 1_000_000 if save < 1 else 1
    return bool((save * scale) % (evaluate * scale) == 0)


def _schedulers(values: Mapping[str, Any]) -> Iterator[Problem]:
    name = _plain(values, "lr_scheduler_type")
    if name in {"reduce_lr_on_plateau", "greedy"} and _plain(values, "eval_strategy") == "no":
        yield Problem(
            f"`lr_scheduler_type={name!r}` with `eval_strategy='no'`: it acts on the metrics of evaluations. "
            "Give eval_strategy='steps' or 'epoch'.",
            upstream_raises=True,
        )


def _workers(values: Mapping[str, Any]) -> Iterator[Problem]:
    if values.get("dataloader_num_workers") != 0:
        return
    if values.get("dataloader_prefetch_factor") is not None:
        yield Problem(
            f"`{shown('dataloader_prefetch_factor', values['dataloader_prefetch_factor'])}` with "
            "`dataloader_num_workers=0`: only workers prefetch. Give dataloader_num_workers=1 or more, or "
            "remove the argument.",
            upstream_raises=True,
        )
    if values.get("dataloader_persistent_workers"):
        yield Problem(
            "`dataloader_persistent_workers=True` with `dataloader_num_workers=0`: there are no workers to "
            "keep. Give dataloader_num_workers=1 or more, or remove the argument."
        )


CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (
    _ranges,
    _half_precision,
    _strategies,
    _steps,
    _best_model,
    _schedulers,
    _workers,
)
"""Every check of values against each other."""


def _choices(values: Mapping[str, Any], choices: Mapping[str, Iterable[str]]) -> Iterator[Problem]:
    for name, listed in choices.items():
        value, known = _plain(values, name), tuple(listed)
        if isinstance(value, str) and value not in known:
            guess = nearest(value, known) or f"Give one of {', '.join(known)}."
            yield Problem(
                f"`{shown(name, value)}`: not known to the installed transformers. {guess}",
                upstream_raises=True,
            )
