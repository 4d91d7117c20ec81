"""`plan`: HF arguments → LightningPlan, by the rules; pure, and all conflicts at once."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import masked, shown
from compat.arguments.generations import ALONE, migration
from compat.arguments.lightning import FLAGS as LIGHTNING_FLAGS
from compat.arguments.lightning import Handling, count
from compat.arguments.machine import XLA, machine_problems, one_process_problems
from compat.arguments.names import native_defaults
from compat.arguments.sharding import (
    READ,
    context_problems,
    mesh_sizes,
    sequence_problems,
    sharding_problems,
)
from compat.errors import ArgumentError
from compat.translate.accelerate_env import as_launched
from compat.translate.accelerate_env import problems as launched_problems
from compat.translate.plan import LightningPlan
from compat.translate.rules import RULES, Kind, Rule
from compat.translate.setting import Setting, plain, scalar
from compat.translate.strategy import (
    CLASSES,
    OF_ONE_DEVICE,
    UNTRIED,
    deepspeed_settings,
    fsdp_settings,
    mesh_target,
    strategy_name,
    strategy_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import TrainingArguments

    from compat.translate.accelerate_env.arguments import AsLaunched
    from compat.upstream.environment import Facts


def as_run(args: TrainingArguments, facts: Facts) -> AsLaunched:
    """Return the effective HF arguments of a run, completed by the settings of `accelerate launch`.

    Args:
        args: HF arguments.
        facts: the machine, the process and the launcher's variables.
    """
    return as_launched(args, facts, _defaults(args))


def plan(args: TrainingArguments, facts: Facts, model: Any = None) -> LightningPlan:
    """Translate HF arguments.

    Args:
        args: an instance of `transformers.TrainingArguments` or a subclass, or an object with its attributes.
        facts: the machine and the process.
        model: the model, if it already exists: it may define which of its modules are sharded.

    Returns:
        The plan. Nothing is built, and no device is used.

    Raises:
        ArgumentError: lists every conflict.
    """
    library = type(args).__name__
    args = as_run(args, facts)
    name = _strategy(args, facts, model)
    flags = getattr(args, "lightning", None) or {}
    options = strategy_options(args, name)
    if name in {"fsdp", "model_parallel"} and getattr(model, "_no_split_modules", None):
        options.setdefault("transformer_layer_cls_to_wrap", sorted(model._no_split_modules))
    return LightningPlan(
        settings=(
            *_machine(name, flags, facts),
            *_fields(args, facts, name),
            *(_with_origin(setting, args) for setting in fsdp_settings(args, name)),
            *deepspeed_settings(args),
            *_other_names(args, name),
            *_own(args, library),
            *_lightning(flags),
        ),
        strategy=name,
        strategy_options=plain(options),
        callbacks=_callbacks(args),
    )


def strategy_of(args: TrainingArguments, facts: Facts, model: Any = None) -> str:
    """Check HF arguments and choose the strategy, without the rest of the plan.

    Args:
        args: as of `plan`.
        facts: as of `plan`.
        model: as of `plan`.

    Returns:
        The name of the strategy: one of `compat.translate.strategy.CLASSES`.

    Raises:
        ArgumentError: lists every conflict.
    """
    return _strategy(as_run(args, facts), facts, model)


def _strategy(args: AsLaunched, facts: Facts, model: Any) -> str:
    problems = [problem for check in _CHECKS for problem in check(args, facts)]
    if problems:
        msg = "\n".join(problems)
        raise ArgumentError(msg)
    processes = _processes(getattr(args, "lightning", None) or {}, facts)
    name = strategy_name(args, processes, facts.device_type, is_spread=_is_spread(model))
    # There are no other processes.
    return "single_device" if name == "ddp" and processes == 1 else name


def _is_spread(model: object) -> bool:
    """Whether a model was sharded over processes while it was loaded: `tp_plan`, `distributed_config`."""
    is_spread = getattr(model, "is_distributed_loading_by_transformers", False)
    return bool(is_spread) or getattr(model, "_device_mesh", None) is not None


def _processes(flags: Mapping[str, Any], facts: Facts) -> int:
    nodes: int = flags.get("num_nodes") or facts.num_nodes
    return max(facts.world_size, (count(flags.get("devices")) or facts.devices) * nodes)


def _machine(name: str, flags: Mapping[str, Any], facts: Facts) -> Iterator[Setting]:
    """Yield the settings that the machine determines, unless `lightning={...}` sets them."""
    together = _processes(flags, facts) > 1
    for flag, value, note in (
        ("devices", facts.devices, _why_devices(facts)),
        ("num_nodes", facts.num_nodes, "machines of the job"),
        # By its name, Lightning would place the model on the CPU.
        ("strategy", "auto" if name in OF_ONE_DEVICE else name, _why_strategy(name)),
    ):
        if flags.get(flag) is None:
            yield Setting(
                field="",
                value=None,
                kind=Kind.FLAG,
                target=flag,
                becomes=value,
                note=note,
                changed=together,
            )


def _why_strategy(name: str) -> str:
    return "; ".join(filter(None, (f"Lightning's {CLASSES[name]}", UNTRIED.get(name))))


def _why_devices(facts: Facts) -> str:
    if facts.world_size > 1:
        return "one process on each, as the launcher has started them"
    if facts.devices == 1:
        return "one process"
    if facts.launched:
        return "one process on each, as `accelerate launch` starts them"
    if facts.device_type == "cuda":
        return "one process on each; HF's single process would use DataParallel, which Lightning has not"
    return "one process on each"


def _fields(args: AsLaunched, facts: Facts, strategy: str) -> Iterator[Setting]:
    for field, rule in RULES.items():
        if field in args.defaults or args.is_from_launcher(field):
            yield _with_origin(_setting(rule, args, facts, strategy, args.defaults.get(field)), args)


def _with_origin(setting: Setting, args: AsLaunched) -> Setting:
    """Add the launcher's part to a decision."""
    overrides = [one for one in args.overrides if one.field == setting.field]
    if not overrides:
        return setting
    note = "; ".join([setting.note, *(one.note for one in overrides)])
    changed = setting.changed
    if any(one.holds for one in overrides):
        # The launcher also sets variables for disabled options.
        is_shown = setting.field.endswith("reshard_after_forward") or any(one.because for one in overrides)
        changed = bool(setting.value) or is_shown
    return dataclasses.replace(setting, note=note, changed=changed)


