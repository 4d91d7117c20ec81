"""How each HF argument is handled: one rule for each.

The planner, `compat explain`, docs/arguments.md and the tests all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an HF argument can become."""

    FLAG = "Lightning flag"
    STRATEGY = "strategy option"
    MODULE = "module"
    DATA = "data"
    CALLBACK = "callback"
    CHECKPOINT = "checkpoint"
    HF = "kept by HF"
    LIBRARY = "left to its library"
    RETIRED = "retired"
    REFUSED = "refused"


@dataclass(frozen=True)
class Rule:
    """What becomes of one HF argument.

    Attributes:
        field: the argument.
        kind: what it becomes.
        target: its name there: a flag of Lightning's Trainer, or what acts on it. `{}` stands for the value.
        note: why, or how.
    """

    field: str
    kind: Kind
    target: str
    note: str

    @property
    def becomes(self) -> str:
        """What the argument becomes, without a value; empty if it is retired."""
        return f"Trainer({self.target})" if self.kind is Kind.FLAG else self.target.replace("={}", "")


def _rules(kind: Kind, target: str, notes: dict[str, str]) -> tuple[Rule, ...]:
    """Rules of one kind and target; `*` in a target stands for the argument's name."""
    return tuple(
        Rule(field, kind, target.replace("*", field), note)
        for names, note in notes.items()
        for field in names.split()
    )


