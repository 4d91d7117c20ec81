"""How `compat fit` handles each HF argument, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compat.arguments.fields import FIELDS
from compat.translate.rules import RULES, Kind


class Part(Enum):
    """The code that handles an argument."""

    FLAG = "flag of the Lightning Trainer"
    STRATEGY = "strategy"
    MODULE = "HFModule"
    DATA = "HFDataModule"
    CONTROL = "HF's control"
    LOGGER = "loggers"
    COMMAND = "the command"
    NOTHING = "nothing"
    REFUSED = "refused"


@dataclass(frozen=True)
class Handling:
    """How one argument is handled.

    Attributes:
        field: the argument.
        part: what acts on it.
        note: where it is refused, the way out; else how, where that needs saying.
    """

    field: str
    part: Part
    note: str = ""


RUN = "Use `compat run` with a script of HF's Trainer."
SUBCOMMAND = "Give the command itself: `compat fit`, `validate`, `test` or `predict`."

OWN: dict[str, tuple[Part, str]] = {
    # What the command does itself.
    "output_dir": (Part.COMMAND, "checkpoints and the trained model lie in it"),
    "resume_from_checkpoint": (Part.COMMAND, "a .ckpt; True or 'auto' for the newest of `output_dir`"),
    "seed": (Part.COMMAND, "set before the model is made, and again when training begins"),
    "tf32": (Part.COMMAND, "set when the arguments are made"),
    "full_determinism": (Part.MODULE, "seeds, and torch's deterministic algorithms"),
    "log_level": (Part.COMMAND, ""),
    "log_level_replica": (Part.COMMAND, ""),
    "log_on_each_node": (Part.COMMAND, ""),
    "push_to_hub_token": (Part.REFUSED, "Push with `huggingface-cli upload` after `compat fit`."),
    "disable_tqdm": (Part.FLAG, "enable_progress_bar"),
    # HF's control, by `compat.callbacks.to_lightning`.
    **dict.fromkeys(
        (
            "eval_on_start",
            "greater_is_better",
            "load_best_model_at_end",
            "metric_for_best_model",
            "restore_callback_states_from_checkpoint",
            "save_only_model",
            "save_total_limit",
        ),
        (Part.CONTROL, ""),
    ),
    **dict.fromkeys(
        ("include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps"), (Part.MODULE, "")
    ),
    # What HF's Trainer alone can do.
    "auto_find_batch_size": (Part.REFUSED, "Give `--trainer.callbacks+=BatchSizeFinder`."),
    "bf16_full_eval": (Part.REFUSED, "Give `--trainer.precision bf16-true`."),
    "fp16_full_eval": (Part.REFUSED, "Give `--trainer.precision 16-true`."),
    "debug": (Part.REFUSED, "Give `--trainer.detect_anomaly true`."),
    "tpu_metrics_debug": (Part.REFUSED, RUN),
    "deepspeed": (Part.REFUSED, "Give `--trainer.strategy deepspeed`, or use `compat run`."),
    "fsdp": (Part.REFUSED, "Give `--trainer.strategy fsdp`, or use `compat run`."),
    "fsdp_config": (Part.REFUSED, "Give `--trainer.strategy.class_path FSDPStrategy`, or use `compat run`."),
    "fsdp_min_num_params": (Part.REFUSED, "Give `--trainer.strategy fsdp`, or use `compat run`."),
    "fsdp_transformer_layer_cls_to_wrap": (
        Part.REFUSED,
        "Give `--trainer.strategy fsdp`, or use `compat run`.",
    ),
    "parallelism_config": (Part.REFUSED, RUN),
    "use_legacy_prediction_loop": (Part.REFUSED, "Leave it out: Lightning has the loop."),
    "enable_jit_checkpoint": (Part.REFUSED, "Give `--trainer.callbacks+=OnExceptionCheckpoint`."),
    "save_on_each_node": (Part.REFUSED, RUN),
    "save_safetensors": (Part.REFUSED, "Use `compat convert` on what is saved."),
    "ignore_data_skip": (Part.REFUSED, "Leave it out: a run goes on with the next batch."),
    "include_num_input_tokens_seen": (Part.REFUSED, "Give `--trainer.callbacks+=ThroughputMonitor`."),
    "include_tokens_per_second": (Part.REFUSED, "Give `--trainer.callbacks+=ThroughputMonitor`."),
    "skip_memory_metrics": (Part.REFUSED, "Give `--trainer.callbacks+=DeviceStatsMonitor`."),
    "logging_nan_inf_filter": (Part.REFUSED, "Give `--trainer.detect_anomaly true` to find such losses."),
    "ray_scope": (Part.REFUSED, RUN),
    "ddp_backend": (Part.STRATEGY, ""),
    "local_rank": (Part.COMMAND, "set from what the launcher says"),
    "sortish_sampler": (Part.REFUSED, "Give `--train_sampling_strategy group_by_length`."),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), (Part.REFUSED, SUBCOMMAND)),
}
"""Arguments whose handling differs from their rule."""

OF_KIND: dict[Kind, Part] = {
    Kind.FLAG: Part.FLAG,
    Kind.STRATEGY: Part.STRATEGY,
    Kind.MODULE: Part.MODULE,
    Kind.DATA: Part.DATA,
    Kind.RETIRED: Part.NOTHING,
}
"""Kind of a rule → what acts here on the same argument."""

OF_TARGET: dict[str, Part] = {
    "HF's DefaultFlowCallback": Part.CONTROL,
    "HF's integrations": Part.LOGGER,
    "HF's Hub code": Part.REFUSED,
}
"""Target of a rule → what acts here on the same argument."""


def _handling(field: str) -> Handling:
    rule = RULES[field]
    if field in OWN:
        return Handling(field, *OWN[field])
    part = OF_TARGET.get(rule.target) or OF_KIND.get(rule.kind)
    if rule.target == "HF's Hub code":
        return Handling(field, Part.REFUSED, "Push with `huggingface-cli upload` after `compat fit`.")
    if field == "overwrite_output_dir":
        return Handling(field, Part.NOTHING)
    assert part is not None, f"{field} is not handled"
    return Handling(field, part, rule.target if part is Part.FLAG else rule.note)


HANDLING: dict[str, Handling] = {field: _handling(field) for field in FIELDS}
"""Argument → how it is handled."""

OPTIMIZERS = frozenset(
    field for field in FIELDS if RULES[field].target == "LightningModule.configure_optimizers"
)
"""Arguments that describe HF's optimizer and schedule."""
