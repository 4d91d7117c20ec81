"""Decisions about a script that several parts of its text share."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import FIELDS, GENERATIONS
from compat.translate.rules import Kind
from compat.translate.setting import plain
from compat.translate.source.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from compat.translate.plan import LightningPlan
    from compat.translate.setting import Setting

CARRIED = frozenset(
    {
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "adafactor",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "bf16",
        "data_seed",
        "dataloader_drop_last",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "disable_tqdm",
        "eval_on_start",
        "eval_steps",
        "eval_strategy",
        "evaluation_strategy",
        "fp16",
        "full_determinism",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "learning_rate",
        "logging_steps",
        "logging_strategy",
        "lr_scheduler_kwargs",
        "lr_scheduler_type",
        "max_grad_norm",
        "max_steps",
        "no_cuda",
        "num_train_epochs",
        "optim",
        "optim_args",
        "output_dir",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "per_gpu_eval_batch_size",
        "per_gpu_train_batch_size",
        "remove_unused_columns",
        "save_only_model",
        "save_steps",
        "save_total_limit",
        "seed",
        "use_cpu",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
    }
)
"""Arguments that the script always acts on."""

CARRIED_VALUES: dict[str, set[Any]] = {
    "save_strategy": {"no", "steps", "epoch"},
    "train_sampling_strategy": {"random", "sequential"},
    "group_by_length": {False},
    "optim": {*OPTIMIZERS},
}
"""Arguments that the script acts on where they have one of these values."""

FLAGS = ("deterministic", "detect_anomaly", "benchmark", "sync_batchnorm", "max_time", "limit_val_batches")
"""What `lightning={...}` may ask of the script's Trainer besides its devices."""

MACHINE = ("accelerator", "devices", "num_nodes", "strategy")

SCHEDULERS_WITH_METRICS = {"reduce_lr_on_plateau", "greedy"}


class Recipe:
    """The properties of a plan that determine the script.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: LightningPlan) -> None:
        self.plan = plan
        self.values: dict[str, Any] = {s.field: plain(s.value) for s in plan.settings}

    def get(self, name: str, default: object = None) -> Any:
        """Return the value of an argument; `default` if this release lacks it."""
        return self.values.get(name, default)

    @cached_property
    def is_newest(self) -> bool:
        """Whether the plan is one for the newest generation, which counts tokens and windows its own way."""
        # What was given by a name of another generation stands among the settings too, as changed.
        unchanged = (FIELDS.get(s.field) for s in self.plan.settings if not s.changed)
        return any(field is not None and field.since == GENERATIONS[-1] for field in unchanged)

    @property
    def accumulation(self) -> int:
        """Batches in an update step."""
        return int(self.values["gradient_accumulation_steps"])

    @property
    def has_windows(self) -> bool:
        """Whether an update step has several batches."""
        return self.accumulation > 1

    @property
    def clip(self) -> float:
        """The largest norm of the gradients; 0 where they are not clipped."""
        return float(self.plan.flags.get("gradient_clip_val") or 0.0)

    @property
    def mixed(self) -> bool:
        """Whether the model computes in half precision."""
        return self.plan.precision != "32-true"

    @property
    def is_fused(self) -> bool:
        """Whether the optimizer unscales gradients by itself, for which Lightning refuses to clip."""
        return bool(self.mixed and self.values["optim"] == "adamw_torch_fused")

    @property
    def scales(self) -> bool:
        """Whether gradients are clipped while a scaler has them scaled."""
        return self.plan.precision == "16-mixed" and (self.has_windows or self.is_fused)

    @property
    def decays(self) -> bool:
        """Whether some parameters are to decay and others not."""
        return bool(self.values["weight_decay"])

    @property
    def evaluation(self) -> str:
        """When to evaluate: "no", "steps" or "epoch"."""
        return str(self.values["eval_strategy"])

    @property
    def validates(self) -> bool:
        """Whether the script ever looks at the evaluation dataset."""
        return self.evaluation != "no" or bool(self.get("eval_on_start"))

    @property
    def saving(self) -> str:
        """When to save: "no", "steps" or "epoch"."""
        strategy = str(self.values["save_strategy"])
        return strategy if strategy in CARRIED_VALUES["save_strategy"] else "no"

    @property
    def shuffles(self) -> bool:
        """Whether each epoch has an order of its own."""
        return bool(self.get("train_sampling_strategy", "random") != "sequential")

    @property
    def max_steps(self) -> int | None:
        """Update steps of the run, if the arguments alone determine them."""
        return int(self.values["max_steps"]) if self.values["max_steps"] > 0 else None

    @property
    def ends_within_epoch(self) -> bool:
        """Whether the last epoch may be cut short."""
        return self.max_steps is not None or self.values["num_train_epochs"] % 1 != 0

    def interval(self, name: str) -> str:
        """A number of update steps that may be given as a fraction of the run."""
        value = self.values[name] or self.values["logging_steps"]
        if value >= 1:
            return str(int(value))
        return str(math.ceil(self.max_steps * value)) if self.max_steps else f"math.ceil({value} * steps)"

    def not_carried_over(self) -> list[str]:
        """Return the names of changed arguments that a script does not support."""
        return sorted({s.field for s in self.plan.changed() if s.field and not self._is_carried(s)})

    def _is_carried(self, setting: Setting) -> bool:
        name = setting.field
        if setting.kind is Kind.RETIRED or setting.target == "the script":
            return True
        if name.startswith("lightning."):
            return self.has_flag(name.removeprefix("lightning."))
        if setting.kind is Kind.HF and "=" in setting.target:
            # Given by another generation's name: handled as the argument that says it here.
            name = setting.target.partition("=")[0]
        if name in CARRIED_VALUES:
            return self.values[name] in CARRIED_VALUES[name]
        return name in CARRIED and (name != "optim_args" or self.values["optim"] in OPTIMIZERS)

    def has_flag(self, name: str) -> bool:
        """Whether `lightning={...}` asks for a flag that the script can write down."""
        value = self.plan.flags.get(name)
        if name == "strategy":
            # An object, of which a plan contains only the class.
            return "." not in str(value)
        return name in (*FLAGS, *MACHINE) and value is not None


def literal(value: object) -> str:
    """`value` as source, with the quotes that formatters want."""
    if isinstance(value, str):
        text = repr(value)
        return text if text[0] == '"' or '"' in value else f'"{text[1:-1]}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(literal, value)) + "]"
    return repr(value)


def kept(*lines: str | None) -> list[str]:
    """The lines of a part of the text, without those that this plan does not need."""
    return [line for line in lines if line is not None]