RULES: dict[str, Rule] = {
    rule.field: rule
    for rule in (
        # How long, and in what portions.
        Rule(
            "num_train_epochs", Kind.FLAG, "max_epochs", "a started epoch counts whole; HF's control ends it"
        ),
        Rule("max_steps", Kind.FLAG, "max_steps", "update steps; rules over the number of epochs"),
        Rule(
            "gradient_accumulation_steps",
            Kind.FLAG,
            "accumulate_grad_batches",
            "windows are fetched whole, so that their tokens are counted before the first forward",
        ),
        Rule(
            "logging_steps",
            Kind.FLAG,
            "log_every_n_steps",
            "for Lightning's own; HF's control decides on HF's logs",
        ),
        Rule("max_grad_norm", Kind.FLAG, "gradient_clip_val", "clipped by norm; 0 switches it off"),
        # Numbers and devices.
        Rule(
            "bf16", Kind.FLAG, "precision", "autocast around the model's forward, weights and outputs in fp32"
        ),
        Rule("fp16", Kind.FLAG, "precision", "autocast around the model's forward, and a gradient scaler"),
        Rule("use_cpu", Kind.FLAG, "accelerator", "HF picks the device; Lightning is told which one"),
        Rule("no_cuda", Kind.FLAG, "accelerator", "old name of `use_cpu`"),
        *_rules(
            Kind.HF,
            "torch's backends",
            {
                "tf32": "set when the arguments are made",
                "full_determinism": "seeds, and torch's deterministic algorithms",
                "seed": "set when the trainer is made, and again before `model_init`",
            },
        ),
        *_rules(
            Kind.MODULE,
            "LightningModule.validation_step",
            {
                "bf16_full_eval fp16_full_eval": "the whole model is cast before it evaluates outside of training"
            },
        ),
        *_rules(
            Kind.RETIRED,
            "",
            {
                "half_precision_backend fp16_backend": "autocast is the only backend; 'apex' is refused",
                "fp16_opt_level": "it was apex's",
                "use_ipex": "torch alone has its optimizations now",
                "jit_mode_eval": "models are no longer traced; `torch_compile` is what is left",
                "use_mps_device": "an MPS device is found without it",
                "mp_parameters": "configured SageMaker's model parallelism",
            },
        ),
        # The optimizer and its schedule.
        *_rules(
            Kind.MODULE,
            "LightningModule.configure_optimizers",
            {
                "learning_rate weight_decay": "of the optimizer that HF's `create_optimizer` builds",
                "adam_beta1 adam_beta2 adam_epsilon": "where the optimizer has them",
                "optim optim_args optim_target_modules": "HF's `create_optimizer` builds it",
                "adafactor": "old name of `optim='adafactor'`",
                "lr_scheduler_type lr_scheduler_kwargs": "HF's `create_scheduler` builds it, stepped at each update",
                "warmup_steps": "update steps; below 1 a fraction of the run, under every release",
                "warmup_ratio": "old name of `warmup_steps` as a fraction",
            },
        ),
        # The training step.
        *_rules(
            Kind.MODULE,
            "LightningModule.training_step",
            {
                "label_smoothing_factor label_names": "HF's `compute_loss`",
                "average_tokens_across_devices": "the tokens of a window are counted over all processes",
                "torch_empty_cache_steps": "HF's `training_step`",
                "past_index": "the output of this index goes into the next batch as `mems`",
            },
        ),
        *_rules(
            Kind.MODULE,
            "the model",
            {
                "activation_checkpointing activation_checkpointing_kwargs": "switched on before training",
                "gradient_checkpointing gradient_checkpointing_kwargs": "older name of activation checkpointing",
                "neftune_noise_alpha": "a hook on the embeddings, while training runs",
                "use_liger_kernel liger_kernel_config": "kernels are put in when the trainer is made",
                "use_cache": "set in the model's configuration when the trainer is made",
            },
        ),
        *_rules(
            Kind.MODULE,
            "torch.compile",
            {
                "torch_compile torch_compile_backend torch_compile_mode": "compiled once, before it is wrapped",
                "torchdynamo": "old name of `torch_compile_backend`",
            },
        ),
        # Data: HF's own dataloaders, in HF's order.
        *_rules(
            Kind.DATA,
            "DataLoader(batch_size={})",
            {
                "per_device_train_batch_size": "samples of a training micro-step on one device",
                "per_device_eval_batch_size": "samples of an evaluation step on one device",
                "per_gpu_train_batch_size": "old name of `per_device_train_batch_size`",
                "per_gpu_eval_batch_size": "old name of `per_device_eval_batch_size`",
                "auto_find_batch_size": "halved, and training begun again, when memory runs out",
            },
        ),
        *_rules(
            Kind.DATA,
            "DataLoader(sampler)",
            {
                "data_seed": "of the order of samples; `seed` where None",
                "train_sampling_strategy length_column_name": "HF's samplers, seeded as HF seeds them",
                "group_by_length": "old name of `train_sampling_strategy='group_by_length'`",
                "ignore_data_skip": "a resumed run begins its epoch with the first batch",
            },
        ),
        Rule("dataloader_drop_last", Kind.DATA, "DataLoader(drop_last={})", "HF's own dataloader"),
        Rule("dataloader_num_workers", Kind.DATA, "DataLoader(num_workers={})", "HF's own dataloader"),
        Rule("dataloader_pin_memory", Kind.DATA, "DataLoader(pin_memory={})", "off on a CPU"),
        Rule("dataloader_prefetch_factor", Kind.DATA, "DataLoader(prefetch_factor={})", "batches per worker"),
        Rule("dataloader_in_order", Kind.DATA, "DataLoader(in_order={})", "HF's own dataloader"),
        Rule(
            "dataloader_persistent_workers",
            Kind.DATA,
            "DataLoader(persistent_workers={})",
            "workers live on between epochs",
        ),
        Rule(
            "dataloader_multiprocessing_context",
            Kind.DATA,
            "DataLoader(multiprocessing_context={})",
            "how workers are started",
        ),
        *_rules(
            Kind.DATA,
            "DataLoader",
            {
                "remove_unused_columns": "columns that the model's forward does not take are dropped",
                "accelerator_config": "how batches are split over processes",
                "dispatch_batches split_batches": "old name of an entry of `accelerator_config`",
            },
        ),
        # When to log, evaluate and save: HF's control decides at each step, and Lightning's loops ask it.
        *_rules(
            Kind.CALLBACK,
            "HF's DefaultFlowCallback",
            {
                "logging_strategy logging_first_step": "HF's control decides at each update step",
                "eval_strategy eval_steps eval_delay": "HF's control decides at each update step",
                "evaluation_strategy": "old name of `eval_strategy`",
                "save_strategy save_steps": "HF's control decides at each update step",
            },
        ),
        Rule(
            "eval_on_start", Kind.MODULE, "LightningModule.on_train_start", "evaluates before the first step"
        ),
        Rule("disable_tqdm", Kind.CALLBACK, "HF's ProgressCallback", "HF's bar is the only one"),
        *_rules(
            Kind.CALLBACK,
            "HF's integrations",
            {
                "report_to": "HF's own integrations write what they write under HF",
                "run_name": "the name that integrations give the run",
                "project trackio_space_id trackio_bucket_id trackio_static_space_id": "read by trackio alone",
                "logging_dir": "TensorBoard's folder, under every release",
            },
        ),
        *_rules(
            Kind.HF,
            "Trainer.log",
            {
                "logging_nan_inf_filter": "a loss that is not finite counts as the average of the others",
                "include_num_input_tokens_seen": "counted at each micro-step",
                "include_tokens_per_second": "old name of `include_num_input_tokens_seen`",
                "skip_memory_metrics": "the stages of a run are measured unless it is set",
                "log_level log_level_replica log_on_each_node": "of transformers' own loggers",
                "debug": "detects overflows; metrics of TPUs",
                "tpu_metrics_debug": "old name of `debug='tpu_metrics_debug'`",
            },
        ),
        # Evaluation.
        *_rules(
            Kind.MODULE,
            "LightningModule.validation_step",
            {
                "prediction_loss_only": "HF's `prediction_step` in Lightning's evaluation loop",
                "eval_accumulation_steps": "outputs move to the CPU after so many steps",
                "eval_do_concat_batches eval_use_gather_object": "how outputs are put together",
                "batch_eval_metrics include_for_metrics": "what `compute_metrics` gets, and when",
                "include_inputs_for_metrics": "old name of `include_for_metrics=['inputs']`",
                "use_legacy_prediction_loop": "`prediction_loop` is called in place of `evaluation_loop`",
                "predict_with_generate generation_max_length generation_num_beams generation_config": (
                    "HF's `Seq2SeqTrainer.prediction_step`"
                ),
            },
        ),
        # Checkpoints.
        *_rules(
            Kind.CHECKPOINT,
            "checkpoint-N",
            {
                "output_dir": "checkpoints lie in it, in HF's layout",
                "overwrite_output_dir": "scripts alone have ever read it; no Trainer does",
                "save_total_limit": "HF's rotation, which spares the best one",
                "save_safetensors": "False writes `pytorch_model.bin`, under every release",
                "save_on_each_node": "who writes",
                "save_only_model": "without the optimizer's state, no run goes on from it",
                "restore_callback_states_from_checkpoint": "HF's own code",
                "resume_from_checkpoint": "read by scripts, which pass it to `train`",
                "load_best_model_at_end metric_for_best_model greater_is_better": "HF's own code",
                "enable_jit_checkpoint": "signals save and stop also with `save_strategy='no'`",
            },
        ),
        *_rules(
            Kind.HF,
            "HF's Hub code",
            {
                "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision": (
                    "HF's own code pushes; a failed push is logged and does not stop training"
                ),
                "hub_token": "never shown, never saved",
                "push_to_hub_model_id push_to_hub_organization": "old names of `hub_model_id`",
                "push_to_hub_token": "old name of `hub_token`",
            },
        ),
        *_rules(
            Kind.HF,
            "the script",
            {"do_train do_eval do_predict sortish_sampler": "read by scripts, by no Trainer"},
        ),
        Rule("ray_scope", Kind.HF, "hyperparameter_search", "passed to Ray, under every release"),
        # More than one process.
        Rule(
            "ddp_find_unused_parameters",
            Kind.STRATEGY,
            "DDPStrategy(find_unused_parameters={})",
            "where None: on, unless the model checkpoints its activations",
        ),
        Rule("ddp_bucket_cap_mb", Kind.STRATEGY, "DDPStrategy(bucket_cap_mb={})", "MB; torch's where None"),
        Rule(
            "ddp_broadcast_buffers", Kind.STRATEGY, "DDPStrategy(broadcast_buffers={})", "torch's where None"
        ),
        Rule("ddp_static_graph", Kind.STRATEGY, "DDPStrategy(static_graph={})", "torch's where None"),
        Rule("ddp_backend", Kind.STRATEGY, "process_group_backend={}", "the device decides where None"),
        Rule("ddp_timeout", Kind.STRATEGY, "timeout={}", "seconds that processes wait for each other"),
        Rule("local_rank", Kind.STRATEGY, "the launcher", "set by HF from what the launcher says"),
        *_rules(
            Kind.STRATEGY,
            "FSDP",
            {
                "fsdp": "version 2 on ModelParallelStrategy, version 1 on FSDPStrategy, torch_xla's on XLAStrategy",
                "fsdp_config": "entry by entry",
                "fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap": "old name of an entry of `fsdp_config`",
            },
        ),
        Rule("deepspeed", Kind.STRATEGY, "DeepSpeedStrategy(config={})", "HF fills in its 'auto' values"),
        Rule(
            "parallelism_config",
            Kind.STRATEGY,
            "ModelParallelStrategy",
            "the sizes of its mesh; with `sp_size`, DeepSpeedStrategy shares sequences out (Ulysses)",
        ),
        Rule("tpu_num_cores", Kind.RETIRED, "", "the launcher decides on the number of processes"),
    )
}
"""Argument → rule."""
