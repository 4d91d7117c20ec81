"""accelerate's plugin and mesh, and which modules are sharded; in one process, nothing is sharded here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import ParallelismConfig
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from transformers import BertConfig, BertForSequenceClassification

from compat.errors import ArgumentError
from compat.upstream import sharding
from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.distributed.sharded import bert, gpt2, llama, t5

if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin


@pytest.fixture(autouse=True)
def what_the_plugin_tells_from_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that accelerate sets and leaves."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "False")


def plugin(**config: object) -> FullyShardedDataParallelPlugin:
    return sharding.fsdp2_plugin(config)


def classifying() -> nn.Module:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=64, max_position_embeddings=32))


def test_what_is_not_said_is_as_in_transformers_5() -> None:
    made = plugin()
    assert made.fsdp_version == 2
    assert made.reshard_after_forward is True
    assert made.auto_wrap_policy is transformer_auto_wrap_policy
    assert made.cpu_ram_efficient_loading is False
    assert made.activation_checkpointing is False
    assert made.state_dict_type.name == "FULL_STATE_DICT"
    assert isinstance(made.cpu_offload, OffloadPolicy)
    assert not isinstance(made.cpu_offload, CPUOffloadPolicy)


def test_words_from_files_and_command_lines_are_typed() -> None:
    made = plugin(reshard_after_forward="false", activation_checkpointing="True", cpu_offload="true")
    assert made.reshard_after_forward is False
    assert made.activation_checkpointing is True
    assert isinstance(made.cpu_offload, CPUOffloadPolicy)


def test_an_entry_of_none_is_as_if_it_were_not_there() -> None:
    assert plugin(reshard_after_forward=None, state_dict_type=None).reshard_after_forward is True


def test_a_size_alone_wraps_by_size() -> None:
    made = plugin(min_num_params=7)
    assert made.auto_wrap_policy is size_based_auto_wrap_policy
    assert made.min_num_params == 7


def test_a_policy_that_is_named_stays() -> None:
    made = plugin(min_num_params=7, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    assert made.auto_wrap_policy is transformer_auto_wrap_policy


def test_by_size_the_classes_of_large_modules_are_named() -> None:
    made = plugin(min_num_params=2000)
    sharding.wrap_by_class(made, gpt2())
    assert made.auto_wrap_policy is transformer_auto_wrap_policy
    # Neither the list of the blocks, nor the model, nor what holds the embeddings.
    assert made.transformer_cls_names_to_wrap == ["Conv1D", "GPT2Attention", "GPT2Block", "GPT2MLP"]


def test_by_class_nothing_changes() -> None:
    made = plugin(transformer_layer_cls_to_wrap=["GPT2Block"])
    sharding.wrap_by_class(made, gpt2())
    assert made.transformer_cls_names_to_wrap == ["GPT2Block"]


@pytest.mark.parametrize(
    ("make", "wrapped", "apart"),
    [
        (gpt2, ["GPT2Block"], True),  # tied to the head, and both are ends
        (llama, ["LlamaDecoderLayer"], True),
        # Encoder, decoder and head share a parameter; in transformers 4 also the module.
        (t5, ["T5Block"], not HAS_TRAINING_SEAMS),
        (classifying, ["BertLayer"], True),
        (classifying, ["BertLayer", "BertEmbeddings"], False),
    ],
)
def test_embeddings_are_sharded_apart_where_they_can_be(make, wrapped: list[str], apart: bool) -> None:
    model = make()
    embeddings = model.get_input_embeddings()
    made = plugin(transformer_layer_cls_to_wrap=wrapped)
    with sharding.embeddings_with_the_rest(made, model):
        assert model.get_input_embeddings() is (embeddings if apart else None)
    assert model.get_input_embeddings() is embeddings
    assert not {"get_input_embeddings", "get_output_embeddings"} & vars(model).keys()


def test_a_module_tied_to_the_rest_is_sharded_with_it() -> None:
    made = plugin(transformer_layer_cls_to_wrap=["BertLayer", "BertEmbeddings"])
    with sharding.embeddings_with_the_rest(made, bert()):
        assert made.transformer_cls_names_to_wrap == ["BertLayer"]


def test_a_module_of_its_own_is_sharded_apart() -> None:
    made = plugin(transformer_layer_cls_to_wrap=["BertLayer", "BertEmbeddings"])
    with sharding.embeddings_with_the_rest(made, classifying()):
        assert made.transformer_cls_names_to_wrap == ["BertLayer", "BertEmbeddings"]


def test_after_an_error_the_embeddings_are_back() -> None:
    model = t5()
    with pytest.raises(ZeroDivisionError), sharding.embeddings_with_the_rest(plugin(), model):
        _ = 1 / 0
    assert "get_input_embeddings" not in vars(model)


def test_a_mesh_of_another_size_than_the_job_is_refused() -> None:
    state = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    with pytest.raises(ArgumentError) as found:
        sharding.lay_mesh(state, ParallelismConfig(tp_size=2, dp_shard_size=2))
    assert str(found.value) == (
        "`parallelism_config`: its sizes multiply to 4, and the job has 2 processes. Start as many, or "
        "change `dp_shard_size`, `dp_replicate_size` or `tp_size`."
    )
    assert not hasattr(state, "device_mesh")


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Linear(1, 1), 1),
        (SimpleNamespace(tp_size=4), 4),
        (SimpleNamespace(tp_size=None, _device_mesh=SimpleNamespace(size=lambda: 2)), 2),
        (SimpleNamespace(tp_size=None, _device_mesh=None), 1),
    ],
)
def test_over_how_many_processes_a_model_is_spread(model: object, size: int) -> None:
    assert sharding.tensor_parallel_size(model) == size


def test_whole_tensors_stay_as_they_are() -> None:
    state = {"weight": torch.ones(2), "step": 3}
    assert sharding.full_state_dict(state) == state


def test_what_is_tied_is_one_tensor_again() -> None:
    model = gpt2()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert state["lm_head.weight"] is not state["transformer.wte.weight"]
    tied = sharding.tied_again(state, model)
    assert tied["lm_head.weight"] is tied["transformer.wte.weight"]
    assert tied["transformer.wpe.weight"] is state["transformer.wpe.weight"]
    # Processes beside the first one may have nothing.
    assert sharding.tied_again({}, model) == {}


@pytest.mark.parametrize(("device", "kind"), [("cpu", OffloadPolicy), ("cuda", CPUOffloadPolicy)])
def test_nothing_is_moved_off_a_cpu(device: str, kind: type) -> None:
    state = SimpleNamespace(mixed_precision="no", device=torch.device(device))
    sharding.shard(state, made := plugin(cpu_offload=True))
    assert type(made.cpu_offload) is kind
    assert state.fsdp_plugin is made
    assert state.distributed_type.value == "FSDP"


def test_precision_reaches_the_plugin() -> None:
    state = SimpleNamespace(mixed_precision="bf16", device=torch.device("cpu"))
    sharding.shard(state, made := plugin())
    assert made.mixed_precision_policy.param_dtype is torch.bfloat16
