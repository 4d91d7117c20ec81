"""`plan`: HF arguments → LightningPlan, by the rules; pure, and all conflicts at once."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any, Protocol

from compat.errors import ArgumentError
from compat.translate.plan import LightningPlan, Setting
from compat.translate.rules import RULES, Kind, Rule

if TYPE_CHECKING:
    from collections.abc import Callable


class Facts(Protocol):
    """What the plan may know of the machine and the process."""

    @property
    def device_type(self) -> str:
        """Kind of the device that the arguments chose."""

    @property
    def device_index(self) -> int | None:
        """Index of that device, where its kind has one."""

    @property
    def world_size(self) -> int:
        """Number of processes of the job."""


SECRETS = frozenset({"hub_token", "push_to_hub_token"})
"""Fields whose value never enters a plan."""


def plan(args: Any, facts: Facts) -> LightningPlan:
    """Translate HF arguments.

    Args:
        args: an instance of `transformers.TrainingArguments` or a subclass.
        facts: the machine and the process, read beforehand.

    Returns:
        The plan; nothing is built and nothing is touched.

    Raises:
        ArgumentError: every conflict found, in one error.
    """
    problems = [problem for check in _CHECKS for problem in check(args, facts)]
    if problems:
        msg = "\n".join(problems)
        raise ArgumentError(msg)
    settings = [_setting(field, args, facts) for field in dataclasses.fields(args)]
    return LightningPlan(settings=tuple(setting for setting in settings if setting is not None))


def _setting(field: dataclasses.Field[Any], args: Any, facts: Facts) -> Setting | None:
    # A subclass's own field is that subclass's own business.
    rule = RULES.get(field.name)
    if rule is None:
        return None
    value = "<secret>" if field.name in SECRETS else getattr(args, field.name)
    return Setting(
        field=field.name,
        value=value,
        kind=rule.kind,
        target=rule.target,
        becomes=_FLAGS[field.name](args, facts) if rule.kind is Kind.FLAG else value,
        note=rule.note,
        changed=_changed(field, rule, getattr(args, field.name)),
    )


FILLED_IN = frozenset(
    {
        "do_eval",
        "fsdp_config",
        "greater_is_better",
        "local_rank",
        "logging_dir",
        "output_dir",
        "report_to",
        "run_name",
    }
)
"""Fields that HF derives from other ones: their value does not tell what was typed."""


def _changed(field: dataclasses.Field[Any], rule: Rule, value: Any) -> bool:
    if rule.field in FILLED_IN:
        return False
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if default is None and dataclasses.is_dataclass(value) and not isinstance(value, type):
        # HF builds an object of defaults where none is given.
        default = type(value)()
    # Likewise it turns strings into enums, and what is empty into an empty list.
    value, default = getattr(value, "value", value), getattr(default, "value", default)
    return bool(value != default and (value or default))


def _max_epochs(args: Any, facts: Facts) -> int:
    # `max_steps` rules over epochs, and datasets without length have no epochs to count.
    return sys.maxsize if args.max_steps > 0 else math.ceil(args.num_train_epochs)


def _precision(args: Any, facts: Facts) -> str:
    if args.bf16:
        return "bf16-mixed"
    return "16-mixed" if args.fp16 else "32-true"


def _accelerator(args: Any, facts: Facts) -> str:
    return facts.device_type


_FLAGS: dict[str, Callable[[Any, Facts], Any]] = {
    "num_train_epochs": _max_epochs,
    "max_steps": lambda args, _: args.max_steps if args.max_steps > 0 else -1,
    "gradient_accumulation_steps": lambda args, _: args.gradient_accumulation_steps,
    "max_grad_norm": lambda args, _: args.max_grad_norm or 0.0,
    "bf16": _precision,
    "fp16": _precision,
    "use_cpu": _accelerator,
    "no_cuda": _accelerator,
}
"""HF field → the value of the Lightning flag that its rule names."""


def _one_process(args: Any, facts: Facts) -> list[str]:
    if facts.world_size == 1:
        return []
    return [
        f"`WORLD_SIZE={facts.world_size}`: training in several processes is not supported yet. "
        "Start the script without torchrun or accelerate launch, in one process."
    ]


def _no_sharding(args: Any, facts: Facts) -> list[str]:
    return [
        f"`{field}={getattr(args, field)!r}`: this strategy is not supported yet. "
        "Remove the argument to train in one process."
        for field in ("fsdp", "deepspeed", "parallelism_config")
        if getattr(args, field, None)
    ]


_CHECKS: tuple[Callable[[Any, Facts], list[str]], ...] = (_one_process, _no_sharding)
"""Every check that looks for conflicts before anything is built."""
