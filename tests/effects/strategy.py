"""Several processes: what is handed on for them, and what is refused as long as there is one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import accelerate
import transformers
from transformers.training_args import ParallelMode

from compat.errors import ArgumentError
from compat.upstream import process
from tests import small
from tests.effects import parts
from tests.effects.effect import Bench, Effect, same


def told_to_ddp(name: str) -> Any:
    """An option that accelerate, and whoever asks it, holds for distributed training."""

    def observe(bench: Bench) -> Any:
        trainer = bench.trainer()
        # transformers 4 tells accelerate of it only where a model is wrapped for several processes.
        distributed = property(lambda _: ParallelMode.DISTRIBUTED)
        bench.patch.setattr(transformers.TrainingArguments, "parallel_mode", distributed)
        trainer._wrap_model(trainer.model)
        return getattr(trainer.accelerator.ddp_handler, name)

    return observe


def told_to_processes(name: str) -> Any:
    """An option with which the process group is asked for."""

    def observe(bench: Bench) -> Any:
        init = accelerate.PartialState.__init__
        asked: list[dict[str, Any]] = []

        def noted(self: Any, *args: Any, **options: Any) -> None:
            asked.append(dict(options))
            # One process has no group to be of a kind.
            options.pop("backend", None)
            init(self, *args, **options)

        bench.patch.setattr(accelerate.PartialState, "__init__", noted)
        # As in a process of a job; one alone is not told of a backend.
        bench.patch.setattr(process, "is_launched", lambda: True)
        bench.arguments()
        (answer,) = {options[name] for options in asked if name in options}
        return answer

    return observe


def refused(bench: Bench) -> str | None:
    """What the refusal of these arguments begins with, if they are refused."""
    # As if DeepSpeed were installed: without it transformers says so first.
    bench.patch.setattr("transformers.integrations.deepspeed.HfTrainerDeepSpeedConfig", Mock())
    bench.patch.setattr("accelerate.utils.DeepSpeedPlugin", Mock())
    try:
        bench.trainer()
    except ArgumentError as error:
        return str(error).split("=")[0]
    return None


def meshed(bench: Bench) -> str | None:
    """What accelerate knows of the mesh of the job, or what the refusal of one begins with."""
    try:
        trainer = bench.trained()
    except ArgumentError as error:
        return str(error).split(":", maxsplit=1)[0]
    config = trainer.accelerator.state.parallelism_config
    return None if config is None else f"{trainer.plan.strategy} of {config.total_size}"


def told_to_fsdp(option: str, variable: str) -> Any:
    """An option of the sharding that is asked for: a plugin's argument, or a variable for accelerate."""

    def observe(bench: Bench) -> str | None:
        args = bench.arguments()
        plugin = getattr(args, "fsdp_plugin_args", None)
        return args.accelerate_environment.get(variable) if plugin is None else str(plugin.get(option))

    return observe


def in_script(bench: Bench) -> tuple[int, int, int]:
    """What a script does that is told what to do: update steps, rows evaluated and rows predicted."""
    args = bench.arguments()
    trainer = bench.trainer(args=args, model=parts.Telling())
    if args.do_train:
        trainer.train()
    evaluated = predicted = 0
    if args.do_eval:
        trainer.evaluate()
        evaluated = len(trainer.eval_dataset)
    if args.do_predict:
        predicted = len(trainer.predict(small.rows(3)).predictions)
    return trainer.state.global_step, evaluated, predicted


def record(bench: Bench) -> Any:
    """All numbers of a run."""
    trainer = bench.trained()
    return small.losses(trainer), small.weights(trainer)


def is_refused(field: str) -> tuple[None, str]:
    """Nothing is refused without the argument, and with it it is named."""
    return None, f"`{field}"


def becomes(value: str) -> Any:
    """Whether this is seen with the argument, and something else without it."""
    return lambda without, with_it: without != value == with_it


