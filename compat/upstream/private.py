"""Every private name of transformers, accelerate and lightning that `compat` calls or overrides.

One literal list, with the releases each name was seen in. `tests/upstream/test_private.py` looks every entry
up in the installed releases and fails with a clear message when one has moved.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from compat.errors import UpstreamError


@dataclass(frozen=True)
class Private:
    """A private name: `module:attribute.path`, the releases it was seen in, and what we do with it."""

    where: str
    seen: tuple[str, ...]
    use: str


_HF = ("transformers 4.53.1", "transformers 5.23.0")
_HF5 = ("transformers 5.23.0",)
_HF4 = ("transformers 4.53.1",)
_PL = ("lightning 2.6.6",)
_AC = ("accelerate 1.15.0",)

_TRAINER = "transformers.trainer:Trainer."
_EPOCH = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop."
_FIT = "lightning.pytorch.loops.fit_loop:_FitLoop."
_EVAL = "lightning.pytorch.loops.evaluation_loop:_EvaluationLoop."

PRIVATE = (
    Private(_TRAINER + "_inner_training_loop", _HF, "overridden: the engine"),
    Private(_TRAINER + "_maybe_log_save_evaluate", _HF, "called after each update step and epoch"),
    Private(_TRAINER + "_evaluate", _HF, "called for eval_on_start"),
    Private(_TRAINER + "_get_learning_rate", _HF, "called after each update step"),
    Private(_TRAINER + "_load_rng_state", _HF, "called on resume"),
    Private(_TRAINER + "_load_callback_state", _HF, "called on resume"),
    Private(_TRAINER + "_load_best_model", _HF, "called at the end of training"),
    Private(_TRAINER + "_get_output_dir", _HF, "called to find checkpoints"),
    Private(_TRAINER + "_finish_current_push", _HF, "called at the end of training"),
    Private(_TRAINER + "_wrap_model", _HF, "called before evaluation"),
    Private(_TRAINER + "_prepare_input", _HF, "called on the inputs kept for metrics"),
    Private(_TRAINER + "_save_optimizer_and_scheduler", _HF, "overridden: written by the CheckpointIO"),
    Private(_TRAINER + "_load_optimizer_and_scheduler", _HF, "overridden: read by the CheckpointIO"),
    Private(_TRAINER + "_save_scaler", _HF, "overridden: written by the CheckpointIO"),
    Private(_TRAINER + "_load_scaler", _HF, "overridden: read by the CheckpointIO"),
    Private(_TRAINER + "_init_training_state", _HF5, "called; supplied on older releases"),
    Private(_TRAINER + "_prepare_for_training", _HF5, "called; supplied on older releases"),
    Private(_TRAINER + "_finalize_training", _HF5, "called; supplied on older releases"),
    Private(_TRAINER + "_update_auto_batch_size", _HF5, "called with auto_find_batch_size"),
    Private(_TRAINER + "_clip_grad_norm", _HF5, "called before each optimizer step"),
    Private(_TRAINER + "_get_grad_norm", _HF5, "called before each optimizer step"),
    Private(_TRAINER + "_track_num_input_tokens", _HF5, "called after each micro-step"),
    Private(_TRAINER + "_sorted_checkpoints", _HF4, "called at the end of training"),
    Private(_TRAINER + "_deactivate_neftune", _HF4, "called at the end of training"),
    Private(_TRAINER + "_activate_neftune", _HF4, "undone when training raises"),
    Private("transformers.trainer:_is_peft_model", _HF4, "called"),
    Private(
        "accelerate.state:AcceleratorState._reset_state",
        _AC,
        "called before an accelerator is built",
    ),
    Private("accelerate.state:GradientState._set_sync_gradients", _AC, "called at each micro-step"),
    Private("accelerate:Accelerator._prepare_one", _AC, "called by the accelerator face"),
    Private(_FIT + "_warn_if_modules_in_eval_mode", _PL, "overridden: HF sets the mode at each step"),
    Private(_EPOCH + "_should_accumulate", _PL, "overridden: HF decides where a window ends"),
    Private(_EPOCH + "_should_check_val_fx", _PL, "overridden: HF decides when to evaluate"),
    Private(_EPOCH + "_should_check_val_epoch", _PL, "overridden: HF decides when to evaluate"),
    Private(_EPOCH + "_num_ready_batches_reached", _PL, "called"),
    Private(
        "lightning.pytorch.loops.optimization.automatic:_AutomaticOptimization._make_zero_grad_fn",
        _PL,
        "overridden: HF zeroes after the step",
    ),
    Private(
        "lightning.pytorch.loops.optimization.automatic:_AutomaticOptimization._make_backward_fn",
        _PL,
        "overridden: the backward may already have run",
    ),
    Private(_EVAL + "run", _PL, "called in the middle of fit"),
    Private(
        "lightning.pytorch.loops.prediction_loop:_PredictionLoop.run",
        _PL,
        "called in the middle of fit",
    ),
    Private(
        "lightning.pytorch.plugins.precision:Precision._after_closure",
        _PL,
        "called between backward and step",
    ),
    Private("lightning.pytorch.core.module:LightningModule._on_before_batch_transfer", _PL, "overridden"),
    Private(
        "lightning.pytorch.core.module:LightningModule._apply_batch_transfer_handler",
        _PL,
        "overridden",
    ),
)


def resolve(where: str) -> Any:
    """The object that a `module:attribute.path` names.

    Raises:
        UpstreamError: if the installed release no longer has it.
    """
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            msg = (
                f"`{where}` has moved in the installed release. "
                "Find its new place and update compat/upstream/private.py."
            )
            raise UpstreamError(msg) from error
    return found
