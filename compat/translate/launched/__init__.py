"""What `accelerate launch` has asked for, said as HF arguments.

accelerate hands its flags and its configuration file to the script as variables, and reads them where HF's
arguments say nothing. `as_launched` reads them the same way: what it returns are the arguments of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compat.arguments.sharding import SIZES
from compat.translate.launched.deepspeed import deepspeed_problems, hear_deepspeed
from compat.translate.launched.fsdp import hear_fsdp
from compat.translate.launched.heard import (
    DYNAMO,
    PRECISION,
    USE_DEEPSPEED,
    USE_MEGATRON,
    USE_PARALLELISM,
    Heard,
    is_true,
    named,
)
from compat.translate.strategy import fsdp_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compat.translate.planner import Facts


class AsLaunched:
    """HF arguments as the run has them: the launcher's word where they say nothing.

    Attributes:
        heard: all that the launcher has said about them.
        defaults: argument → default, of the arguments that the installed release has.
    """

    def __init__(self, args: Any, heard: tuple[Heard, ...], defaults: Mapping[str, Any]) -> None:
        self.heard = heard
        self.defaults = defaults
        self._args = args
        self._said: dict[str, Any] = {}
        entries: dict[str, Any] = {}
        for said in heard:
            if said.holds and not said.because:
                name, _, entry = said.field.partition(".")
                (entries if entry else self._said)[entry or name] = said.value
        if entries:
            own = fsdp_config(args) if args.fsdp else {}
            self._said["fsdp_config"] = {**own, **entries}

    def __getattr__(self, name: str) -> Any:
        said = self.__dict__["_said"]
        return said[name] if name in said else getattr(self.__dict__["_args"], name)

    def has_heard(self, name: str) -> bool:
        """Whether an argument has its value from the launcher."""
        return name in self._said


def as_launched(args: Any, facts: Facts, defaults: Mapping[str, Any]) -> AsLaunched:
    """The arguments of a run that `accelerate launch` has started.

    Mirrors what `accelerate.Accelerator` and the plugins in `accelerate.utils.dataclasses` read from their
    variables, when `transformers.Trainer` builds them.

    Args:
        args: HF arguments.
        facts: the machine, the process and the launcher's variables.
        defaults: argument → default, of the arguments that the installed release has.
    """
    heard = [said for hear in _HEARERS for said in hear(args, facts.launched, defaults)]
    return AsLaunched(args, tuple(filter(None, (_effective(said, facts) for said in heard))), defaults)


def _effective(said: Heard, facts: Facts) -> Heard | None:
    """`said` as it is with these devices; None where that is nothing."""
    name, _, entry = said.field.partition(".")
    if name == "use_cpu" and facts.device_type != "cpu":
        return None
    if name not in {"fsdp", "fsdp_config"} or facts.here is None or facts.here.is_distributed:
        return said
    if entry or not said.holds:
        return None
    return Heard(name, said.value, said.variables, because="no effect in one process, as with HF")


def _precision(args: Any, variables: Mapping[str, str], defaults: Mapping[str, Any]) -> Iterator[Heard]:
    asked = variables.get(PRECISION, "no")
    own = next((name for name in ("fp16", "bf16") if getattr(args, name)), None)
    if asked not in {"fp16", "bf16"} or own == asked:
        return
    yield Heard(own or asked, True, named(variables, PRECISION), holds=own is None)


def _compilation(args: Any, variables: Mapping[str, str], defaults: Mapping[str, Any]) -> Iterator[Heard]:
    backend = variables.get(DYNAMO, "no").lower()
    own = (args.torch_compile_backend or "inductor").lower() if _compiles(args) else "no"
    if own == backend == "no":
        return
    options = ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")
    prefix = "ACCELERATE_DYNAMO_"
    extra = [prefix + name for name in options[1:] if is_true(variables.get(prefix + name))]
    if own == "no":
        yield Heard("torch_compile", True, named(variables, DYNAMO))
        yield Heard("torch_compile_backend", backend, named(variables, DYNAMO, *extra))
    else:
        if backend not in {"no", own}:
            yield Heard("torch_compile_backend", backend, named(variables, DYNAMO), holds=False)
        if extra:
            yield Heard("torch_compile", True, named(variables, *extra))
    mode = variables.get(prefix + "MODE", "default")
    if mode not in {"default", args.torch_compile_mode}:
        is_heard = args.torch_compile_mode is None
        yield Heard("torch_compile_mode", mode, named(variables, prefix + "MODE"), holds=is_heard)


def _compiles(args: Any) -> bool:
    return bool(args.torch_compile or args.torch_compile_backend or args.torch_compile_mode)


def _parallelism(args: Any, variables: Mapping[str, str], defaults: Mapping[str, Any]) -> Iterator[Heard]:
    if not is_true(variables.get(USE_PARALLELISM)):
        return
    names = {f"PARALLELISM_CONFIG_{size.upper()}": size for size in SIZES}
    sizes = {size: int(variables.get(name, "1")) for name, size in names.items()}
    said = [name for name, size in names.items() if sizes[size] != 1]
    is_heard = getattr(args, "parallelism_config", None) is None
    yield Heard("parallelism_config", sizes, named(variables, USE_PARALLELISM, *said), holds=is_heard)


def _device(args: Any, variables: Mapping[str, str], defaults: Mapping[str, Any]) -> Iterator[Heard]:
    if is_true(variables.get("ACCELERATE_USE_CPU")) and not args.use_cpu:
        yield Heard("use_cpu", True, named(variables, "ACCELERATE_USE_CPU"))


_HEARERS = (_precision, _compilation, hear_deepspeed, hear_fsdp, _parallelism, _device)


def problems(args: AsLaunched, variables: Mapping[str, str]) -> Iterator[str]:
    """What the launcher asks for and cannot have, or what contradicts the arguments.

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
