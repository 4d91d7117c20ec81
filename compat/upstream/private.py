"""Every private name of transformers, accelerate and lightning that `compat` calls or overrides.

One literal list, with the releases each name was seen in. `tests/upstream/test_private.py` looks every entry
up in the installed releases and fails with a clear message when one has moved.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from compat.errors import UpstreamError


@dataclass(frozen=True)
class Private:
    """A private name, the releases it was seen in, and what we do with it.

    Attributes:
        where: `module:attribute.path`; `module:Class#name` for what instances of a class have, and
            `module:#name` for what a module sets on the objects of others.
        seen: the releases.
        use: what we do with it.
    """

    where: str
    seen: tuple[str, ...]
    use: str


_HF = ("transformers 4.53.1", "transformers 5.24.0")
_HF5 = ("transformers 5.3.0", "transformers 5.24.0")
_HF4 = ("transformers 4.53.1",)
_PL = ("lightning 2.6.6",)
_AC = ("accelerate 1.15.0",)
_DIFFUSERS = ("diffusers 0.39.0", "diffusers 0.42.1")
_TORCH = ("torch 2.13.0",)
_HUB = ("huggingface_hub 0.36.2", "huggingface_hub 2.4.0")

_TRAINER = "transformers.trainer:Trainer."
_XLA = "lightning.pytorch.strategies.xla:XLAStrategy"
_FABRIC_DEEPSPEED = "lightning.fabric.strategies.deepspeed:DeepSpeedStrategy."
_ULYSSES = "deepspeed.runtime.sequence_parallel.parallel_state_sp:"
_EPOCH = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop."
_FIT = "lightning.pytorch.loops.fit_loop:_FitLoop."
_OPTIMIZATION = "lightning.pytorch.loops.optimization.automatic:"
_INTEGRATION = "transformers.integrations.integration_utils:"
_PREDICT = "lightning.pytorch.loops.prediction_loop:_PredictionLoop"
_EVAL = "lightning.pytorch.loops.evaluation_loop:_EvaluationLoop."
_CONNECTOR = "lightning.pytorch.trainer.connectors.logger_connector.logger_connector:_LoggerConnector"

PRIVATE = (
    Private(_TRAINER + "_inner_training_loop", _HF, "overridden: the engine"),
    Private(_TRAINER + "_maybe_log_save_evaluate", _HF, "called after each update step and epoch"),
    Private(_TRAINER + "_evaluate", _HF, "called for eval_on_start; overridden: its metrics are kept"),
    Private(
        "transformers.training_args:TrainingArguments._setup_devices",
        _HF,
        "overridden: the device is the Lightning Trainer's",
    ),
    Private(
        _TRAINER + "_determine_best_metric",
        _HF,
        "overridden: notes the step; called with the state of a plain Lightning run",
    ),
    Private(_TRAINER + "_save_checkpoint", _HF, "overridden: takes the metrics of 4.37"),
    Private(_TRAINER + "_push_from_checkpoint", _HF, "overridden: keeps tokens out of its files"),
    Private(_TRAINER + "_rotate_checkpoints", _HF4, "overridden: one process of each disk rotates"),
    Private(_TRAINER + "_get_train_sampler", _HF, "called by HF; overrides of 4.37 take no dataset"),
    Private(_TRAINER + "_get_learning_rate", _HF, "called after each update step"),
    Private(_TRAINER + "_load_rng_state", _HF, "called on resume"),
    Private(_TRAINER + "_load_callback_state", _HF, "called on resume"),
    Private(_TRAINER + "_load_best_model", _HF, "overridden: adapters, each from its own folder"),
    Private(_TRAINER + "_load_from_checkpoint", _HF, "overridden: adapters, each from its own folder"),
    Private(_TRAINER + "_issue_warnings_after_load", _HF, "overridden: translates names; called"),
    Private(_TRAINER + "_get_output_dir", _HF, "called to find checkpoints"),
    Private(_TRAINER + "_finish_current_push", _HF, "called at the end of training"),
    Private(_TRAINER + "_wrap_model", _HF, "called before evaluation"),
    Private(_TRAINER + "_prepare_input", _HF, "called on the inputs kept for metrics"),
    Private(_TRAINER + "_save_optimizer_and_scheduler", _HF, "overridden: written by the CheckpointIO"),
    Private(_TRAINER + "_load_optimizer_and_scheduler", _HF, "overridden: read by the CheckpointIO"),
    Private(_TRAINER + "_save_scaler", _HF, "overridden: written by the CheckpointIO"),
    Private(_TRAINER + "_load_scaler", _HF, "overridden: read by the CheckpointIO"),
    Private(
        _TRAINER + "_init_training_state", _HF5, "overridden: tells what holds; supplied on older releases"
    ),
    Private(_TRAINER + "_prepare_for_training", _HF5, "called; supplied on older releases"),
    Private(_TRAINER + "_finalize_training", _HF5, "called; supplied on older releases"),
    Private(_TRAINER + "_update_auto_batch_size", _HF5, "called with auto_find_batch_size"),
    Private(_TRAINER + "_clip_grad_norm", _HF5, "called before each optimizer step"),
    Private(_TRAINER + "_get_grad_norm", _HF5, "called before each optimizer step"),
    Private(_TRAINER + "_track_num_input_tokens", _HF5, "called after each micro-step"),
    Private("transformers.trainer:Trainer#_loss_shifts_labels", _HF5, "asked: whether first labels count"),
    Private(_TRAINER + "_sorted_checkpoints", _HF4, "called at the end of training"),
    Private(_TRAINER + "_deactivate_neftune", _HF4, "called at the end of training"),
    Private(_TRAINER + "_activate_neftune", _HF4, "undone when training raises"),
    Private(_TRAINER + "_prepare_context_parallel_inputs", _HF5, "looked for: whether contexts are shared"),
    Private(_TRAINER + "_fsdp_qlora_plugin_updates", _HF4, "called before a model is sharded"),
    Private(
        "transformers.trainer_utils:RemoveColumnsCollator._remove_columns",
        _HF,
        "called for rows that the model does not take as a whole",
    ),
    Private("transformers.trainer:_is_peft_model", _HF, "called: whether the model has an adapter"),
    Private(
        "accelerate.state:AcceleratorState._reset_state",
        _AC,
        "called before an accelerator is built",
    ),
    Private("accelerate.state:GradientState._set_sync_gradients", _AC, "called at each micro-step"),
    Private(
        "transformers.configuration_utils:PretrainedConfig#_attn_implementation",
        _HF,
        "read: the attention that sequence parallel has to exchange",
    ),
    Private(
        "accelerate:Accelerator._prepare_cp",
        _AC,
        "called for a model without an optimizer, before FSDP shards it",
    ),
    Private("accelerate:Accelerator#_cp_context", _AC, "read: whether that has been done"),
    Private("accelerate:Accelerator._prepare_one", _AC, "called by the accelerator face"),
    Private(
        "accelerate:Accelerator._prepare_deepspeed", _AC, "overridden: several models may share sequences"
    ),
    *(
        Private(_ULYSSES + name, ("deepspeed 0.19.8",), "set to None: the next model has others")
        for name in ("_SEQUENCE_PARALLEL_GROUP", "_SEQUENCE_DATA_PARALLEL_GROUP")
    ),
    Private(_FIT + "_warn_if_modules_in_eval_mode", _PL, "overridden: HF sets the mode at each step"),
    Private(_EPOCH + "_should_accumulate", _PL, "overridden: HF decides where a window ends"),
    Private(
        _EPOCH + "_should_check_val_fx", _PL, "overridden, or replaced for a run: HF decides when to evaluate"
    ),
    Private(_EPOCH + "_should_check_val_epoch", _PL, "overridden: HF decides when to evaluate"),
    Private(_EPOCH + "_num_ready_batches_reached", _PL, "called"),
    Private(_FIT[:-1] + "#epoch_progress", _PL, "set on resume"),
    Private(_EPOCH[:-1] + "#_batches_that_stepped", _PL, "overridden: counts from 1, as HF does"),
    Private(_EPOCH + "_build_kwargs", _PL, "overridden: Lightning inspects the step's signature each time"),
    Private(_OPTIMIZATION + "_AutomaticOptimization.run", _PL, "called where somebody listens"),
    Private(
        "lightning.pytorch.loops.fetchers:_DataFetcher#_start_profiler", _PL, "replaced without a profiler"
    ),
    Private(
        "lightning.pytorch.loops.fetchers:_DataFetcher#_stop_profiler", _PL, "replaced without a profiler"
    ),
    Private(
        _OPTIMIZATION + "_AutomaticOptimization._make_zero_grad_fn", _PL, "overridden: zeroed after the step"
    ),
    Private(
        _OPTIMIZATION + "_AutomaticOptimization._make_backward_fn", _PL, "overridden: it may have run already"
    ),
    Private(_OPTIMIZATION + "_AutomaticOptimization._training_step", _PL, "overridden where nobody listens"),
    Private(_OPTIMIZATION + "ClosureResult._clone_loss", _PL, "overridden: nothing scales the loss in place"),
    Private(_OPTIMIZATION + "ClosureResult.from_training_step_output", _PL, "overridden: HF has divided"),
    Private(_EVAL + "run", _PL, "called in the middle of fit"),
    Private(_EVAL[:-1] + "#_data_source", _PL, "given HF's dataloader"),
    Private(_EVAL[:-1] + "#_max_batches", _PL, "infinite where only the data sets a limit"),
    Private(_PREDICT + ".run", _PL, "called in the middle of fit"),
    Private(_PREDICT + "#_data_source", _PL, "given HF's dataloader"),
    Private(_PREDICT + "._on_predict_model_train", _PL, "overridden: HF leaves the model in eval mode"),
    Private(_EVAL + "_on_evaluation_model_train", _PL, "overridden: HF leaves its model in eval mode"),
    Private(_EVAL[:-1] + "#_module_mode", _PL, "restored: modes of a user's module"),
    Private("lightning.pytorch.trainer.trainer:Trainer._results", _PL, "asked: what modules log themselves"),
    Private(_CONNECTOR + "#_first_loop_iter", _PL, "put back after an evaluation in the middle of fit"),
    Private(
        "lightning.pytorch.trainer.connectors.logger_connector.logger_connector:_LoggerConnector#_current_fx",
        _PL,
        "put back after an evaluation in the middle of fit",
    ),
    Private(
        "lightning.pytorch.trainer.connectors.logger_connector.logger_connector:_LoggerConnector.metrics",
        _PL,
        "read: what the loop that runs has logged",
    ),
    Private("lightning.pytorch.trainer.trainer:Trainer#_logger_connector", _PL, "asked for the above"),
    Private(
        "lightning.pytorch.loops.loop:_Loop.on_iteration_done",
        _PL,
        "replaced for a run: an epoch may end here",
    ),
    Private(
        _INTEGRATION + "TensorBoardCallback._init_summary_writer", _HF, "called where Lightning logs first"
    ),
    Private(_INTEGRATION + "WandbCallback#_wandb", _HF, "asked for the run"),
    Private(_INTEGRATION + "WandbCallback#_initialized", _HF, "asked: whether there is a run"),
    Private(_INTEGRATION + "MLflowCallback#_ml_flow", _HF, "asked for the run"),
    Private(_INTEGRATION + "MLflowCallback#_initialized", _HF, "asked: whether there is a run"),
    Private(_INTEGRATION + "CometCallback#_experiment", _HF, "shared with Lightning"),
    Private(_INTEGRATION + "CometCallback#_initialized", _HF, "asked: whether there is an experiment"),
    Private("lightning.pytorch.loggers.mlflow:MLFlowLogger#_run_id", _PL, "set to HF's run"),
    Private("lightning.pytorch.loggers.mlflow:MLFlowLogger#_experiment_id", _PL, "set to that of HF's run"),
    Private(
        "lightning.pytorch.loggers.comet:CometLogger._create_experiment", _PL, "overridden: HF has created it"
    ),
    Private(
        "huggingface_hub.hub_mixin:ModelHubMixin._save_pretrained", _HUB, "overridden: as its docs have it"
    ),
    Private(_FABRIC_DEEPSPEED + "_setup_distributed", _PL, "overridden: runs on a CPU, too"),
    Private(_FABRIC_DEEPSPEED + "_initialize_engine", _PL, "overridden: a CPU has no index"),
    Private(_FABRIC_DEEPSPEED + "_set_world_ranks", _PL, "called as Lightning does"),
    Private(_FABRIC_DEEPSPEED + "_init_deepspeed_distributed", _PL, "called as Lightning does"),
    Private(_FABRIC_DEEPSPEED + "_format_config", _PL, "called as Lightning does"),
    Private(_FABRIC_DEEPSPEED[:-1] + "#_config_initialized", _PL, "asked and set as Lightning does"),
    Private(_XLA + "._configure_launcher", _PL, "overridden: HF's launcher has started the processes"),
    Private(_XLA + "#_launched", _PL, "set: HF's launcher has started the processes"),
    Private("lightning.fabric.wrappers:_FabricModule#_forward_module", _PL, "taken: the model as DDP has it"),
    Private("lightning.fabric.loggers.csv_logs:CSVLogger#_experiment", _PL, "asked: whether it is open"),
    Private("lightning.pytorch.loggers.litlogger:LitLogger#_experiment", _PL, "asked: whether it is open"),
    Private(_EPOCH + "update_lr_schedulers", _PL, "called where an epoch ends early"),
    Private(
        "lightning.pytorch.trainer.trainer:Trainer#_signal_connector",
        _PL,
        "replaced: signals are a listener's or the script's",
    ),
    Private("lightning.pytorch.plugins.precision:Precision._after_closure", _PL, "called before the step"),
    Private("lightning.pytorch.core.module:LightningModule._on_before_batch_transfer", _PL, "overridden"),
    Private("lightning.pytorch.core.module:LightningModule._apply_batch_transfer_handler", _PL, "overridden"),
    Private("transformers.trainer:Trainer#_memory_tracker", _HF, "stopped at the end of training"),
    Private("transformers.trainer:Trainer#_total_loss_scalar", _HF, "set when training begins"),
    Private("transformers.trainer:Trainer#_globalstep_last_logged", _HF, "set when training begins"),
    Private("transformers.trainer:Trainer#_created_lr_scheduler", _HF, "reset when training begins"),
    Private("transformers.trainer:Trainer#_train_batch_size", _HF, "set when a batch size has been found"),
    Private(
        "transformers.trainer:Trainer#_tr_loss", _HF5, "accumulated; kept under this name on older releases"
    ),
    Private(_TRAINER + "_prepare_inputs", _HF, "overridden: the past goes in"),
    Private(_TRAINER + "_save", _HF, "overridden: pickles, and no token in them"),
    Private(
        "lightning.fabric.strategies.launchers.subprocess_script:_ChildProcessObserver._terminate_all",
        _PL,
        "overridden: says which process has ended the job",
    ),
    Private(
        "transformers.trainer_jit_checkpoint:CheckpointManager._sigterm_handler",
        _HF5,
        "replaced while a run listens itself",
    ),
    Private(
        "transformers.trainer_jit_checkpoint:CheckpointManager#_original_sigterm_handler",
        _HF5,
        "put in place for a second SIGTERM",
    ),
    Private("torch.utils.data:DataLoader#_iterator", _TORCH, "asked: whether workers that stay have started"),
    Private(
        "datasets.iterable_dataset:BufferShuffledExamplesIterable",
        ("datasets 5.0.1", "datasets 5.2.0"),
        "looked for: its state leaves out the rows in its buffer",
    ),
    Private(
        "torch.distributed.distributed_c10d:_get_default_store",
        _TORCH,
        "called: by it processes agree on when to stop",
    ),
    Private(
        "lightning.fabric.plugins.environments.slurm:SLURMEnvironment._validate_srun_variables",
        _PL,
        "overridden: a number of tasks is enough",
    ),
    Private("accelerate.commands.launch:launch_command_parser", _AC, "called to read a configuration file"),
    Private(
        "accelerate.commands.launch:_validate_launch_command", _AC, "called to read a configuration file"
    ),
    *(
        Private(f"accelerate.utils.launch:{name}", _AC, "called: the variables that a launcher sets")
        for name in (
            "prepare_deepspeed_cmd_env",
            "prepare_multi_gpu_env",
            "prepare_simple_launcher_cmd_env",
            "prepare_tpu",
        )
    ),
    Private("lightning.fabric.utilities.optimizer:_optimizers_to_device", _PL, "called when DDP is set up"),
    Private(
        "lightning.fabric.strategies.ddp:DDPStrategy._determine_ddp_device_ids",
        _PL,
        "overridden: no stream of CUDA on other devices",
    ),
    Private("lightning.pytorch.strategies.ddp:DDPStrategy._setup_model", _PL, "called to wrap HF's model"),
    Private(
        "lightning.pytorch.strategies.ddp:DDPStrategy#_ddp_kwargs", _PL, "set to the options that HF has"
    ),
    Private("accelerate:Accelerator#_models", _AC, "filled by the accelerator face"),
    Private("accelerate:Accelerator._prepare_fsdp2", _AC, "overridden: shards what accelerate cannot"),
    Private("accelerate:Accelerator#_optimizers", _AC, "filled by the accelerator face"),
    Private("accelerate:Accelerator#_schedulers", _AC, "filled by the accelerator face"),
    Private(
        "torch.nn.modules.module:_IncompatibleKeys", _TORCH, "made where adapters are loaded, as HF makes it"
    ),
    Private("transformers:PreTrainedModel._hf_peft_config_loaded", _HF, "asked: whether there are adapters"),
    Private("torch.serialization:_save", _TORCH, "called with an archive that fills in data late"),
    Private("torch.distributed.checkpoint.filesystem:_StorageInfo", _TORCH, "made for each tensor written"),
    Private("torch._C:PyTorchFileWriter", _TORCH, "called to write that archive"),
    Private("torch._C:PyTorchFileReader", _TORCH, "called to see whether an archive opens"),
    Private(
        "torch._subclasses.fake_tensor:FakeTensorMode", _TORCH, "on while a file is read without its data"
    ),
    *(
        Private(f"lightning.pytorch.trainer.call:{name}", _PL, "called: hooks of callbacks and modules")
        for name in (
            "_call_callback_hooks",
            "_call_callbacks_load_state_dict",
            "_call_callbacks_on_load_checkpoint",
            "_call_callbacks_state_dict",
            "_call_lightning_module_hook",
            "_call_strategy_hook",
        )
    ),
    *(
        Private(_EVAL + name, _PL, "overridden: an evaluation of HF's is one validation to callbacks")
        for name in (
            "_on_evaluation_end",
            "_on_evaluation_epoch_end",
            "_on_evaluation_epoch_start",
            "_on_evaluation_start",
        )
    ),
    Private(_CONNECTOR + ".should_update_logs", _PL, "overridden: on HF's axis of update steps"),
    Private(_CONNECTOR + ".log_metrics", _PL, "overridden: what HF's callbacks hand on is not told twice"),
    *(
        Private(f"{_CONNECTOR}#{name}", _PL, "shown what HF logs")
        for name in ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
    ),
    Private(
        "lightning.pytorch.trainer.connectors.checkpoint_connector:_CheckpointConnector#_user_managed",
        _PL,
        "set: what a run goes on from is HF's choice",
    ),
    *(
        Private(
            f"lightning.pytorch.core.optimizer:{name}", _PL, "called on what a LightningModule configures"
        )
        for name in ("_configure_optimizers", "_configure_schedulers_automatic_opt")
    ),
    Private(
        "lightning.pytorch.strategies.ddp:_DDPForwardRedirection",
        _PL,
        "called: the same in manual optimization, whose backward runs within the step",
    ),
    Private(
        "lightning.pytorch.loops.optimization.manual:_ManualOptimization",
        _PL,
        "subclassed: the steps of a module that optimizes manually",
    ),
    Private(
        "lightning.pytorch.loops.optimization.manual:_ManualOptimization._on_after_step",
        _PL,
        "overridden: HF's event after each step",
    ),
    Private(
        "lightning.pytorch.strategies.strategy:_ForwardRedirection",
        _PL,
        "called: a step of a LightningModule goes through its wrapper",
    ),
    *(
        Private(f"lightning.pytorch.callbacks:{name}#_early_exit", _PL, "set: it looks ahead of training")
        for name in ("BatchSizeFinder", "LearningRateFinder")
    ),
    Private(_TRAINER + "_remove_unused_columns", _HF, "overridden: a LightningModule's steps use them"),
    Private(
        _TRAINER + "_get_collator_with_removed_columns",
        _HF,
        "overridden: a LightningModule's steps use them",
    ),
    Private(
        "accelerate.state:AcceleratorState#_mixed_precision",
        _AC,
        "set where a trainer builds an accelerator of its own",
    ),
    Private("accelerate.state:AcceleratorState._shared_state", _AC, "marked as made for a trainer of ours"),
    *(
        Private(f"lightning.pytorch.cli:LightningCLI.{name}", _PL, use)
        for name, use in (
            ("_add_instantiators", "overridden: HF's arguments go into constructors"),
            ("_instantiate_trainer", "overridden: HF's control is one of the callbacks"),
            ("_parse_ckpt_path", "overridden: a file is verified before it is loaded for its settings"),
            ("_prepare_subcommand_kwargs", "overridden: `resume_from_checkpoint` is a checkpoint"),
            ("_add_configure_optimizers_method_to_model", "called when the model is made"),
            ("_get", "called to read what was parsed"),
            ("_parser", "called to read its defaults"),
        )
    ),
    Private("transformers.trainer_seq2seq:Seq2SeqTrainer#_gen_kwargs", _HF, "set: how to generate"),
    Private(_TRAINER + "_move_model_to_device", _HF, "overridden: a Lightning Trainer has placed the model"),
    Private(_FIT[:-1] + "#_data_source", _PL, "replaced beside an HFModule: loaders are read in windows"),
    Private(_FIT[:-1] + "#_combined_loader", _PL, "read: how many batches an epoch is limited to"),
    Private(_FIT[:-1] + "#_combined_loader_states_to_load", _PL, "loaded, where loaders were made before"),
    Private(_FIT[:-1] + "#_data_fetcher", _PL, "begun anew after that"),
    *(
        Private(f"lightning.pytorch.trainer.connectors.data_connector:{name}", _PL, use)
        for name, use in (
            ("_DataLoaderSource", "subclassed: loaders are read in windows"),
            ("_process_dataloader", "called on a loader ahead of its reader"),
            ("_resolve_overfit_batches", "called on a loader ahead of its reader"),
        )
    ),
    Private("lightning.pytorch.core.module:LightningModule#_trainer", _PL, "looked at, None before any"),
    Private(
        "diffusers.schedulers.scheduling_ddim:DDIMScheduler._threshold_sample",
        _DIFFUSERS,
        "called where a scheduler's images are thresholded",
    ),
    # Classes of Lightning's that ours are derived from, and what their instances have.
    Private(_OPTIMIZATION + "_AutomaticOptimization", _PL, "subclassed: the closure around HF's step"),
    Private(_FIT[:-1], _PL, "subclassed: epochs are HF's"),
    Private(_EPOCH[:-1], _PL, "subclassed: windows are HF's"),
    Private(_EVAL[:-1], _PL, "subclassed: an evaluation within `fit`"),
    Private(_PREDICT, _PL, "subclassed: a prediction within `fit`"),
    Private(_CONNECTOR, _PL, "subclassed: metrics that HF logs"),
    Private(
        "lightning.pytorch.trainer.connectors.logger_connector.result:_METRICS",
        _PL,
        "the type of its metrics",
    ),
    Private("lightning.pytorch.loops.fetchers:_DataFetcher", _PL, "the type of what yields batches"),
    Private(
        "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector",
        _PL,
        "subclassed: signals are a listener's or the script's",
    ),
    Private(
        "lightning.fabric.strategies.launchers.subprocess_script:_ChildProcessObserver",
        _PL,
        "subclassed: says which process has ended the job",
    ),
    Private(
        "lightning.fabric.strategies.launchers.subprocess_script:_ChildProcessObserver#_child_processes",
        _PL,
        "read: which of them have ended",
    ),
    *(
        Private("lightning.pytorch.trainer.trainer:Trainer" + name, _PL, use)
        for name, use in (
            ("._active_loop", "read: the loop that is running"),
            ("#_checkpoint_connector", "told that what a run goes on from is HF's choice"),
        )
    ),
    *(
        Private("lightning.pytorch.callbacks.finetuning:BaseFinetuning" + name, _PL, use)
        for name, use in (
            ("._apply_mapping_to_param_groups", "called: the groups of a run that is resumed"),
            ("#_internal_optimizer_metadata", "read: the groups that were saved"),
            ("#_restarting", "reset once they are restored"),
        )
    ),
    Private(
        "lightning.pytorch.callbacks.weight_averaging:WeightAveraging#_average_model",
        _PL,
        "dropped once the best model is loaded",
    ),
    Private("lightning.pytorch.callbacks.callback:Callback._generate_state_key", _PL, "called"),
    Private("lightning.pytorch.core.module:LightningModule#_current_fx_name", _PL, "set around a hook"),
    Private(
        "lightning.pytorch.utilities.parsing:#_hparams_name",
        _PL,
        "read: the name that hyperparameters are saved under",
    ),
    Private(
        "lightning.pytorch.utilities.combined_loader:CombinedLoader._load_state_dicts",
        _PL,
        "called where loaders were made before",
    ),
    Private("lightning.pytorch.cli:LightningCLI#_subcommand_parsers", _PL, "read for help and suggestions"),
    # transformers.
    Private(_TRAINER + "_run_epoch", _HF5, "looked for: the one method of HF's engine that is not called"),
    Private(_TRAINER + "_build_accelerator_args", _HF5, "overridden: the mesh comes later on a CPU"),
    *(
        Private("transformers.modeling_utils:PreTrainedModel." + name, _HF, use)
        for name, use in (
            ("_keys_to_ignore_on_save", "asked: whether HF's own warning can be given"),
            ("_no_split_modules", "read: the layers that FSDP wraps"),
        )
    ),
    Private("transformers.configuration_utils:PretrainedConfig#_name_or_path", _HF, "read for a model card"),
    # torch.
    *(
        Private("torch:" + name, _TORCH, use)
        for name, use in (
            ("_C", "what is not in Python: archives, and functions of subclasses of tensors"),
            ("Tensor._post_accumulate_grad_hooks", "read: whether a gradient is consumed at once"),
            ("nn.Module._call_impl", "called: a compiled model as it is"),
            ("nn.Module._compiled_call_impl", "read: whether a script has compiled the model"),
            ("storage.UntypedStorage._cdata", "read: which tensors share memory"),
        )
    ),
    Private("torch._dynamo.eval_frame:OptimizedModule#_orig_mod", _TORCH, "read: the model that is compiled"),
    Private("torch.optim.lr_scheduler:#_opt_called", _TORCH, "set: the optimizer was stepped"),
    Private(
        "torch.storage:UntypedStorage._checkpoint_offset", _TORCH, "read: the place of a storage in its file"
    ),
    # Python's own, which the documentation leaves out.
    *(
        Private(where, ("python 3.10", "python 3.14"), use)
        for where, use in (
            ("argparse:_SubParsersAction", "the type of subcommands"),
            ("argparse:_ActionsContainer#_actions", "read: the options that there are"),
            ("argparse:_ActionsContainer#_option_string_actions", "read: the flags of each option"),
            ("copy:_reconstruct", "called: a copy by what a pickle would hold"),
            ("copyreg:_reconstructor", "named in a pickle: an object without its constructor"),
            ("os:_exit", "documented: ends a process at once"),
            ("sys:_getframe", "documented: who reads an attribute"),
        )
    ),
)


def resolve(where: str) -> Any:
    """The object that a `module:attribute.path` names.

    Raises:
        UpstreamError: if the installed release no longer has it.
    """
    module, _, path = where.partition(":")
    path, _, attribute = path.partition("#")
    found: Any = importlib.import_module(module)
    for part in filter(None, path.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            msg = (
                f"`{where}` has moved in the installed release. "
                "Find its new place and update compat/upstream/private.py."
            )
            raise UpstreamError(msg) from error
    if attribute and not re.search(rf"\b{attribute}\b", inspect.getsource(found)):
        msg = (
            f"`{where}`: instances no longer have it. "
            "Find its new place and update compat/upstream/private.py."
        )
        raise UpstreamError(msg)
    return found
