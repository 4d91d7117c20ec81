"""Builds Lightning Fabric for loops that users write; no other module builds it.

Such loops use it through `compat.fabric.accelerator.FabricAccelerator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators.accelerator import Accelerator
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.deepspeed import DeepSpeedStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from typing_extensions import override

from compat.arguments.machine import XLA
from compat.engine.any_device import accelerator_of, is_lightnings, mixed_flags
from compat.engine.build import quiet
from compat.engine.environment import HFEnvironment
from compat.engine.precision import compute_in
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.fabric.plugins.precision import Precision
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from compat.upstream.environment import Facts
    from compat.upstream.values import Output

FLAGS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "plugins",
    "callbacks",
    "loggers",
)
"""The flags of Fabric that a `lightning={...}` dictionary may hold."""

PRECISIONS = {"no": ("32-true", "32"), "bf16": ("bf16-mixed",), "fp16": ("16-mixed", "16")}
"""accelerate's name of a precision → Fabric's names for it; the first one is passed on."""

GPUS = ("cuda", "mps")
"""Kinds of devices that Lightning calls "gpu"."""

FORWARD_METHODS = ("generate", "compute_reward_score")
"""Methods other than `forward` for which a sharded model gathers its weights."""


def check_flags(flags: object) -> None:
    """Refuse unknown Fabric flags.

    Raises:
        ArgumentError: names the flag, and the valid ones.
    """
    if not isinstance(flags, Mapping):
        msg = f"`lightning={flags!r}`: not a dictionary of Fabric's flags. Give {{'strategy': 'ddp'}}, say."
        raise ArgumentError(msg)
    for name in flags:
        if name not in FLAGS:
            msg = f"`lightning={{{name!r}: ...}}`: Fabric has no such flag. Choose among {', '.join(FLAGS)}."
            raise ArgumentError(msg)
    loggers = flags.get("loggers") or []
    for logger in loggers if isinstance(loggers, (list, tuple)) else [loggers]:
        if not isinstance(logger, Logger):
            msg = f"`lightning={{'loggers': {logger!r}}}`: not a Lightning logger. Give an instance of one."
            raise ArgumentError(msg)


def check_device(asked: object, facts: Facts) -> None:
    """Refuse a kind of device other than that of this process.

    Args:
        asked: Fabric's flag `accelerator`.
        facts: the machine and the process.

    Raises:
        ArgumentError: names the requested kind and the kind of this process.
    """
    kinds = {"auto", None, facts.device_type} | ({"gpu"} if facts.device_type in GPUS else set())
    if not isinstance(asked, Accelerator) and asked not in kinds:
        msg = (
            f"`lightning={{'accelerator': {asked!r}}}`: this process runs on {facts.device_type!r}. Give "
            f"{facts.device_type!r}, or leave it out."
        )
        raise ArgumentError(msg)


def build_fabric(
    facts: Facts, flags: Mapping[str, Any], mixed_precision: str = "no", **options: dict[str, Any]
) -> Fabric:
    """Build and launch Fabric in a process that a launcher has already started.

    Args:
        facts: the machine and the process.
        flags: Fabric's, checked by `check_flags`; missing ones are taken from `facts`.
        mixed_precision: accelerate's name of the precision, used unless a flag sets another.
        options: a strategy's name → its options.

    Raises:
        ArgumentError: a flag that Fabric does not take.
    """
    given = dict(flags)
    check_device(given.pop("accelerator", None), facts)
    strategy = given.pop("strategy", "auto")
    plugins = given.pop("plugins", None) or []
    plugins = [*plugins] if isinstance(plugins, (list, tuple)) else [plugins]
    if not isinstance(strategy, Strategy):
        strategy = _strategy(str(strategy), facts, options)
    is_alone = facts.world_size == 1 and strategy == "auto"
    if not is_alone:
        plugins.append(HFEnvironment(facts))
    given.setdefault("precision", PRECISIONS[mixed_precision][0])
    index = facts.device_index
    given["devices"] = [index] if is_alone and index is not None else facts.devices
    given["num_nodes"] = facts.num_nodes
    try:
        with quiet():
            fabric = Fabric(**fabric_flags(facts, {"strategy": strategy, "plugins": plugins, **given}))
            fabric.launch()
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        msg = f"`lightning={dict(flags)!r}`: Fabric does not take it ({error}). Change or remove it."
        raise ArgumentError(msg) from error
    return fabric


def fabric_flags(facts: Facts, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Complete Fabric's flags with the device of this process, also one that Lightning does not know.

    Args:
        facts: the machine and the process.
        flags: of Fabric, without `accelerator`.
    """
    kind, found = facts.device_type, dict(flags)
    if is_lightnings(kind) or kind == XLA:
        return {"accelerator": kind, **found}
    accelerator = accelerator_of(kind)
    found.update(mixed_flags(kind, found, MixedPrecision))
    if found["strategy"] == "auto":
        device = torch.device(kind, facts.device_index or 0)
        return {**found, "strategy": SingleDeviceStrategy(device, accelerator)}
    return {**found, "accelerator": accelerator}


