"""accelerate's plugin for FSDP and its mesh, made also where accelerate leaves them out: on a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint import default_planner, state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from accelerate import ParallelismConfig
    from accelerate.state import AcceleratorState

PLUGIN_FIELDS = {
    "version": "fsdp_version",
    "reshard_after_forward": "reshard_after_forward",
    "cpu_offload": "cpu_offload",
    "offload_params": "cpu_offload",
    "auto_wrap_policy": "auto_wrap_policy",
    "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
    "min_num_params": "min_num_params",
    "cpu_ram_efficient_loading": "cpu_ram_efficient_loading",
    "activation_checkpointing": "activation_checkpointing",
    "activation_checkpointing_offload": "activation_checkpointing_offload",
    "ignored_modules": "ignored_modules",
    "state_dict_type": "state_dict_type",
    "mixed_precision_policy": "mixed_precision_policy",
}
"""Entry of `fsdp_config` → field of accelerate's plugin, for those that version 2 of FSDP acts on."""

DEFAULTS = {
    "version": 2,
    "reshard_after_forward": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_ram_efficient_loading": False,
    "state_dict_type": "FULL_STATE_DICT",
}
"""What transformers 5 fills in, under both releases."""

EMBEDDINGS = ("get_input_embeddings", "get_output_embeddings")
"""Methods by which transformers' models name their first and last embeddings."""


def fsdp2_plugin(config: Mapping[str, Any]) -> FullyShardedDataParallelPlugin:
    """Accelerate's plugin for version 2.

    Mirrors `transformers.TrainingArguments._process_fsdp_args`.

    Args:
        config: `fsdp_config` without prefixes; what it does not name has the defaults of transformers 5.
    """
    given = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    if given.get("min_num_params") and "auto_wrap_policy" not in config:
        given["auto_wrap_policy"] = "SIZE_BASED_WRAP"
    fields = {field: _typed(given[key]) for key, field in PLUGIN_FIELDS.items() if key in given}
    return FullyShardedDataParallelPlugin(**fields)


def fsdp_plugin_asked_for() -> FullyShardedDataParallelPlugin:
    """The plugin as the launcher's variables ask for it."""
    return FullyShardedDataParallelPlugin()


def _typed(value: object) -> object:
    """Yes and no, which files and command lines give as words."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def wrap_by_class(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Say by classes which modules are sharded, where the plugin says it by their size.

    By size accelerate also picks lists of modules, which cannot be sharded, and what holds the embeddings,
    which it shards in its own way, tied or not.

    Args:
        plugin: of version 2.
        model: the model that is about to be sharded.
    """
    if plugin.auto_wrap_policy is not size_based_auto_wrap_policy:
        return
    embeddings = _embeddings(model)
    plugin.transformer_cls_names_to_wrap = sorted(
        {
            type(module).__name__
            for module in model.modules()
            if sum(p.numel() for p in module.parameters()) > plugin.min_num_params
            and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
            and not embeddings & set(map(id, module.modules()))
        }
        - {type(model).__name__}
    )
    plugin.auto_wrap_policy = transformer_auto_wrap_policy