def _defaults(args: TrainingArguments) -> Mapping[str, Any]:
    """Return the installed release's arguments with their defaults; a subclass's own have no rule."""
    found: Mapping[str, Any] = (
        native_defaults(type(args)) if dataclasses.is_dataclass(args) else args.defaults
    )
    return found


def _setting(rule: Rule, args: TrainingArguments, facts: Facts, strategy: str, default: object) -> Setting:
    value = getattr(args, rule.field)
    shown = _shown(rule.field, value)
    target, note = _mesh_or(rule, value, strategy)
    if rule.target.startswith("DDPStrategy") and strategy != "ddp":
        note = f"no effect with {CLASSES.get(strategy, strategy)}"
    if rule.field == "fsdp_config" and value and not args.fsdp:
        note = "no effect without `fsdp`"
    if rule.field == "fp16" and value and facts.device_type == "cpu":
        note = "HF computes in fp32 on a CPU; `bf16` has an effect there"
    return Setting(
        field=rule.field,
        value=shown,
        kind=rule.kind,
        target=target,
        becomes=_FLAGS[rule.field](args, facts) if rule.kind is Kind.FLAG else shown,
        note=note,
        changed=_changed(args, rule.field, value, default),
    )


MESH = "parallelism_config"


def _mesh_or(rule: Rule, value: object, strategy: str) -> tuple[str, str]:
    """Return target and note of a rule; those of a mesh depend on the strategy."""
    return mesh_target(value, strategy) if rule.field == MESH and value else (rule.target, rule.note)


def _shown(name: str, value: object) -> Any:
    """Return a value for display: of accelerate's object for a mesh, the sizes."""
    if name != MESH or value is None or isinstance(value, dict):
        return masked(name, value)
    return {size: number for size, number in mesh_sizes(value).items() if number > 1}


FILLED_IN = frozenset(
    {
        "do_eval",
        "fsdp_config",
        "greater_is_better",
        "local_rank",
        "logging_dir",
        "output_dir",
        "run_name",
    }
)
"""Arguments that HF derives from other ones: their value may differ from the one passed."""

DERIVED_METRIC = ("metric_for_best_model", "loss")
"""The metric that HF monitors by default."""

