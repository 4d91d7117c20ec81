from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from accelerate.utils import (
    DeepSpeedPlugin,
    FullyShardedDataParallelPlugin,
    ParallelismConfig,
    TorchDynamoPlugin,
)

from compat.arguments.names import native_defaults
from compat.errors import ArgumentError
from compat.translate import LightningPlan, plan
from compat.translate.accelerate_env import as_launched
from compat.translate.strategy import fsdp_config
from compat.upstream.environment import CONFIGURATION_PREFIXES, Facts, Here, concealed, overlaid
from tests.small import arguments

if TYPE_CHECKING:
    from pathlib import Path

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP",
    "FSDP_RESHARD_AFTER_FORWARD": "false",
    "FSDP_OFFLOAD_PARAMS": "true",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block,Head",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "FSDP_IGNORED_MODULES": "head",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_BACKWARD_PREFETCH": "BACKWARD_PRE",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_SYNC_MODULE_STATES": "false",
}
"""What `accelerate launch` writes for FSDP."""

DEEPSPEED = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_GRADIENT_CLIPPING": "0.5",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
MESH = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
    "PARALLELISM_CONFIG_TP_SIZE": "4",
    "PARALLELISM_CONFIG_CP_SIZE": "1",
}


def job(device_type: str = "cpu", **variables: str) -> Facts:
    """A job of two processes that `accelerate launch` has started with these variables."""
    return Facts(device_type=device_type, devices=2, world_size=2, launched=variables)


def made(folder: Path, variables: dict[str, str], kind: str = "cpu", **options: Any) -> LightningPlan:
    return plan(arguments(folder, **options), job(kind, **variables))


def notes(found: LightningPlan) -> dict[str, str]:
    return {s.field: s.note.rpartition("; ")[2] for s in found.settings if "accelerate launch" in s.note}


def test_fsdp_that_was_launched(tmp_path: Path) -> None:
    found = made(tmp_path, FSDP)
    assert found.strategy == "model_parallel"
    assert {name: found.strategy_options[name] for name in found.strategy_options if name != "timeout"} == {
        "version": 2,
        "reshard_after_forward": False,
        "cpu_offload": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["Block", "Head"],
        "cpu_ram_efficient_loading": False,
        "activation_checkpointing": True,
        "activation_checkpointing_offload": False,
        "ignored_modules": "head",
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    told = notes(found)
    assert told["fsdp"] == "`accelerate launch` asks for it: ACCELERATE_USE_FSDP=true"
    assert told["fsdp_config.reshard_after_forward"].endswith("asks for it: FSDP_RESHARD_AFTER_FORWARD=false")
    changed = {setting.field for setting in found.changed()}
    assert {"fsdp", "fsdp_config.reshard_after_forward", "fsdp_config.cpu_offload"} <= changed
    assert "fsdp_config.cpu_ram_efficient_loading" not in changed


def test_version_1_where_the_launcher_names_none(tmp_path: Path) -> None:
    first = {name: value for name, value in FSDP.items() if name != "FSDP_VERSION"}
    with pytest.raises(ArgumentError, match="version 1 of FSDP needs a GPU"):
        made(tmp_path, first)
    found = made(tmp_path, first, "cuda")
    assert found.strategy == "fsdp"
    assert found.strategy_options["reshard_after_forward"] == "shard_grad_op"
    assert found.strategy_options["backward_prefetch"] == "BACKWARD_PRE"
    assert "means 1" in notes(found)["fsdp_config.version"]
    numbered = made(tmp_path, {"ACCELERATE_USE_FSDP": "1", "FSDP_SHARDING_STRATEGY": "4"}, "cuda")
    assert numbered.strategy_options["reshard_after_forward"] == "hybrid_shard"


OWN = (
    {},
    {"cpu_offload": False, "min_num_params": 0},
    {"reshard_after_forward": True, "activation_checkpointing": False},
    {"transformer_layer_cls_to_wrap": ["Mine"], "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    {"version": 2, "state_dict_type": "FULL_STATE_DICT"},
)


@pytest.mark.parametrize("own", [None, *OWN], ids=str)
@pytest.mark.parametrize("clean", [True, False], ids=["ours", "theirs"])
def test_fsdp_is_what_accelerate_makes_of_arguments_and_launcher(
    tmp_path: Path, own: dict[str, Any] | None, clean: bool
) -> None:
    # Whether arguments speak to accelerate by parameters (5) or by variables (4), what holds is the same.
    options = {} if own is None else {"fsdp": "full_shard auto_wrap", "fsdp_config": dict(own)}
    with concealed(CONFIGURATION_PREFIXES), overlaid(FSDP):
        ours = arguments(tmp_path, **options)
        launched = Facts.of(ours).launched
        args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options)
        told = getattr(args, "fsdp_plugin_args", None) or {}
        plugin = FullyShardedDataParallelPlugin(**told)
        facts = Facts(world_size=2, launched=launched if clean else Facts.of(args).launched)
        # transformers 4 sets these two from `fsdp_config` when it has the plugin.
        if own is not None:
            plugin.activation_checkpointing = args.fsdp_config.get(
                "activation_checkpointing", plugin.activation_checkpointing
            )
    view = as_launched(ours if clean else args, facts, native_defaults(type(args)))
    config = fsdp_config(view)
    assert launched == FSDP
    assert bool(view.fsdp)
    assert plugin.fsdp_version == config.get("version", 2)
    assert bool(plugin.cpu_offload) == bool(config.get("cpu_offload"))
    assert plugin.activation_checkpointing == config.get("activation_checkpointing", False)
    assert plugin.transformer_cls_names_to_wrap == config["transformer_layer_cls_to_wrap"]
    assert plugin.cpu_ram_efficient_loading == config.get("cpu_ram_efficient_loading", False)
    if "fsdp_min_num_params" not in view.defaults or own is None:
        # transformers 4 does not hand this one on; what the arguments say of it is obeyed all the same.
        assert plugin.reshard_after_forward == config.get("reshard_after_forward", True)


def test_arguments_win_and_say_so(tmp_path: Path) -> None:
    found = made(tmp_path, FSDP, fsdp="full_shard")
    assert found.strategy_options["reshard_after_forward"] is True
    assert notes(found)["fsdp_config.reshard_after_forward"] == (
        "wins over `accelerate launch`: FSDP_RESHARD_AFTER_FORWARD=false"
    )


def test_what_arguments_have_written_is_not_the_launchers(tmp_path: Path) -> None:
    options = {"fsdp": "full_shard auto_wrap", "bf16": True, "torch_compile": True}
    with concealed(CONFIGURATION_PREFIXES):
        args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options)
        assert notes(plan(args, Facts(world_size=2, launched=Facts.of(args).launched))) == {}
        assert Facts.of(arguments(tmp_path, **options)).launched.keys() <= os.environ.keys()