@contextlib.contextmanager
def embeddings_with_the_rest(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> Iterator[None]:
    """Have embeddings sharded with what is around them, where they cannot be sharded apart.

    accelerate shards them apart, and torch refuses a parameter that two groups hold: T5's, which encoder,
    decoder and head share, or BERT's, which lies in a module that is sharded.

    Args:
        plugin: of version 2.
        model: the model that is sharded in the block.
    """
    ends, owners = _embeddings(model), _owners(model)
    wrapped = set(plugin.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or ())
    if tied := _tied_to_the_rest(model, wrapped, owners):
        wrapped -= tied
        plugin.transformer_cls_names_to_wrap = sorted(wrapped)
    holders = (module for module in model.modules() if type(module).__name__ in wrapped)
    are_shared = any(len(modules) > 1 and not modules <= ends for modules in owners.values())
    if not are_shared and not any(id(part) in ends for holder in holders for part in holder.modules()):
        yield
        return
    for name in EMBEDDINGS:
        setattr(model, name, _nothing)
    try:
        yield
    finally:
        for name in EMBEDDINGS:
            delattr(model, name)


def _embeddings(model: nn.Module) -> set[int]:
    """Identities of a model's first and last embeddings, where it names them."""
    getters = (getattr(model, name, None) for name in EMBEDDINGS)
    return {id(end) for get in getters if get is not None and (end := get()) is not None}


def _tied_to_the_rest(model: nn.Module, wrapped: set[str], owners: Mapping[int, set[int]]) -> set[str]:
    """Those of some classes whose modules hold a parameter that others hold too, as BERT's embeddings do.

    Sharded with the rest, they share it with them in one group.
    """
    return {
        type(holder).__name__
        for holder in model.modules()
        if type(holder).__name__ in wrapped
        and any(not owners[id(p)] <= set(map(id, holder.modules())) for p in holder.parameters())
    }


def _owners(model: nn.Module) -> dict[int, set[int]]:
    """Identity of a parameter → those of the modules that it is an attribute of."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    return owners


def _nothing() -> None:
    return None


def tensor_parallel_size(model: nn.Module) -> int:
    """Over how many processes a model has spread its tensors while it was loaded; 1 where it has not."""
    told = getattr(model, "tp_size", None)
    if told:
        return int(told)
    mesh = getattr(model, "_device_mesh", None)
    return 1 if mesh is None else int(mesh.size())


def full_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with whole tensors; every process has to ask for it.

    Args:
        state: name → tensor, or a process's part of one.
    """
    return {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in state.items()}


@contextlib.contextmanager
def unsharded(model: nn.Module, state: Mapping[str, Any]) -> Iterator[None]:
    """Have a sharded model be the plain one in this process, for code that saves its modules one by one.

    Its modules have their own classes and full parameters, and computing with them synchronizes nothing.

    Args:
        model: sharded by version 2 of FSDP.
        state: the full parameters; name → tensor, tied ones under each of their names.
    """
    holders = dict(model.named_modules(remove_duplicate=False))
    parts = dict(model.named_parameters(remove_duplicate=False))
    whole: dict[int, nn.Parameter] = {}
    for name, part in parts.items():
        full = state[name.replace("_checkpoint_wrapped_module.", "")]
        whole.setdefault(id(part), nn.Parameter(full, requires_grad=part.requires_grad))
    sharded = [module for module in model.modules() if FSDPModule in type(module).__mro__]
    kept = [(module, module.__class__, _forward_hooks(module)) for module in sharded]
    try:
        for module, kind, hooks in kept:
            module.__class__ = kind.__bases__[-1]
            vars(module).update({name: type(each)() for name, each in hooks.items()})
        _set(holders, {name: whole[id(part)] for name, part in parts.items()})
        yield
    finally:
        _set(holders, parts)
        for module, kind, hooks in kept:
            module.__class__ = kind
            vars(module).update(hooks)


@contextlib.contextmanager
def loading_optimizers_without_unused() -> Iterator[None]:
    """Have accelerate load the state of an optimizer that has none for parameters without a gradient.

    torch saves no state of them, and requires it when it loads: of the pooler of a BERT, for example.
    """
    functions: Any = state_dict
    planners: Any = default_planner
    load, planner = functions.set_optimizer_state_dict, planners.DefaultLoadPlanner

    def load_what_is_there(*args: Any, options: Any, **parts: Any) -> None:
        load(*args, options=dataclasses.replace(options, strict=False), **parts)

    functions.set_optimizer_state_dict = load_what_is_there
    planners.DefaultLoadPlanner = functools.partial(planner, allow_partial_load=True)
    try:
        yield
    finally:
        functions.set_optimizer_state_dict, planners.DefaultLoadPlanner = load, planner


def _forward_hooks(module: nn.Module) -> dict[str, Any]:
    """The hooks around a forward, those that gather and release its parameters among them."""
    return {name: vars(module)[name] for name in ("_forward_pre_hooks", "_forward_hooks")}


def _set(holders: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        holder, _, last = name.rpartition(".")
        setattr(holders[holder], last, parameter)


def tied_again(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state dict in which what the model ties is one tensor, and is saved once.

    Args:
        state: name → tensor; put together from parts, each name has one of its own.
        model: the model that it is of.
    """
    tied = dict(state)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # As state dicts name what is computed again.
        plain = name.replace("_checkpoint_wrapped_module.", "")
        kept = first.setdefault(id(parameter), plain)
        if {kept, plain} <= tied.keys():
            tied[plain] = tied[kept]
    return tied


def lay_mesh(state: AcceleratorState, config: ParallelismConfig) -> None:
    """Have accelerate's state know the mesh of the job.

    Args:
        state: the state of one trainer.
        config: the sizes of the mesh.

    Raises:
        ArgumentError: the sizes do not multiply to the number of processes.
    """
    if config.total_size != state.num_processes:
        msg = (
            f"`parallelism_config`: its sizes multiply to {config.total_size}, and the job has "
            f"{state.num_processes} processes. Start as many, or change `dp_shard_size`, "
            "`dp_replicate_size` or `tp_size`."
        )
        raise ArgumentError(msg)
    state.parallelism_config = config
    state.device_mesh = config.get_device_mesh(state.device.type)


def shard(state: AcceleratorState, plugin: FullyShardedDataParallelPlugin) -> None:
    """Have accelerate's state say that models are sharded, and how.

    Args:
        state: the state of one trainer.
        plugin: of either version.
    """
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    if state.device.type == "cpu" and isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        plugin.cpu_offload = OffloadPolicy()  # they are there already
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