def retired(field: str, value: Any) -> Effect:
    """An argument that is accepted with a warning and changes nothing."""
    return Effect(field, value, record, same, warns=True)


SHARDED = {"fsdp": "full_shard auto_wrap"}
BY_SIZE = {"min_num_params": 5, "auto_wrap_policy": "SIZE_BASED_WRAP"}
SMALLEST = told_to_fsdp("min_num_params", "FSDP_MIN_NUM_PARAMS")
WRAPPED = told_to_fsdp("transformer_cls_names_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP")
ON_DEVICE = {"use_cpu": False}

STRATEGY = (
    Effect("ddp_find_unused_parameters", False, told_to_ddp("find_unused_parameters"), (True, False)),
    Effect("ddp_bucket_cap_mb", 50, told_to_ddp("bucket_cap_mb"), (25, 50)),
    Effect("ddp_broadcast_buffers", False, told_to_ddp("broadcast_buffers"), (True, False)),
    Effect("ddp_static_graph", True, told_to_ddp("static_graph"), (False, True)),
    Effect("ddp_backend", "gloo", told_to_processes("backend"), (None, "gloo")),
    Effect(
        "ddp_timeout",
        60,
        told_to_processes("timeout"),
        (timedelta(minutes=30), timedelta(minutes=1)),
        base=ON_DEVICE,
    ),
    # The launcher tells each process its number.
    Effect("local_rank", 0, record, same),
    Effect("fsdp", "full_shard", refused, is_refused("fsdp")),
    Effect("deepspeed", {"zero_optimization": {"stage": 2}}, refused, is_refused("deepspeed")),
    # One process is a mesh of its own; tests/distributed has meshes of several.
    Effect("parallelism_config", accelerate.ParallelismConfig(), meshed, (None, "single_device of 1")),
    Effect(
        "parallelism_config",
        accelerate.ParallelismConfig(tp_size=2),
        meshed,
        is_refused("parallelism_config`"),
        note="of more processes than there are",
    ),
    Effect(
        "parallelism_config",
        accelerate.ParallelismConfig(cp_size=2),
        meshed,
        is_refused("parallelism_config` with cp_size=2"),
        note="context parallel",
    ),
    Effect(
        "parallelism_config",
        accelerate.ParallelismConfig(sp_size=2),
        meshed,
        is_refused("parallelism_config` with sp_size=2"),
        note="sequence parallel without DeepSpeed",
    ),
    Effect(
        "fsdp_config",
        BY_SIZE,
        SMALLEST,
        becomes("5"),
        base=SHARDED,
    ),
    Effect(
        "fsdp_min_num_params",
        5,
        SMALLEST,
        becomes("5"),
        base=SHARDED,
        replaced_by="fsdp_config",
        warns=True,
    ),
    Effect(
        "fsdp_transformer_layer_cls_to_wrap",
        "Block",
        WRAPPED,
        becomes("Block"),
        base=SHARDED,
        replaced_by="fsdp_config",
        warns=True,
    ),
)

RETIRED = (
    retired("fp16_backend", "cuda_amp"),
    retired("fp16_opt_level", "O2"),
    retired("half_precision_backend", "cpu_amp"),
    retired("jit_mode_eval", True),
    retired("mp_parameters", "partitions=2"),
    retired("overwrite_output_dir", True),
    retired("ray_scope", "all"),
    retired("tpu_num_cores", 8),
    retired("use_ipex", True),
    retired("use_mps_device", True),
    Effect("fp16_backend", "apex", refused, is_refused("fp16_backend"), note="apex"),
    Effect("half_precision_backend", "apex", refused, is_refused("half_precision_backend"), note="apex"),
)

SCRIPT = (
    Effect("do_train", True, in_script, ((0, 0, 0), (2, 0, 0))),
    Effect("do_eval", True, in_script, ((0, 0, 0), (0, 5, 0))),
    Effect("do_predict", True, in_script, ((0, 0, 0), (0, 0, 3))),
)
