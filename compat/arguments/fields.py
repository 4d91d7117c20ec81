"""Every argument of every supported generation of transformers, as data.

A generation stands for its whole line of releases: "4.37" is transformers 4.37.2, "4.53" is 4.53.1 and "5" is
5.23.0.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

GENERATIONS = ("4.37", "4.53", "5")
"""From the oldest to the newest."""


@dataclass(frozen=True)
class Field:
    """One argument of `TrainingArguments` or `Seq2SeqTrainingArguments`.

    Attributes:
        name: its name.
        kind: "bool", "int", "float" or "str", with "?" if None is allowed; "list" and "dict" for arguments
            that also take text; "object" for arguments that take values of several kinds.
        default: its default in the newest generation that has it.
        since: the first generation that has it.
        until: the last generation that has it.
        earlier: the defaults of earlier generations, where they differ.
        seq2seq: whether only `Seq2SeqTrainingArguments` has it.
    """

    name: str
    kind: str
    default: Any
    since: str = GENERATIONS[0]
    until: str = GENERATIONS[-1]
    earlier: dict[str, Any] = field(default_factory=dict)
    seq2seq: bool = False

    @property
    def generations(self) -> tuple[str, ...]:
        """The generations that have it."""
        first, last = GENERATIONS.index(self.since), GENERATIONS.index(self.until)
        return GENERATIONS[first : last + 1]

    @property
    def is_old(self) -> bool:
        """Whether the newest generation no longer has it."""
        return self.until != GENERATIONS[-1]

    def default_in(self, generation: str) -> Any:
        """Its default in a generation that has it."""
        return self.earlier.get(generation, self.default)


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("output_dir", "str?", None),
        Field("overwrite_output_dir", "bool", False, until="4.53"),
        Field("do_train", "bool", False),
        Field("do_eval", "bool", False),
        Field("do_predict", "bool", False),
        Field("evaluation_strategy", "str", "no", until="4.37"),
        Field("prediction_loss_only", "bool", False),
        Field("per_device_train_batch_size", "int", 8),
        Field("per_device_eval_batch_size", "int", 8),
        Field("per_gpu_train_batch_size", "int?", None, until="4.53"),
        Field("per_gpu_eval_batch_size", "int?", None, until="4.53"),
        Field("gradient_accumulation_steps", "int", 1),
        Field("eval_accumulation_steps", "int?", None),
        Field("eval_delay", "float?", 0),
        Field("learning_rate", "float", 5e-05),
        Field("weight_decay", "float", 0.0),
        Field("adam_beta1", "float", 0.9),
        Field("adam_beta2", "float", 0.999),
        Field("adam_epsilon", "float", 1e-08),
        Field("max_grad_norm", "float", 1.0),
        Field("num_train_epochs", "float", 3.0),
        Field("max_steps", "int", -1),
        Field("lr_scheduler_type", "str", "linear"),
        Field("lr_scheduler_kwargs", "dict", None, earlier={"4.37": {}, "4.53": {}}),
        Field("warmup_ratio", "float", 0.0, until="4.53"),
        Field("warmup_steps", "float", 0),
        Field("log_level", "str?", "passive"),
        Field("log_level_replica", "str?", "warning"),
        Field("log_on_each_node", "bool", True),
        Field("logging_dir", "str?", None, until="4.53"),
        Field("logging_strategy", "str", "steps"),
        Field("logging_first_step", "bool", False),
        Field("logging_steps", "float", 500),
        Field("logging_nan_inf_filter", "bool", True),
        Field("save_strategy", "str", "steps"),
        Field("save_steps", "float", 500),
        Field("save_total_limit", "int?", None),
        Field("save_safetensors", "bool?", True, until="4.53"),
        Field("save_on_each_node", "bool", False),
        Field("save_only_model", "bool", False),
        Field("no_cuda", "bool", False, until="4.53"),
        Field("use_cpu", "bool", False),
        Field("use_mps_device", "bool", False, until="4.53"),
        Field("seed", "int", 42),
        Field("data_seed", "int?", None),
        Field("jit_mode_eval", "bool", False, until="4.53"),
        Field("use_ipex", "bool", False, until="4.53"),
        Field("bf16", "bool", False),
        Field("fp16", "bool", False),
        Field("fp16_opt_level", "str", "O1", until="4.53"),
        Field("half_precision_backend", "str", "auto", until="4.53"),
        Field("bf16_full_eval", "bool", False),
        Field("fp16_full_eval", "bool", False),
        Field("tf32", "bool?", None),
        Field("local_rank", "int", -1),
        Field("ddp_backend", "str?", None),
        Field("tpu_num_cores", "int?", None, until="4.53"),
        Field("tpu_metrics_debug", "bool", False, until="4.53"),
        Field("debug", "list", ""),
        Field("dataloader_drop_last", "bool", False),
        Field("eval_steps", "float?", None),
        Field("dataloader_num_workers", "int", 0),
        Field("past_index", "int", -1, until="4.53"),
        Field("run_name", "str?", None),
        Field("disable_tqdm", "bool?", None),
        Field("remove_unused_columns", "bool?", True),
        Field("label_names", "list", None),
        Field("load_best_model_at_end", "bool?", False),
        Field("metric_for_best_model", "str?", None),
        Field("greater_is_better", "bool?", None),
        Field("ignore_data_skip", "bool", False),
        Field("fsdp", "object", None, earlier={"4.37": "", "4.53": ""}),
        Field("fsdp_min_num_params", "int", 0, until="4.53"),
        Field("fsdp_config", "dict", None),
        Field("fsdp_transformer_layer_cls_to_wrap", "str?", None, until="4.53"),
        Field("deepspeed", "dict", None),
        Field("label_smoothing_factor", "float", 0.0),
        Field("optim", "str", "adamw_torch_fused", earlier={"4.37": "adamw_torch", "4.53": "adamw_torch"}),
        Field("optim_args", "str?", None),
        Field("adafactor", "bool", False, until="4.53"),
        Field("group_by_length", "bool", False, until="4.53"),
        Field("length_column_name", "str?", "length"),
        Field("report_to", "list", "none", earlier={"4.37": None, "4.53": None}),
        Field("ddp_find_unused_parameters", "bool?", None),
        Field("ddp_bucket_cap_mb", "int?", None),
        Field("ddp_broadcast_buffers", "bool?", None),
        Field("dataloader_pin_memory", "bool", True),
        Field("dataloader_persistent_workers", "bool", False),
        Field("skip_memory_metrics", "bool", True),
        Field("use_legacy_prediction_loop", "bool", False, until="4.53"),
        Field("push_to_hub", "bool", False),
        Field("resume_from_checkpoint", "str?", None),
        Field("hub_model_id", "str?", None),
        Field("hub_strategy", "str", "every_save"),
        Field("hub_token", "str?", None),
        Field("hub_private_repo", "bool?", None, earlier={"4.37": False}),
        Field("hub_always_push", "bool", False),
        Field("gradient_checkpointing", "bool?", None, earlier={"4.37": False, "4.53": False}),
        Field("gradient_checkpointing_kwargs", "dict", None),
        Field("include_inputs_for_metrics", "bool", False, until="4.53"),
        Field("fp16_backend", "str", "auto", until="4.53"),
        Field("push_to_hub_model_id", "str?", None, until="4.53"),
        Field("push_to_hub_organization", "str?", None, until="4.53"),
        Field("push_to_hub_token", "str?", None, until="4.53"),
        Field("mp_parameters", "str", "", until="4.53"),
        Field("auto_find_batch_size", "bool", False),
        Field("full_determinism", "bool", False),
        Field("torchdynamo", "str?", None, until="4.53"),
        Field("ray_scope", "str?", "last", until="4.53"),
        Field("ddp_timeout", "int?", 1800),
        Field("torch_compile", "bool", False),
        Field("torch_compile_backend", "str?", None),
        Field("torch_compile_mode", "str?", None),
        Field("dispatch_batches", "bool?", None, until="4.37"),
        Field("split_batches", "bool?", False, until="4.37"),
        Field("include_tokens_per_second", "bool?", False, until="4.53"),
        Field("include_num_input_tokens_seen", "object", "no", earlier={"4.37": False, "4.53": False}),
        Field("neftune_noise_alpha", "float?", None),
        Field("eval_strategy", "str", "no", since="4.53"),
        Field("torch_empty_cache_steps", "int?", None, since="4.53"),
        Field("restore_callback_states_from_checkpoint", "bool", False, since="4.53"),
        Field("dataloader_prefetch_factor", "int?", None, since="4.53"),
        Field("accelerator_config", "dict", None, since="4.53"),
        Field("hub_revision", "str?", None, since="4.53"),
        Field("include_for_metrics", "list", (), since="4.53"),
        Field("eval_do_concat_batches", "bool", True, since="4.53"),
        Field("optim_target_modules", "list", None, since="4.53"),
        Field("batch_eval_metrics", "bool", False, since="4.53"),
        Field("eval_on_start", "bool", False, since="4.53"),
        Field("use_liger_kernel", "bool?", False, since="4.53"),
        Field("liger_kernel_config", "dict", None, since="4.53"),
        Field("eval_use_gather_object", "bool?", False, since="4.53"),
        Field("average_tokens_across_devices", "bool?", True, earlier={"4.53": False}, since="4.53"),
        Field("activation_checkpointing", "bool?", None, since="5"),
        Field("activation_checkpointing_kwargs", "dict", None, since="5"),
        Field("use_cache", "bool", False, since="5"),
        Field("project", "str", "huggingface", since="5"),
        Field("trackio_space_id", "str?", None, since="5"),
        Field("trackio_bucket_id", "str?", None, since="5"),
        Field("trackio_static_space_id", "object", None, since="5"),
        Field("enable_jit_checkpoint", "bool", False, since="5"),
        Field("parallelism_config", "object", None, since="5"),
        Field("dataloader_multiprocessing_context", "str?", None, since="5"),
        Field("dataloader_in_order", "bool", True, since="5"),
        Field("train_sampling_strategy", "str", "random", since="5"),
        Field("ddp_static_graph", "bool?", None, since="5"),
        Field("sortish_sampler", "bool", False, seq2seq=True),
        Field("predict_with_generate", "bool", False, seq2seq=True),
        Field("generation_max_length", "int?", None, seq2seq=True),
        Field("generation_num_beams", "int?", None, seq2seq=True),
        Field("generation_config", "object", None, seq2seq=True),
    )
}
"""Name → argument."""

SECRETS = frozenset({"hub_token", "push_to_hub_token"})
"""Arguments whose value is never shown."""

OF_SECRETS = ("token", "key", "secret", "password", "passwd", "passphrase", "credentials")
"""Suffixes of the names of other secrets; HF masks all names that end with `_token`."""

NO_SECRETS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "monitor", "sort")
"""Words before such a suffix that indicate something else: a token of text, or a column."""

SECRET = "<secret>"  # noqa: S105 (what stands in the place of one)
_SHOWN_OF_UNKNOWN = (bool, int, float, type(None))


def is_secret(name: str) -> bool:
    """Whether the value of a name is never shown: it is a secret, or may be a misspelt one."""
    if name in FIELDS:
        return name in SECRETS
    bare = name.lower().replace("-", "_")
    if bare.rpartition("_")[0] in NO_SECRETS:
        return False
    return bare.endswith(OF_SECRETS) or bool(get_close_matches(name, SECRETS))


def masked(name: str, value: Any) -> Any:
    """Mask the secrets in `value`: the value itself, or entries with the name of a secret.

    Args:
        name: the name of the value.
        value: any value; dicts and lists are searched.

    Returns:
        The value itself if it contains no secret.
    """
    if is_secret(name) and value is not None:
        return SECRET
    if isinstance(value, dict):
        cleared = {key: masked(str(key), item) for key, item in value.items()}
        return value if all(cleared[key] is item for key, item in value.items()) else cleared
    if type(value) in (list, tuple):
        items = [masked(name, item) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    return value


def shown(name: str, value: object) -> str:
    """Return `name=value` for an error or a table."""
    found = masked(name, getattr(value, "value", value))
    return f"{name}={found if found == SECRET else repr(found)}"


def shown_of_unknown(name: str, value: object) -> str:
    """Return `name=value` of an unknown name: its value may be a secret, so only numbers are shown."""
    return f"{name}={value_of_unknown(name, value)}"


def value_of_unknown(name: str, value: object) -> str:
    """Return only the value, as in `shown_of_unknown`."""
    is_shown = isinstance(value, _SHOWN_OF_UNKNOWN) and not is_secret(name)
    return repr(value) if is_shown else SECRET if is_secret(name) else f"<{type(value).__name__}>"
