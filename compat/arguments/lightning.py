"""`lightning={...}`: which flags of Lightning's Trainer can be passed, and how each is handled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from compat.arguments.checks import Problem, nearest
from compat.arguments.fields import masked, value_of_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping


class Handling(Enum):
    """How a Lightning flag is handled."""

    PASSED = "passed to Lightning's Trainer"
    SAID = "said by an HF argument"
    REFUSED = "refused"
    OURS = "an option of ours"


@dataclass(frozen=True)
class Flag:
    """One flag of `lightning.pytorch.Trainer`, or one of ours.

    Attributes:
        name: the flag.
        handling: how it is handled.
        says: the corresponding HF argument, if there is one.
        note: how, or why it is refused and what to use instead.
        allowed: values that a refused flag may have, because they apply anyway.
    """

    name: str
    handling: Handling
    says: str = ""
    note: str = ""
    allowed: tuple[Any, ...] = (None,)


def _passed(names: str, note: str = "") -> tuple[Flag, ...]:
    return tuple(Flag(name, Handling.PASSED, "", note) for name in names.split())


_BY_HF = "HF's control decides at each step"

FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        *_passed("profiler detect_anomaly benchmark deterministic sync_batchnorm barebones"),
        *_passed("callbacks logger plugins", "beside what HF has"),
        *_passed("enable_model_summary enable_progress_bar enable_autolog_hparams model_registry"),
        *_passed(
            "default_root_dir", "where Lightning's own callbacks write; checkpoints stay in `output_dir`"
        ),
        *_passed("accelerator devices num_nodes strategy", "in place of what HF's arguments choose"),
        *_passed(
            "limit_train_batches", "micro-batches an epoch, or a fraction of them; schedules count them"
        ),
        *_passed("limit_val_batches limit_predict_batches", "batches a pass, or a fraction of them"),
        *_passed(
            "overfit_batches", "the same batches in every epoch, unshuffled, in training and evaluation"
        ),
        *_passed(
            "fast_dev_run", "that many update steps and evaluation batches; nothing is saved or reported"
        ),
        *_passed("max_time", "training stops while there is time to save, where it saves at all"),
        Flag(
            "preemption",
            Handling.OURS,
            note="True: SIGTERM, SIGUSR1 and Ctrl-C save a checkpoint and end; False leaves signals alone",
        ),
        Flag(
            "replay_data",
            Handling.OURS,
            note="a resumed epoch draws again what lies behind, for datasets that are random within workers",
        ),
        Flag(
            "save_async",
            Handling.OURS,
            note="training goes on while a checkpoint is written; an error there is raised at the next step",
        ),
        Flag("max_epochs", Handling.SAID, "num_train_epochs"),
        Flag("max_steps", Handling.SAID, "max_steps", "update steps"),
        Flag("accumulate_grad_batches", Handling.SAID, "gradient_accumulation_steps"),
        Flag("gradient_clip_val", Handling.SAID, "max_grad_norm"),
        Flag("log_every_n_steps", Handling.SAID, "logging_steps", "update steps"),
        Flag("precision", Handling.SAID, "bf16", "and `fp16`"),
        Flag(
            "gradient_clip_algorithm",
            Handling.REFUSED,
            note="HF clips by norm. Give `max_grad_norm`, or override `_clip_grad_norm`",
            allowed=(None, "norm"),
        ),
        Flag(
            "val_check_interval",
            Handling.REFUSED,
            note=f"{_BY_HF}. Give `eval_strategy='steps'` and `eval_steps`",
        ),
        Flag(
            "check_val_every_n_epoch",
            Handling.REFUSED,
            note=f"{_BY_HF}. Give `eval_strategy='epoch'`",
            allowed=(None, 1),
        ),
        Flag(
            "enable_checkpointing",
            Handling.REFUSED,
            note="checkpoints are HF's. Give `save_strategy`",
            allowed=(None, False),
        ),
        Flag(
            "num_sanity_val_steps",
            Handling.REFUSED,
            note="it would draw random numbers that HF does not. Give `eval_on_start=True`",
            allowed=(None, 0),
        ),
        Flag(
            "inference_mode",
            Handling.REFUSED,
            note="HF evaluates under no_grad, and code that it calls may use the outputs. Remove it",
            allowed=(None, False),
        ),
        Flag(
            "use_distributed_sampler",
            Handling.REFUSED,
            note="the order of samples is HF's. Override `_get_train_sampler`",
            allowed=(None, False),
        ),
        Flag(
            "reload_dataloaders_every_n_epochs",
            Handling.REFUSED,
            note="HF builds its loader once. Use a dataset with `set_epoch`",
            allowed=(None, 0),
        ),
        *(
            Flag(name, Handling.REFUSED, note=f"{_BY_HF}. Use a callback that resets `should_training_stop`")
            for name in ("min_epochs", "min_steps")
        ),
        Flag(
            "limit_test_batches",
            Handling.REFUSED,
            note="`predict` is HF's test. Give `limit_predict_batches`",
        ),
    )
}
"""Every flag of Lightning's Trainer, and the additional flags of compat."""

