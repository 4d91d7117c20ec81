"""`deepspeed` as data: its configuration, the entries that HF fills in, and conflicts with the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import shown
from compat.arguments.files import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTO = "auto"
SPREADS_PARAMETERS = 3
"""The stage of ZeRO that shards the parameters themselves."""


@dataclass(frozen=True)
class Filled:
    """An entry that HF fills in if it is "auto", and that must agree with the arguments otherwise.

    Attributes:
        path: the entry, with dots.
        fields: the corresponding arguments: all of them as a list, or any of them if they are booleans.
    """

    path: str
    fields: tuple[str, ...]

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value from the arguments."""
        said = [values.get(field) for field in self.fields]
        if self.path.endswith(".enabled"):
            return any(said)
        return said[0] if len(said) == 1 else said


FILLED: dict[str, Filled] = {
    path: Filled(path, tuple(fields.split()))
    for path, fields in {
        "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "gradient_clipping": "max_grad_norm",
        "optimizer.params.lr": "learning_rate",
        "optimizer.params.betas": "adam_beta1 adam_beta2",
        "optimizer.params.eps": "adam_epsilon",
        "optimizer.params.weight_decay": "weight_decay",
        "scheduler.params.warmup_max_lr": "learning_rate",
        "fp16.enabled": "fp16 fp16_full_eval",
        "bf16.enabled": "bf16 bf16_full_eval",
    }.items()
}
"""Entry → the arguments that it must agree with. Mirrors
`HfTrainerDeepSpeedConfig.trainer_config_process`."""

BY_HIDDEN_SIZE = "filled in by the model's hidden size"

FILLED_LATER = {
    "train_batch_size": "filled in by the number of processes, and the two that make up the batch",
    "scheduler.params.warmup_min_lr": "filled in: 0",
    "scheduler.params.warmup_num_steps": "filled in by `warmup_steps`, 1 or more",
    "scheduler.params.total_num_steps": "filled in by the length of the run in update steps",
    "zero_optimization.reduce_bucket_size": BY_HIDDEN_SIZE,
    "zero_optimization.stage3_prefetch_bucket_size": BY_HIDDEN_SIZE,
    "zero_optimization.stage3_param_persistence_threshold": BY_HIDDEN_SIZE,
}
"""Entry → the source of its value when the run begins, if it is "auto"."""

BATCHES = frozenset({"train_micro_batch_size_per_gpu", "train_batch_size"})
"""Entries that `auto_find_batch_size` changes."""


def config_of(deepspeed: object) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        deepspeed: the argument: entries, JSON, the same in base64, or a file.

    Raises:
        ValueError: the configuration cannot be read.
    """
    return entries(deepspeed)


def leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every entry of a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def problems(values: Mapping[str, Any], processes: int | None = None) -> Iterator[str]:
    """Yield the problems of `deepspeed`, and its conflicts.

    Args:
        values: the arguments by today's names.
        processes: number of processes of the job, where it is known.
    """
    given = values.get("deepspeed")
    if not given:
        return
    try:
        config = dict(leaves(config_of(given)))
    except ValueError as error:
        yield f"`{shown('deepspeed', given)}`: {error}"
        return
    yield from mismatches(values, config, processes)
    if config.get("zero_optimization.stage") == SPREADS_PARAMETERS and values.get("auto_find_batch_size"):
        yield (
            "`auto_find_batch_size=True` with DeepSpeed's ZeRO-3: what was spread cannot be made anew. Give "
            "another stage, or a per_device_train_batch_size that fits."
        )


def mismatches(
    values: Mapping[str, Any], config: Mapping[str, Any], processes: int | None = None
) -> Iterator[str]:
    """Yield a problem for each entry that differs from the arguments.

    Args:
        values: the arguments by today's names.
        config: entry with dots → value.
        processes: number of processes of the job, where it is known.
    """
    free = BATCHES if values.get("auto_find_batch_size") else frozenset()
    for path, filled in FILLED.items():
        said, wanted = config.get(path), filled.of(values)
        known = all(field in values for field in filled.fields[:1])
        if said in (None, AUTO) or path in free or not known or _same(said, wanted):
            continue
        arguments = " and ".join(f"`{shown(field, values.get(field))}`" for field in filled.fields)
        yield (
            f"{arguments} with `deepspeed`'s {path}={said!r}: HF refuses that they differ. Give the "
            f"same in both, or 'auto' in DeepSpeed's."
        )
    whole = config.get("train_batch_size")
    if processes is None or whole in (None, AUTO) or "train_batch_size" in free:
        return
    each, every = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    if whole != processes * each * every:
        yield (
            f"`per_device_train_batch_size={each}` and `gradient_accumulation_steps={every}` with "
            f"`deepspeed`'s train_batch_size={whole!r}: with {processes} processes it is "
            f"{processes * each * every}, and HF refuses that they differ. "
            "Give 'auto' in DeepSpeed's, or start another number of processes."
        )


def _same(said: object, wanted: object) -> bool:
    return bool((list(said) if isinstance(said, (list, tuple)) else said) == wanted)