def test_fsdp_in_one_process(tmp_path: Path) -> None:
    alone = Facts(launched=FSDP, here=Here())
    found = plan(arguments(tmp_path), alone)
    assert found.strategy == "single_device"
    assert "no effect in one process" in notes(found)["fsdp"]
    assert "fsdp" in {setting.field for setting in found.changed()}
    with pytest.raises(ArgumentError, match="a model is sharded over the processes of a job"):
        plan(arguments(tmp_path, fsdp="full_shard"), alone)
    assert plan(arguments(tmp_path, fsdp="full_shard"), Facts(here=Here(is_distributed=True))).strategy


def test_deepspeed_that_was_launched(tmp_path: Path) -> None:
    found = made(tmp_path, DEEPSPEED, gradient_accumulation_steps=4, max_grad_norm=0.5)
    assert found.strategy == "deepspeed"
    with overlaid(DEEPSPEED):
        theirs = DeepSpeedPlugin().deepspeed_config
    config = found.strategy_options["config"]
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    for name in ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size"):
        assert config[name] == theirs[name]
    assert theirs["zero_optimization"]["stage"] == 3
    assert "ACCELERATE_DEEPSPEED_ZERO_STAGE=3" in notes(found)["deepspeed"]


def test_a_file_of_deepspeeds(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    with pytest.raises(ArgumentError, match="no such file"):
        made(tmp_path, variables)
    file.write_text('{"gradient_accumulation_steps": 3, "zero_optimization": {"stage": 1}}')
    found = made(tmp_path, variables, gradient_accumulation_steps=3)
    assert found.strategy_options == {"config": str(file)}
    assert {s.field: s.value for s in found.settings}["deepspeed.zero_optimization.stage"] == 1
    with pytest.raises(ArgumentError, match="`deepspeed`'s gradient_accumulation_steps=3"):
        made(tmp_path, variables)
    with pytest.raises(ArgumentError, match="`mixed_precision, zero_stage`: in accelerate's configuration"):
        made(tmp_path, {**variables, "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,mixed_precision,zero3_init"})


def test_compilation_that_was_launched(tmp_path: Path) -> None:
    variables = {
        "ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "True",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    }
    values = {s.field: s.value for s in made(tmp_path, variables).settings}
    with overlaid(variables):
        theirs = TorchDynamoPlugin()
    assert values["torch_compile"] is True
    assert values["torch_compile_backend"].upper() == theirs.backend.value
    assert values["torch_compile_mode"] == theirs.mode
    told = notes(made(tmp_path, variables))
    assert told["torch_compile_backend"].endswith("BACKEND=AOT_EAGER, ACCELERATE_DYNAMO_USE_FULLGRAPH=True")
    own = made(tmp_path, variables, torch_compile=True)
    assert {s.field: s.value for s in own.settings}["torch_compile_backend"] == "inductor"
    assert notes(own)["torch_compile_backend"].startswith("wins over")
    assert (
        notes(made(tmp_path, {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default"})) == {}
    )


def test_a_mesh_that_was_launched(tmp_path: Path) -> None:
    found = made(tmp_path, {**FSDP, **MESH})
    value = {s.field: s.value for s in found.settings}["parallelism_config"]
    with overlaid(MESH):
        theirs = ParallelismConfig()
    assert value == {name: getattr(theirs, name) for name in value}
    assert value["tp_size"] == 4
    assert made(tmp_path, MESH).strategy == "model_parallel"


def test_sequences_that_a_launcher_shares_out(tmp_path: Path) -> None:
    variables = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_SP_SIZE": "2"}
    found = made(tmp_path, {"ACCELERATE_USE_DEEPSPEED": "true", **variables})
    (setting,) = [s for s in found.settings if s.field == "parallelism_config"]
    assert (found.strategy, setting.value["sp_size"]) == ("deepspeed", 2)
    assert setting.outcome.endswith("UlyssesSPAttentionHF(sequence_parallel_size=2)")
    assert setting.note.endswith("PARALLELISM_CONFIG_SP_SIZE=2")


@pytest.mark.parametrize(
    ("options", "launched", "precision", "field", "note"),
    [
        (
            {},
            "bf16",
            "bf16-mixed",
            "bf16",
            "`accelerate launch` asks for it: ACCELERATE_MIXED_PRECISION=bf16",
        ),
        (
            {"bf16": True},
            "fp16",
            "bf16-mixed",
            "bf16",
            "wins over `accelerate launch`: ACCELERATE_MIXED_PRECISION=fp16",
        ),
        ({"bf16": True}, "bf16", "bf16-mixed", None, None),
        ({"bf16": True}, "no", "bf16-mixed", None, None),
    ],
)
def test_precisions_that_were_launched(  # noqa: PLR0917
    tmp_path: Path, options: dict[str, Any], launched: str, precision: str, field: str, note: str
) -> None:
    found = made(tmp_path, {"ACCELERATE_MIXED_PRECISION": launched}, **options)
    assert found.precision == precision
    assert notes(found) == ({field: note} if field else {})


def test_a_cpu_that_was_launched(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.use_cpu = False
    variables = {"ACCELERATE_USE_CPU": "True"}
    assert "ACCELERATE_USE_CPU=True" in notes(plan(args, Facts(launched=variables)))["use_cpu"]
    assert notes(plan(args, Facts(launched=variables, device_type="cuda"))) == {}


@pytest.mark.parametrize(
    ("variables", "options", "texts"),
    [
        (
            {"ACCELERATE_USE_MEGATRON_LM": "true", "ACCELERATE_MIXED_PRECISION": "fp8"},
            {},
            ["Megatron-LM", "`ACCELERATE_MIXED_PRECISION=fp8`"],
        ),
        (
            {**DEEPSPEED, "ACCELERATE_MIXED_PRECISION": "bf16"},
            {},
            ["Give `gradient_accumulation_steps=4`", "Give `max_grad_norm=0.5`", "Give `bf16=True`"],
        ),
        (DEEPSPEED, {"fsdp": "full_shard"}, ["both shard the model", "ACCUMULATION_STEPS=4", "CLIPPING=0.5"]),
        (
            {
                **DEEPSPEED,
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
                "ACCELERATE_GRADIENT_CLIPPING": "1.0",
            },
            {"auto_find_batch_size": True, "save_only_model": True},
            ["`auto_find_batch_size=True` with DeepSpeed's ZeRO-3"],
        ),
        (
            {**MESH, "PARALLELISM_CONFIG_CP_SIZE": "2", "PARALLELISM_CONFIG_SP_SIZE": "4"},
            {},
            [
                "sp_size=4: sequence parallel is DeepSpeed's",
                "sp_size=4 and tp_size=4: they do not go together",
                "2 processes are no multiple of it",
                "`parallelism_config` with cp_size=2: context parallel runs on GPUs only",
                "`parallelism_config` with cp_size=2: it needs FSDP of version 2",
            ],
        ),
        (
            FSDP,
            {"save_only_model": True, "activation_checkpointing": True},
            [
                "checkpointing=True` and `fsdp_config={'activation",
                "{'state_dict_type': 'SHARDED_STATE_DICT'}",
            ],
        ),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, variables: dict[str, str], options: dict[str, Any], texts: list[str]
) -> None:
    with pytest.raises(ArgumentError) as caught:
        made(tmp_path, variables, **options)
    told = str(caught.value).splitlines()
    assert [text for text in texts if text not in str(caught.value)] == []
    assert len(told) == len(texts)