MIRRORS = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Arguments that repeat another one, under releases that have both."""


def _changed(args: TrainingArguments, name: str, value: object, default: object) -> bool:
    mirrors = MIRRORS.get(name) in args.defaults if name in MIRRORS else False
    is_derived = (name == "report_to" and default is None) or (name, value) == DERIVED_METRIC
    if name in FILLED_IN or mirrors or is_derived:
        return name in getattr(args, "typed", ())
    if default is None and dataclasses.is_dataclass(value) and not isinstance(value, type):
        # HF builds an object of defaults if none is passed.
        default = type(value)()
    # HF also converts strings to enums, and empty values to an empty list.
    value, default = scalar(value), scalar(default)
    return bool(value not in (default, []) and (value or default))


def _other_names(args: TrainingArguments, strategy: str) -> Iterator[Setting]:
    """Yield the settings that were passed under names of other generations."""
    for name, value in getattr(args, "given_otherwise", {}).items():
        rule, said = RULES[name], migration(name, args.defaults)
        target, note = _mesh_or(rule, value, strategy)
        yield Setting(
            field=name,
            value=_shown(name, value),
            kind=rule.kind if said is None else Kind.HF,
            target=target if said is None else f"{said.says}={_said(args, said.says)}",
            becomes=_shown(name, value),
            note=ALONE.get(name, note) if said is None else note,
            changed=True,
        )


def _own(args: TrainingArguments, library: str) -> Iterator[Setting]:
    """Yield the arguments that a subclass adds: they have no rule, and its own code handles them."""
    own = args.defaults.keys() - RULES.keys() - {"lightning"}
    for name in sorted(name for name in own if not name.startswith("_") and hasattr(args, name)):
        value = plain(getattr(args, name))
        yield Setting(
            field=name,
            value=masked(name, value),
            kind=Kind.LIBRARY,
            target=f"the own code of {library}",
            becomes=masked(name, value),
            note="an argument of its own; nothing is made of it here",
            # A class may replace None if no value was passed.
            changed=value not in (None, plain(args.defaults[name])),
        )


def _said(args: TrainingArguments, name: str) -> str:
    return shown(name, plain(getattr(args, name))).partition("=")[2]


def _lightning(flags: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield the settings of `lightning={...}`, which take precedence over the translation."""
    for name, value in flags.items():
        flag = LIGHTNING_FLAGS[name]
        if value is None:
            continue
        yield Setting(
            field=f"lightning.{name}",
            value=masked(name, plain(value)),
            kind=Kind.FLAG if flag.handling is Handling.PASSED else Kind.HF,
            target=name if flag.handling is Handling.PASSED else flag.says or name,
            becomes=masked(name, plain(value)),
            note=flag.note or "asked for by `lightning`",
            changed=value is not False,
        )


def _callbacks(args: TrainingArguments) -> tuple[str, ...]:
    bar = "PrinterCallback" if args.disable_tqdm else "ProgressCallback"
    return ("DefaultFlowCallback", *_as_tuple(args.report_to), bar)


def _as_tuple(value: Any) -> tuple[str, ...]:
    if value in (None, "none", ["none"]):
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _max_epochs(args: TrainingArguments, facts: Facts) -> int:
    # `max_steps` takes precedence over epochs, and datasets without length have no epochs to count.
    return sys.maxsize if args.max_steps > 0 else math.ceil(args.num_train_epochs)


def _precision(args: TrainingArguments, facts: Facts) -> str:
    if args.bf16:
        return "bf16-mixed"
    return "16-mixed" if args.fp16 and facts.device_type != "cpu" else "32-true"


def _log_every(args: TrainingArguments, facts: Facts) -> int:
    # Fractions of a run can be resolved only if its length is known.
    by_steps = plain(args.logging_strategy) == "steps" and args.logging_steps >= 1
    return int(args.logging_steps) if by_steps else 1


def _accelerator(args: TrainingArguments, facts: Facts) -> str:
    return "tpu" if facts.device_type == XLA else facts.device_type


_FLAGS: dict[str, Callable[[Any, Facts], Any]] = {
    "num_train_epochs": _max_epochs,
    "max_steps": lambda args, _: args.max_steps if args.max_steps > 0 else -1,
    "gradient_accumulation_steps": lambda args, _: args.gradient_accumulation_steps,
    "logging_steps": _log_every,
    "max_grad_norm": lambda args, _: args.max_grad_norm or 0.0,
    "bf16": _precision,
    "fp16": _precision,
    "use_cpu": _accelerator,
    "no_cuda": _accelerator,
}
"""HF argument → the value of the Lightning flag that its rule names."""


def _sharding_problems(args: AsLaunched, facts: Facts) -> Iterator[str]:
    values = {name: getattr(args, name, None) for name in READ}
    if args.is_from_launcher("deepspeed") and not isinstance(args.deepspeed, str):
        # The launcher's own DeepSpeed settings are compared with the arguments under the launcher's names.
        values["deepspeed"] = {"zero_optimization": args.deepspeed["zero_optimization"]}
    if args.is_from_launcher("deepspeed") and args.fsdp:
        values["fsdp"] = None
    processes = _processes(getattr(args, "lightning", None) or {}, facts)
    is_known = facts.here is not None or processes > 1
    known = processes if is_known else None
    yield from sharding_problems(values, known)
    yield from sequence_problems(values, known)
    yield from context_problems(values, facts.device_type)


_CHECKS: tuple[Callable[[AsLaunched, Facts], Iterator[str]], ...] = (
    lambda args, facts: machine_problems(args, facts.device_type, facts.here),
    lambda args, facts: one_process_problems(args, facts.here),
    lambda args, facts: launched_problems(args, facts.launched),
    _sharding_problems,
)
"""Every check of the arguments against the machine, the processes and the launcher; `compat.arguments.checks`
has those of arguments alone."""
