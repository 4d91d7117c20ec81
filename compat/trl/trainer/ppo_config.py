"""The configuration of `PPOTrainer`. Mirrors `trl.trainer.ppo_config` of 0.7.11."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeAlias, TypeVar

from compat.trl.core import flatten_dict
from compat.trl.import_utils import is_wandb_available
from compat.trl.trainer.utils import exact_div

if TYPE_CHECKING:
    T = TypeVar("T")
    JSONDict: TypeAlias = dict[str, Any] | None
    Hidden: TypeAlias = T | None
else:
    try:
        import tyro

        JSONDict = Annotated[dict | None, tyro.conf.arg(metavar="JSON", constructor=json.loads)]
        Hidden = tyro.conf.Suppress
    except ImportError:  # scripts that parse their command line with tyro have it installed
        JSONDict = dict | None
        Hidden = Optional

KL_PENALTIES = ("kl", "abs", "mse", "full")
"""The estimators of the KL divergence from the reference model."""


@dataclass
class PPOConfig:
    """The configuration of `PPOTrainer`; sizes are in examples, per process.

    Attributes:
        exp_name: the name of the experiment; by default that of the script, without `.py`.
        seed: the seed of all random numbers.
        log_with: a tracker of accelerate: "wandb" or "tensorboard".
        task_name: only for the tracker.
        model_name: only for the tracker.
        query_dataset: only for the tracker.
        reward_model: only for the tracker.
        remove_unused_columns: whether to remove columns of a `datasets.Dataset` that the model does not take.
        tracker_kwargs: the name of a tracker → its arguments.
        accelerator_kwargs: further arguments of `accelerate.Accelerator`.
        project_kwargs: arguments of `accelerate.utils.ProjectConfiguration`, for example `logging_dir`.
        tracker_project_name: the name of the project at the tracker.
        push_to_hub_if_best_kwargs: arguments of `push_to_hub`, including `repo_id`. If given, the model is
            pushed whenever the mean score is the best one so far.
        steps: the intended number of training examples.
        learning_rate: the learning rate of Adam.
        adap_kl_ctrl: whether the KL coefficient follows a target.
        init_kl_coef: the initial KL coefficient.
        kl_penalty: the KL estimator: "kl" (difference of log-probabilities), "abs", "mse", or "full", over
            the whole vocabulary.
        target: the target KL divergence of the controller, in nats per response.
        horizon: the horizon of the controller, in examples; a larger one makes it slower.
        gamma: the discount of later rewards.
        lam: the discount of later temporal differences in GAE.
        cliprange: the clip range of the probability ratio.
        cliprange_value: the clip range of the values.
        vf_coef: the weight of the value loss.
        batch_size: the number of examples per call of `step`.
        forward_batch_size: the old name of `mini_batch_size`.
        mini_batch_size: the number of examples per forward and backward pass.
        gradient_accumulation_steps: the number of mini batches per optimizer step.
        world_size: the number of processes; set by the trainer.
        ppo_epochs: the number of passes over each batch.
        max_grad_norm: the maximum gradient norm, for clipping; no clipping if None.
        optimize_cuda_cache: the old name of `optimize_device_cache`.
        optimize_device_cache: whether to empty the device's cache after each pass.
        early_stopping: whether to stop training on a batch when the policy has moved too far.
        target_kl: the approximate KL divergence; above 1.5 times this value, early stopping applies.
        compare_steps: the number of steps between comparisons with the best mean score.
        ratio_threshold: mini batches with a larger mean probability ratio are skipped.
        use_score_scaling: whether to divide scores by their running standard deviation.
        use_score_norm: whether to also subtract their running mean.
        score_clip: the largest absolute score.
        whiten_rewards: whether to whiten rewards before advantages are computed.
        is_encoder_decoder: set by the trainer.
        is_peft_model: set by the trainer.
        backward_batch_size: the number of examples per optimizer step; computed.
        global_backward_batch_size: the same over all processes; set by the trainer.
        global_batch_size: `batch_size` over all processes; set by the trainer.
        lightning: flags of Lightning Fabric: accelerator, strategy, devices, num_nodes, precision, plugins,
            callbacks, loggers.

    Raises:
        ValueError: `batch_size` is not a multiple of `mini_batch_size * gradient_accumulation_steps`.
        ImportError: `log_with="wandb"` is set, and Weights & Biases is not installed.
    """

    exp_name: str = os.path.basename(sys.argv[0])[: -len(".py")]
    seed: int = 0
    log_with: Literal["wandb", "tensorboard"] | None = None
    task_name: str | None = None
    model_name: str | None = "gpt2"
    query_dataset: str | None = "imdb"
    reward_model: str | None = "sentiment-analysis:lvwerra/distilbert-imdb"
    remove_unused_columns: bool = True
    tracker_kwargs: JSONDict = field(default_factory=dict)
    accelerator_kwargs: JSONDict = field(default_factory=dict)
    project_kwargs: JSONDict = field(default_factory=dict)
    tracker_project_name: str = "trl"
    push_to_hub_if_best_kwargs: JSONDict = field(default_factory=dict)
    steps: int = 20000
    learning_rate: float = 1.41e-5
    adap_kl_ctrl: bool = True
    init_kl_coef: float | None = 0.2
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    target: float | None = 6
    horizon: float | None = 10000
    gamma: float = 1
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    batch_size: int = 128
    forward_batch_size: int | None = None
    mini_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    world_size: Hidden[int] = None
    ppo_epochs: int = 4
    max_grad_norm: float | None = None
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool | None = False
    early_stopping: bool = False
    target_kl: float = 1
    compare_steps: int = 1
    ratio_threshold: float = 10.0
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    whiten_rewards: bool = False
    is_encoder_decoder: Hidden[bool] = None
    is_peft_model: Hidden[bool] = None
    backward_batch_size: Hidden[int] = None
    global_backward_batch_size: Hidden[int] = None
    global_batch_size: Hidden[int] = None
    lightning: JSONDict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.forward_batch_size is not None:
            warnings.warn(
                "`forward_batch_size` is deprecated, and takes the place of `mini_batch_size`, in forward "
                "passes and in optimization. Give `mini_batch_size` instead.",
                UserWarning,
                stacklevel=3,
            )
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            warnings.warn(
                "`optimize_cuda_cache` is deprecated. Give `optimize_device_cache` instead.",
                UserWarning,
                stacklevel=3,
            )
            self.optimize_device_cache = self.optimize_cuda_cache
        self.backward_batch_size = self.mini_batch_size * self.gradient_accumulation_steps
        exact_div(
            self.batch_size,
            self.backward_batch_size,
            "`batch_size`",
            "`mini_batch_size * gradient_accumulation_steps`",
            "`batch_size` must be a multiple of `mini_batch_size * gradient_accumulation_steps`",
        )
        if self.log_with == "wandb" and not is_wandb_available():
            msg = "`log_with='wandb'`: Please install wandb to use wandb logging: `pip install wandb`."
            raise ImportError(msg)
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)
        if self.kl_penalty not in KL_PENALTIES:
            msg = f"`kl_penalty={self.kl_penalty!r}`: no such estimator. Choose among {KL_PENALTIES}."
            raise AssertionError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return all values; nested ones under paths with slashes, Lightning's objects as text."""
        flags = {
            name: value if _is_plain(value) else repr(value) for name, value in (self.lightning or {}).items()
        }
        flat: dict[str, Any] = flatten_dict({**self.__dict__, "lightning": flags})
        return flat


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
