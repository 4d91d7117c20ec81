"""The fate of every HF argument, one rule a field."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an HF argument can become."""

    FLAG = "Lightning flag"
    MODULE = "module"
    DATA = "data"
    CALLBACK = "callback"
    CHECKPOINT = "checkpoint"
    STRATEGY = "strategy"
    HF = "kept by HF"
    RETIRED = "retired"
    NOT_YET = "refused for now"


@dataclass(frozen=True)
class Rule:
    """What becomes of one HF argument.

    Attributes:
        field: the argument.
        kind: what it becomes.
        target: its name there; empty where HF's own code uses it as it is.
        note: why, or how.
    """

    field: str
    kind: Kind
    target: str = ""
    note: str = ""


def _all(kind: Kind, target: str, fields: str, note: str = "") -> tuple[Rule, ...]:
    return tuple(Rule(field, kind, target, note) for field in fields.split())


_CONTROL = "HF's control decides at each step; Lightning's loops ask it"

RULES: dict[str, Rule] = {
    rule.field: rule
    for rule in (
        # How long, and in what portions.
        Rule(
            "num_train_epochs",
            Kind.FLAG,
            "max_epochs",
            "a started epoch counts whole; HF's control ends it early",
        ),
        Rule(
            "max_steps",
            Kind.FLAG,
            "max_steps",
            "update steps; HF's control stops the loop at this step",
        ),
        Rule(
            "gradient_accumulation_steps",
            Kind.FLAG,
            "accumulate_grad_batches",
            "windows are fetched whole, so that tokens are counted before the first forward",
        ),
        Rule("max_grad_norm", Kind.FLAG, "gradient_clip_val", "by norm; 0 switches it off"),
        # Numbers and devices.
        Rule(
            "bf16",
            Kind.FLAG,
            "precision",
            "autocast around the model's forward, outputs in fp32, as HF has it",
        ),
        Rule(
            "fp16",
            Kind.FLAG,
            "precision",
            "autocast around the model's forward and a gradient scaler",
        ),
        Rule("use_cpu", Kind.FLAG, "accelerator", "the device that HF's arguments choose"),
        Rule("no_cuda", Kind.FLAG, "accelerator", "the device that HF's arguments choose"),
        Rule("use_mps_device", Kind.RETIRED, "", "MPS picks itself"),
        *_all(Kind.HF, "torch backends", "tf32 full_determinism seed"),
        *_all(
            Kind.HF,
            "numbers",
            "half_precision_backend fp16_backend fp16_opt_level bf16_full_eval "
            "fp16_full_eval place_model_on_device",
        ),
        # The optimizer and its schedule are built by HF's own code, inside `configure_optimizers`.
        *_all(
            Kind.MODULE,
            "configure_optimizers",
            "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon "
            "optim optim_args optim_target_modules "
            "lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio adafactor",
            "built by HF's own create_optimizer and create_scheduler",
        ),
        # The training step.
        *_all(
            Kind.MODULE,
            "training_step",
            "label_smoothing_factor average_tokens_across_devices neftune_noise_alpha "
            "torch_empty_cache_steps "
            "past_index label_names use_liger_kernel liger_kernel_config use_cache",
            "HF's own training_step and compute_loss",
        ),
        *_all(
            Kind.MODULE,
            "model",
            "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
            "activation_checkpointing_kwargs",
            "switched on in the model before training",
        ),
        *_all(
            Kind.MODULE,
            "torch.compile",
            "torch_compile torch_compile_backend torch_compile_mode torchdynamo",
            "the model is compiled once, before it is wrapped",
        ),
        # Data.
        *_all(
            Kind.DATA,
            "train_dataloader",
            "per_device_train_batch_size per_gpu_train_batch_size dataloader_drop_last "
            "data_seed group_by_length "
            "length_column_name train_sampling_strategy ignore_data_skip auto_find_batch_size",
            "HF's own dataloader, in HF's order",
        ),
        *_all(
            Kind.DATA,
            "val_dataloaders",
            "per_device_eval_batch_size per_gpu_eval_batch_size",
            "HF's own dataloader, in HF's order",
        ),
        *_all(
            Kind.DATA,
            "dataloaders",
            "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
            "dataloader_prefetch_factor "
            "dataloader_multiprocessing_context dataloader_in_order remove_unused_columns accelerator_config "
            "split_batches dispatch_batches",
            "HF's own dataloader, in HF's order",
        ),
        # When to log, evaluate and save.
        *_all(
            Kind.CALLBACK,
            "DefaultFlowCallback",
            "logging_strategy logging_first_step logging_steps eval_strategy "
            "evaluation_strategy eval_steps eval_delay "
            "eval_on_start save_strategy save_steps",
            _CONTROL,
        ),
        *_all(Kind.CALLBACK, "progress bar", "disable_tqdm", "HF's bar, the only one"),
        *_all(
            Kind.CALLBACK,
            "report_to",
            "report_to run_name logging_dir project "
            "trackio_space_id trackio_bucket_id trackio_static_space_id",
            "HF's own integrations",
        ),
        *_all(
            Kind.HF,
            "logs",
            "logging_nan_inf_filter include_num_input_tokens_seen include_tokens_per_second "
            "skip_memory_metrics "
            "log_level log_level_replica log_on_each_node logging_first_step debug",
        ),
        # Evaluation.
        *_all(
            Kind.MODULE,
            "validation_step",
            "prediction_loss_only batch_eval_metrics include_for_metrics "
            "include_inputs_for_metrics eval_accumulation_steps "
            "eval_do_concat_batches eval_use_gather_object use_legacy_prediction_loop predict_with_generate "
            "generation_max_length generation_num_beams generation_config",
            "HF's prediction_step inside Lightning's evaluation loop",
        ),
        Rule("sortish_sampler", Kind.DATA, "dataloaders", "HF's own dataloader, in HF's order"),
        # Checkpoints.
        *_all(
            Kind.CHECKPOINT,
            "checkpoint-N",
            "save_total_limit save_safetensors save_on_each_node "
            "save_only_model restore_callback_states_from_checkpoint "
            "resume_from_checkpoint load_best_model_at_end metric_for_best_model "
            "greater_is_better output_dir "
            "overwrite_output_dir enable_jit_checkpoint",
            "HF's layout; the engine's parts through a Lightning CheckpointIO",
        ),
        *_all(
            Kind.HF,
            "Hub",
            "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision "
            "push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        ),
        *_all(Kind.HF, "script", "do_train do_eval do_predict"),
        *_all(Kind.RETIRED, "", "use_ipex jit_mode_eval ray_scope mp_parameters tpu_metrics_debug"),
        # More than one process.
        *_all(
            Kind.STRATEGY,
            "DDP",
            "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend "
            "ddp_timeout local_rank",
            "no effect with one process",
        ),
        *_all(
            Kind.NOT_YET,
            "strategy",
            "fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap "
            "deepspeed parallelism_config "
            "tpu_num_cores",
            "needs more than one process",
        ),
    )
}
"""Field → rule. The docs, `compat run`'s summary and the tests all read this table."""