PRECISIONS: dict[str, dict[str, bool]] = {
    "bf16-mixed": {"bf16": True, "fp16": False},
    "16-mixed": {"fp16": True, "bf16": False},
    "32-true": {"bf16": False, "fp16": False},
    "bf16": {"bf16": True, "fp16": False},
    "16": {"fp16": True, "bf16": False},
    "32": {"bf16": False, "fp16": False},
}
"""Lightning's name of a precision → the corresponding HF arguments."""


def _zero(stage: int, **more: object) -> dict[str, Any]:
    filled_in = dict.fromkeys(
        ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
    )
    halves = {name: {"enabled": "auto"} for name in ("bf16", "fp16")}
    return {"deepspeed": {"zero_optimization": {"stage": stage, **more}, **filled_in, **halves}}


_ON_CPU = {"offload_optimizer": {"device": "cpu"}}

STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "single_device": {},
    "ddp": {},
    "ddp_find_unused_parameters_true": {"ddp_find_unused_parameters": True},
    "ddp_find_unused_parameters_false": {"ddp_find_unused_parameters": False},
    "fsdp": {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1}},
    "fsdp_cpu_offload": {"fsdp": "full_shard offload auto_wrap", "fsdp_config": {"version": 1}},
    "model_parallel": {"fsdp": "full_shard auto_wrap"},
    "deepspeed": _zero(2),
    "deepspeed_stage_1": _zero(1),
    "deepspeed_stage_2": _zero(2),
    "deepspeed_stage_2_offload": _zero(2, **_ON_CPU),
    "deepspeed_stage_3": _zero(3, stage3_gather_16bit_weights_on_model_save=True),
    "deepspeed_stage_3_offload": _zero(
        3,
        stage3_gather_16bit_weights_on_model_save=True,
        **_ON_CPU,
        offload_param={"device": "cpu"},
    ),
}
"""Lightning's name of a strategy → the HF arguments that select it, if they select none."""


def problems(flags: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of `lightning={...}`."""
    for name, value in flags.items():
        flag = FLAGS.get(name)
        given = f"`lightning={{{name!r}: {masked(name, value)!r}}}`"
        if flag is None:
            # The value may be a token, if the user mistook the flag for an option of a logger.
            given = f"`lightning={{{name!r}: {value_of_unknown(name, value)}}}`"
            guess = nearest(name, FLAGS) or "docs/arguments.md lists them all."
            yield Problem(f"{given}: Lightning's Trainer has no such flag. {guess}")
        elif flag.handling is Handling.REFUSED and value not in flag.allowed:
            yield Problem(f"{given}: {flag.note}.")
        elif name == "precision" and value is not None and str(value) not in PRECISIONS:
            yield Problem(f"{given}: HF trains in {', '.join(list(PRECISIONS)[:3])}. Give one of them.")
        elif name == "strategy" and value is not None and not _is_strategy(value):
            guess = nearest(value, STRATEGIES) if isinstance(value, str) else ""
            yield Problem(
                f"{given}: HF's arguments set up the strategy. {guess or 'Give one by its name.'} The names "
                f"are {', '.join(STRATEGIES)}; `fsdp`, `deepspeed` and `parallelism_config` say more."
            )


def say(flags: Mapping[str, Any], values: MutableMapping[str, Any]) -> None:
    """Set the HF arguments that correspond to flags; Lightning's flag takes precedence."""
    for name, value in flags.items():
        flag = FLAGS.get(name)
        if flag is None or value is None:
            continue
        if name == "precision":
            values.update(PRECISIONS.get(str(value), {}))
        elif name == "strategy" and isinstance(value, str):
            _choose(STRATEGIES.get(value, {}), values)
        elif flag.handling is Handling.SAID:
            values[flag.says] = value
    if flags.get("accelerator") == "cpu":
        values["use_cpu"] = True
    if flags.get("enable_progress_bar") is False:
        values["disable_tqdm"] = True
    if flags.get("overfit_batches"):
        values["train_sampling_strategy"] = "sequential"
    if updates := int(flags.get("fast_dev_run") or 0):
        values.update(max_steps=updates, save_strategy="no", load_best_model_at_end=False, report_to="none")
        values["push_to_hub"] = False


def _is_strategy(value: object) -> bool:
    return isinstance(value, str) and value in STRATEGIES


def _choose(said: Mapping[str, Any], values: MutableMapping[str, Any]) -> None:
    """Make HF's arguments select a strategy; their existing settings of it are kept."""
    for name, value in said.items():
        given = values.get(name)
        if isinstance(value, dict) and isinstance(given, dict):
            values[name] = {**value, **given}
        elif not given:
            values[name] = value


def count(devices: object) -> int | None:
    """Return how many devices a value of `devices` means; None if the machine decides."""
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if isinstance(devices, (list, tuple)):
        return len(devices)
    return devices if isinstance(devices, int) and devices > 0 else None


def limit(flags: Mapping[str, Any], name: str) -> float | int | None:
    """Return how many batches, or which fraction of them, a pass may have.

    Args:
        flags: the flags that were given.
        name: "limit_train_batches", "limit_val_batches" or "limit_predict_batches".

    Returns:
        A number of batches, a fraction of them, or None for all.
    """
    if name != "limit_train_batches" and flags.get("fast_dev_run"):
        return int(flags["fast_dev_run"])
    if name != "limit_predict_batches" and flags.get("overfit_batches"):
        found: float | int = flags["overfit_batches"]
        return found
    return flags.get(name)
