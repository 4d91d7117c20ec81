"""What TRL, Sentence Transformers and SetFit use of accelerate and of HF's Trainer, and who serves it here.

`tests/conformance/third_parties.py` lists the uses from their sources.
"""

from __future__ import annotations

from compat.upstream.accelerator import ACCELERATOR, AS_IT_IS

SUPPLIED = "HF's own, and the same where the installed release lacks it"

HELD = {
    "dataloader_config": AS_IT_IS,
    "state": "a copy of accelerate's, which no other trainer in the process changes",
    "trackers": AS_IT_IS,
}
"""What an accelerator holds beside the public names of its class."""

STATE = {
    "deepspeed_plugin": AS_IT_IS,
    "fsdp_plugin": "also on a CPU, and of version 2 under transformers 4",
}
"""Attributes of `accelerator.state`, and of an `AcceleratorState()`, which is the last trainer's."""

PROCESS = dict.fromkeys(
    ("device", "distributed_type", "local_main_process_first", "local_process_index", "main_process_first"),
    AS_IT_IS,
)
"""Attributes of a `PartialState()`, and of `args.distributed_state`, which is one."""

ACCELERATE = {
    "accelerate:Accelerator": "given our face as soon as it is a trainer's",
    **dict.fromkeys(
        (
            "accelerate:PartialState",
            "accelerate:__version__",
            "accelerate.commands.config:default_config_file",
            "accelerate.commands.config:load_config_from_file",
            "accelerate.commands.launch:launch_command",
            "accelerate.commands.launch:launch_command_parser",
            "accelerate.hooks:ModelHook",
            "accelerate.logging:get_logger",
            "accelerate.state:AcceleratorState",
            "accelerate.state:PartialState",
            "accelerate.utils:DistributedType",
            "accelerate.utils:ProjectConfiguration",
            "accelerate.utils:broadcast",
            "accelerate.utils:broadcast_object_list",
            "accelerate.utils:extract_model_from_parallel",
            "accelerate.utils:gather",
            "accelerate.utils:gather_object",
            "accelerate.utils:is_peft_model",
            "accelerate.utils:is_wandb_available",
            "accelerate.utils:set_seed",
            "accelerate.utils:tqdm",
            "accelerate.utils.fsdp_utils:get_parameters_from_modules",
            "accelerate.utils.versions:is_torch_version",
        ),
        AS_IT_IS,
    ),
}
"""Names that are imported from accelerate, by module."""

TRAINER = {
    # Overridden by ours, which are called at the same moments and lead to HF's.
    "_determine_best_metric": "notes the step with `save_strategy='best'`, under every release",
    "_evaluate": "evaluates in Lightning's loop, and shows its callbacks one validation",
    "_get_collator_with_removed_columns": "leaves a LightningModule's columns",
    "_get_train_sampler": "takes no dataset where an override of 4.37 does not",
    "_inner_training_loop": "Lightning's `fit`",
    "_load_best_model": "reads from where checkpoints are written, and each adapter from its folder",
    "_load_from_checkpoint": "reads Lightning's and sharded files, too, and each adapter from its folder",
    "_load_optimizer_and_scheduler": "read by the CheckpointIO",
    "_maybe_log_save_evaluate": "called after each update step, by Lightning's hook",
    "_prepare_inputs": "hands a model its past",
    "_push_from_checkpoint": "says when an upload fails",
    "_remove_unused_columns": "leaves a LightningModule's columns",
    "_save": "writes pickles where `save_safetensors=False`",
    "_save_checkpoint": "written whole or not at all",
    "_save_optimizer_and_scheduler": "written by the CheckpointIO",
    "add_callback": "takes Lightning's, too",
    "call_model_init": "takes the module out of `torch.compile`'s wrapper",
    "compute_loss": "asks a LightningModule where the model is one",
    "evaluate": "HF's, ahead of Lightning's loop",
    "evaluation_loop": "Lightning's `validate`",
    "get_eval_dataloader": "limited where Lightning's flags limit it",
    "get_test_dataloader": "limited where Lightning's flags limit it",
    "get_train_dataloader": "limited where Lightning's flags limit it",
    "hyperparameter_search": "Lightning's callbacks begin each trial anew",
    "init_hf_repo": "says which repository could not be made",
    "log": "shown to Lightning's loggers, too",
    "pop_callback": "takes Lightning's, too",
    "prediction_step": "asks a LightningModule where the model is one",
    "push_to_hub": "says when an upload fails",
    "remove_callback": "takes Lightning's, too",
    "save_metrics": "writes arrays as lists",
    "save_model": "puts shards together, and writes before it returns",
    "tokenizer": "the older name of `processing_class`, under every release",
    "train": "Lightning's `fit`, from HF's `train`",
    **dict.fromkeys(("_nested_gather", "end", "use_apex"), SUPPLIED),
    # Held by instances; ours sets them where HF's loop did.
    "accelerator": "an Accelerator that wraps no model and steps no optimizer: see ACCELERATOR",
    **dict.fromkeys(
        (
            "_eval_dataloaders",
            "_globalstep_last_logged",
            "_signature_columns",
            "_total_loss_scalar",
            "_train_batch_size",
            "args",
            "callback_handler",
            "can_return_loss",
            "compute_loss_func",
            "compute_metrics",
            "compute_objective",
            "control",
            "current_flos",
            "current_gradient_accumulation_steps",
            "data_collator",
            "deepspeed",
            "eval_dataset",
            "hp_name",
            "hp_search_backend",
            "hp_space",
            "hub_model_id",
            "is_deepspeed_enabled",
            "is_fsdp_enabled",
            "is_in_train",
            "label_names",
            "label_smoother",
            "loss_is_scaled_for_ga",
            "lr_scheduler",
            "model",
            "model_accepts_loss_kwargs",
            "model_init",
            "model_wrapped",
            "objective",
            "optimizer",
            "optimizer_cls_and_kwargs",
            "processing_class",
            "push_in_progress",
            "state",
            "train_dataset",
        ),
        AS_IT_IS,
    ),
    # HF's own methods.
    **dict.fromkeys(
        (
            "_get_dataloader",
            "_get_eval_sampler",
            "_get_learning_rate",
            "_get_output_dir",
            "_hp_search_setup",
            "_set_signature_columns_if_needed",
            "compute_loss_context_manager",
            "create_model_card",
            "create_optimizer_and_scheduler",
            "get_decay_parameter_names",
            "get_optimizer_cls_and_kwargs",
            "get_tp_size",
            "is_local_process_zero",
            "is_world_process_zero",
            "log_metrics",
            "store_flos",
            "training_step",
        ),
        AS_IT_IS,
    ),
}
"""Names of HF's Trainer that are read or overridden, private ones among them."""

SERVED = {
    "accelerate": ACCELERATE,
    "accelerator": {**ACCELERATOR, **HELD},
    "process": PROCESS,
    "state": STATE,
    "trainer": TRAINER,
}
"""Kind of object → name → in what ours differs."""
