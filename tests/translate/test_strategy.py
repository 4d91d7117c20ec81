from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.arguments.fsdp_entries import FSDP_CONFIG
from compat.errors import ArgumentError
from compat.translate import Kind, LightningPlan, Setting
from compat.translate.strategy import CLASSES
from compat.upstream.environment import contained
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path


def made(accelerator: str = "cuda", devices: int = 2, **options: Any) -> LightningPlan:
    return compat.plan({"output_dir": "out", **options}, accelerator=accelerator, devices=devices)


def settings(found: LightningPlan, prefix: str) -> dict[str, Setting]:
    return {s.field.removeprefix(prefix): s for s in found.settings if s.field.startswith(prefix)}


def test_every_strategy_is_a_class_of_lightnings() -> None:
    from lightning.pytorch import strategies

    assert [name for name in CLASSES.values() if not hasattr(strategies, name)] == []


VALUES = {
    "reshard_after_forward": {1: "shard_grad_op", 2: False},
    "auto_wrap_policy": "SIZE_BASED_WRAP",
    "backward_prefetch": "BACKWARD_PRE",
    "state_dict_type": "FULL_STATE_DICT",
    "xla": False,
}
"""Values of the entries that do not take just any."""


@pytest.mark.parametrize("version", [1, 2])
def test_every_entry_has_a_fate_under_either_version(version: int) -> None:
    values = {key: VALUES.get(key, 1) for key in FSDP_CONFIG}
    given = {key: value[version] if isinstance(value, dict) else value for key, value in values.items()}
    given["version"] = version
    if version == 1:
        del given["activation_checkpointing_offload"]
    found = settings(made(fsdp=True, fsdp_config=given), "fsdp_config.")
    assert found.keys() == given.keys()
    for key, setting in found.items():
        acts = FSDP_CONFIG[key].first if version == 1 else FSDP_CONFIG[key].second
        assert setting.kind is (Kind.STRATEGY if acts else Kind.RETIRED)
        assert setting.note
    assert found["version"].outcome == ("FSDPStrategy" if version == 1 else "ModelParallelStrategy")
    prefetch = {1: "FSDPStrategy(backward_prefetch='BACKWARD_PRE')", 2: "nothing"}
    assert found["backward_prefetch"].outcome == prefetch[version]


def test_a_size_alone_has_modules_wrapped_by_size(tmp_path: Path) -> None:
    options = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"min_num_params": 9}}
    ours = arguments(tmp_path, **options)
    told = getattr(ours, "fsdp_plugin_args", None) or {
        "auto_wrap_policy": "SIZE_BASED_WRAP",
        "min_num_params": 9,
    }
    assert (told["auto_wrap_policy"], told["min_num_params"]) == ("SIZE_BASED_WRAP", 9)
    assert "auto_wrap_policy" not in ours.fsdp_config
    with contained():
        theirs = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
    is_told = hasattr(theirs, "fsdp_plugin_args")
    for args, kind in ((ours, Kind.STRATEGY), (theirs, Kind.RETIRED if is_told else Kind.STRATEGY)):
        found = settings(compat.plan(args, accelerator="cuda", devices=2), "fsdp_config.")["min_num_params"]
        assert found.kind is kind
        assert ("SIZE_BASED_WRAP" in found.note) == (kind is Kind.RETIRED)


def test_entries_without_fsdp_have_no_effect() -> None:
    (setting,) = settings(made(fsdp_config={"min_num_params": 9}), "fsdp_config").values()
    assert setting.note == "no effect without `fsdp`"


