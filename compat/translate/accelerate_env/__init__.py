"""Converts the settings of `accelerate launch` to HF arguments.

accelerate passes its flags and its configuration file to the script as variables, and reads them where HF's
arguments set nothing. `as_launched` reads them in the same way, and returns the arguments of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.arguments.sharding import SIZES
from compat.translate.accelerate_env.arguments import AsLaunched
from compat.translate.accelerate_env.deepspeed_env import deepspeed_overrides, deepspeed_problems
from compat.translate.accelerate_env.fsdp_env import fsdp_overrides
from compat.translate.accelerate_env.override import (
    DYNAMO,
    PRECISION,
    USE_DEEPSPEED,
    USE_MEGATRON,
    USE_PARALLELISM,
    LauncherOverride,
    is_true,
    named,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import TrainingArguments

    from compat.upstream.environment import Facts


def as_launched(args: TrainingArguments, facts: Facts, defaults: Mapping[str, Any]) -> AsLaunched:
    """Return the arguments of a run that `accelerate launch` has started.

    Mirrors what `accelerate.Accelerator` and the plugins in `accelerate.utils.dataclasses` read from their
    variables, when `transformers.Trainer` builds them.

    Args:
        args: HF arguments.
        facts: the machine, the process and the launcher's variables.
        defaults: argument → default, of the arguments that the installed release has.
    """
    overrides = [override for read in _OVERRIDES for override in read(args, facts.launched, defaults)]
    effective = (_effective(override, facts) for override in overrides)
    return AsLaunched(args, tuple(filter(None, effective)), defaults)


def _effective(override: LauncherOverride, facts: Facts) -> LauncherOverride | None:
    """Adapt `override` to these devices; None if nothing remains."""
    name, _, entry = override.field.partition(".")
    if name == "use_cpu" and facts.device_type != "cpu":
        return None
    if name not in {"fsdp", "fsdp_config"} or facts.here is None or facts.here.is_distributed:
        return override
    if entry or not override.holds:
        return None
    return LauncherOverride(
        name, override.value, override.variables, because="no effect in one process, as with HF"
    )


def _precision(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    asked = variables.get(PRECISION, "no")
    own = next((name for name in ("fp16", "bf16") if getattr(args, name)), None)
    if asked not in {"fp16", "bf16"} or own == asked:
        return
    yield LauncherOverride(own or asked, True, named(variables, PRECISION), holds=own is None)


def _compilation(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    backend = variables.get(DYNAMO, "no").lower()
    own = (args.torch_compile_backend or "inductor").lower() if _compiles(args) else "no"
    if own == backend == "no":
        return
    options = ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")
    prefix = "ACCELERATE_DYNAMO_"
    extra = [prefix + name for name in options[1:] if is_true(variables.get(prefix + name))]
    if own == "no":
        yield LauncherOverride("torch_compile", True, named(variables, DYNAMO))
        yield LauncherOverride("torch_compile_backend", backend, named(variables, DYNAMO, *extra))
    else:
        if backend not in {"no", own}:
            yield LauncherOverride("torch_compile_backend", backend, named(variables, DYNAMO), holds=False)
        if extra:
            yield LauncherOverride("torch_compile", True, named(variables, *extra))
    mode = variables.get(prefix + "MODE", "default")
    if mode not in {"default", args.torch_compile_mode}:
        holds = args.torch_compile_mode is None
        yield LauncherOverride("torch_compile_mode", mode, named(variables, prefix + "MODE"), holds=holds)


def _compiles(args: TrainingArguments) -> bool:
    return bool(args.torch_compile or args.torch_compile_backend or args.torch_compile_mode)


def _parallelism(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    if not is_true(variables.get(USE_PARALLELISM)):
        return
    names = {f"PARALLELISM_CONFIG_{size.upper()}": size for size in SIZES}
    sizes = {size: int(variables.get(name, "1")) for name, size in names.items()}
    said = [name for name, size in names.items() if sizes[size] != 1]
    holds = getattr(args, "parallelism_config", None) is None
    yield LauncherOverride("parallelism_config", sizes, named(variables, USE_PARALLELISM, *said), holds=holds)


def _device(
    args: TrainingArguments, variables: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[LauncherOverride]:
    if is_true(variables.get("ACCELERATE_USE_CPU")) and not args.use_cpu:
        yield LauncherOverride("use_cpu", True, named(variables, "ACCELERATE_USE_CPU"))


_OVERRIDES = (_precision, _compilation, deepspeed_overrides, fsdp_overrides, _parallelism, _device)


def problems(args: AsLaunched, variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the launcher's settings that are not supported, or that contradict the arguments.

    Args:
        args: the arguments of the run.
        variables: the launcher's variables.
    """
    if is_true(variables.get(USE_MEGATRON)):
        yield (
            f"`{USE_MEGATRON}={variables[USE_MEGATRON]}`: `accelerate launch` asks for Megatron-LM, for "
            "which Lightning has no strategy. Use FSDP or DeepSpeed."
        )
    if variables.get(PRECISION) == "fp8":
        yield (
            f"`{PRECISION}=fp8`: `accelerate launch` asks for it, and its recipes have no translation. "
            "Give --mixed_precision bf16."
        )
    if is_true(variables.get(USE_DEEPSPEED)):
        yield from deepspeed_problems(args, variables)