def _strategy(name: str, facts: Facts, options: Mapping[str, dict[str, Any]]) -> str | Strategy:
    """Return the strategy of a name: ours if it must read accelerate's settings, else Fabric's own."""
    if name.startswith("deepspeed"):
        if name not in STRATEGY_REGISTRY:
            known = ", ".join(found for found in STRATEGY_REGISTRY if found.startswith("deepspeed"))
            msg = f"`lightning={{'strategy': {name!r}}}`: no such strategy. Choose among {known}."
            raise ArgumentError(msg)
        # Not with `get`, which would build one.
        return _deepspeed(facts, {**options.get("deepspeed", {}), **STRATEGY_REGISTRY[name]["init_params"]})
    build = {"auto": _auto, "ddp": _ddp, "fsdp": _fsdp}.get(name)
    return name if build is None else build(facts, options.get("ddp", {}))


def _auto(facts: Facts, options: dict[str, Any]) -> str | Strategy:
    return "auto" if facts.world_size == 1 else _ddp(facts, options)


def _ddp(facts: Facts, options: dict[str, Any]) -> Strategy:
    return AnyDDPStrategy(**options)


class AnyDDPStrategy(DDPStrategy):
    """DDP on devices of any type; Fabric's takes each device but the CPU for one of CUDA."""

    @override
    def _determine_ddp_device_ids(self) -> list[int] | None:
        # With an index, Fabric wraps the model within a stream of CUDA.
        return super()._determine_ddp_device_ids() if self.root_device.type == "cuda" else None


def _fsdp(facts: Facts, options: dict[str, Any]) -> Strategy:
    return ModelParallelStrategy(shard, data_parallel_size=facts.world_size, tensor_parallel_size=1)


def _deepspeed(facts: Facts, options: dict[str, Any]) -> Strategy:
    accumulation = options.pop("gradient_accumulation_steps", 1)
    strategy = DeepSpeedAnywhere(**options)
    # The engine counts accumulation itself.
    if isinstance(strategy.config, dict):
        strategy.config["gradient_accumulation_steps"] = accumulation
        # Lightning's default, 1.0, was not requested.
        strategy.config.setdefault("gradient_clipping", 0.0)
    return strategy


class DeepSpeedAnywhere(DeepSpeedStrategy):
    """DeepSpeed's engine on any device: it also runs on a CPU, which Lightning's checks refuse."""

    @override
    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    @override
    def _setup_distributed(self) -> None:
        self._set_world_ranks()
        self._init_deepspeed_distributed()
        if not self._config_initialized:
            self._format_config()
            self._config_initialized = True

    @override
    def _initialize_engine(
        self, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
    ) -> Any:
        import deepspeed

        # Lightning passes the index of the device, which a CPU does not have; the engine detects its rank
        # itself.
        engine, stepping, _, counting = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=scheduler,
            dist_init_required=False,
        )
        return engine, stepping, counting


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a model in place with FSDP 2: each block separately, the rest as one unit.

    Args:
        model: the model; its blocks are the modules listed in `_no_split_modules`, at any depth.
        mesh: a device mesh with a dimension `data_parallel`.

    Returns:
        The model.
    """
    names = {
        name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())
    }
    blocks = [module for module in model.modules() if type(module).__name__ in names and module is not model]
    # Innermost first: a nested block must be sharded before the block that contains it.
    for block in reversed(blocks):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    for name in FORWARD_METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model


def is_sharding(strategy: Strategy) -> bool:
    """Whether a strategy shards a model's parameters."""
    return isinstance(strategy, ModelParallelStrategy)


def sets_up_jointly(strategy: Strategy) -> bool:
    """Whether a strategy sets up a model together with its optimizer."""
    return isinstance(strategy, DeepSpeedStrategy)


@dataclass(frozen=True)
class PluginPrecision:
    """The precision of one of Fabric's plugins.

    Attributes:
        plugin: the plugin.
    """

    plugin: Precision

    def run(self, forward: Callable[..., Output], args: Any, kwargs: Any) -> Output:
        """Call a forward as Fabric would."""
        # Autocast casts where needed: accelerate passes inputs on unchanged.
        if not isinstance(self.plugin, MixedPrecision):
            args, kwargs = self.plugin.convert_input((args, kwargs))
        with self.plugin.forward_context():
            outputs = forward(*args, **kwargs)
        return self.plugin.convert_output(outputs)


def compute_as(model: nn.Module, plugin: Precision) -> None:
    """Set a Fabric precision on `model`, replacing the one that an earlier Fabric has set.

    Args:
        model: the model.
        plugin: Fabric's plugin.
    """
    compute_in(model, None if plugin.precision == "32-true" else PluginPrecision(plugin))