def test_sharding_by_torch_xla() -> None:
    config = {
        "xla": True,
        "xla_fsdp_v2": True,
        "xla_fsdp_settings": {"compute_dtype": "bfloat16"},
        "min_num_params": 5,
        "cpu_offload": True,
    }
    plan = made("tpu", 8, fsdp=True, fsdp_config=config)
    found = settings(plan, "fsdp_config.")
    assert plan.strategy == "xla"
    assert found["xla"].outcome == "XLAStrategy"
    assert "XlaFullyShardedDataParallel({'compute_dtype': 'bfloat16'})" in found["xla_fsdp_settings"].outcome
    assert found["min_num_params"].outcome == "XLAStrategy: auto_wrap_policy"
    assert (found["cpu_offload"].kind, found["cpu_offload"].note) == (
        Kind.RETIRED,
        "no effect with XLAStrategy",
    )


def test_a_configuration_of_deepspeeds_is_shown_entry_by_entry() -> None:
    config = {
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": "auto"},
        "optimizer": {"type": "AdamW", "params": {"betas": "auto"}},
        "scheduler": {"params": {"total_num_steps": "auto"}},
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "train_batch_size": "auto",
        "strange": "auto",
    }
    found = settings(made(deepspeed=config, max_grad_norm=0.25, fp16=True), "deepspeed.")
    assert {path: (s.value, s.becomes) for path, s in found.items()} == {
        "zero_optimization.stage": (3, 3),
        "zero_optimization.offload_param.device": ("cpu", "cpu"),
        "zero_optimization.reduce_bucket_size": ("auto", "auto"),
        "optimizer.type": ("AdamW", "AdamW"),
        "optimizer.params.betas": ("auto", [0.9, 0.999]),
        "scheduler.params.total_num_steps": ("auto", "auto"),
        "gradient_clipping": ("auto", 0.25),
        "fp16.enabled": ("auto", True),
        "fp16.loss_scale": (0, 0),
        "train_batch_size": ("auto", "auto"),
        "strange": ("auto", "auto"),
    }
    assert found["gradient_clipping"].note == "filled in by `max_grad_norm`"
    assert found["gradient_clipping"].outcome == "DeepSpeed's gradient_clipping=0.25"
    assert found["zero_optimization.reduce_bucket_size"].note == "filled in by the model's hidden size"
    assert found["strange"].note == found["optimizer.type"].note == "DeepSpeed's own; handed on as it is"


@pytest.mark.parametrize(
    ("sizes", "strategy"),
    [({}, "ddp"), ({"tp_size": 2}, "model_parallel"), ({"dp_shard_size": 2}, "model_parallel")],
)
def test_a_mesh(sizes: dict[str, int], strategy: str) -> None:
    from accelerate import ParallelismConfig

    assert made(parallelism_config=ParallelismConfig(**sizes)).strategy == strategy


def test_shared_sequences() -> None:
    from accelerate import ParallelismConfig

    zero = {"zero_optimization": {"stage": 2}}
    plan = made(parallelism_config=ParallelismConfig(sp_size=2), deepspeed=zero)
    found = settings(plan, "parallelism_config")[""]
    assert plan.strategy == "deepspeed"
    assert found.outcome == "DeepSpeedStrategy: UlyssesSPAttentionHF(sequence_parallel_size=2)"
    assert found.note == "sequence parallel: 2 processes share each sequence"
    assert found.value == {"sp_size": 2}
    with pytest.raises(ArgumentError, match=r"the job has 8 processes\. Give dp_replicate_size=4"):
        made(devices=8, parallelism_config=ParallelismConfig(sp_size=2), deepspeed=zero)


def test_a_shared_context() -> None:
    from accelerate import ParallelismConfig

    mesh = ParallelismConfig(cp_size=2)
    plan = made(accelerator="cuda", devices=2, parallelism_config=mesh, fsdp="full_shard")
    found = settings(plan, "parallelism_config")[""]
    assert (plan.strategy, found.outcome) == ("model_parallel", "ModelParallelStrategy: context_parallel")
    assert found.note.startswith("context parallel: 2 processes share the context of attention; not tried")
    with pytest.raises(ArgumentError, match="torch has no kernels for it on a CPU"):
        made(accelerator="cpu", devices=2, parallelism_config=mesh, fsdp="full_shard")
