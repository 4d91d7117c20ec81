"""accelerate's interface over Lightning Fabric, for trainers whose loop the user writes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, cast

import accelerate
import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, is_compiled_module
from lightning.fabric.plugins.precision import Precision
from lightning.fabric.strategies import STRATEGY_REGISTRY
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import RandomSampler
from typing_extensions import override

from compat.engine.optimizer import SyncedOptimizer
from compat.errors import ArgumentError
from compat.fabric.build import (
    PRECISIONS,
    build_fabric,
    check_flags,
    compute_as,
    is_sharding,
    sets_up_jointly,
)
from compat.trainer.accelerator import LightningAccelerator
from compat.upstream import started
from compat.upstream.environment import Facts, concealed, configuration, detached, own_accelerator_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from accelerate.state import GradientState, PartialState
    from accelerate.utils import DeepSpeedPlugin
    from lightning.fabric import Fabric
    from torch.optim import Optimizer

    from compat.upstream.values import Loader

REFUSED = ("megatron_lm_plugin", "parallelism_config", "torch_tp_plugin", "dynamo_backend", "dynamo_plugin")
"""Arguments of `accelerate.Accelerator` that have no equivalent in Fabric."""

OF_DATA = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")
"""Data options that accelerate 0.27 took as arguments; later releases take them in a configuration."""

ASK_FOR_STRATEGIES = {"fsdp_plugin": "fsdp", "deepspeed_plugin": "deepspeed"}
"""Arguments of `accelerate.Accelerator` that request a strategy → its name."""

LAUNCHED = {"ACCELERATE_USE_FSDP": "fsdp", "ACCELERATE_USE_DEEPSPEED": "deepspeed"}
"""Variables with which `accelerate launch` requests a strategy → its name."""

HIDDEN = (*LAUNCHED, "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG")
"""Variables that would make accelerate wrap models itself."""


class FabricOptimizer(SyncedOptimizer):
    """Wraps a Fabric optimizer, and skips its step in the middle of an accumulation window.

    Mirrors `accelerate.optimizer.AcceleratedOptimizer` of 0.27, which leaves gradients of zeros behind.

    Args:
        optimizer: Fabric's wrapper of the optimizer.
        gradient_state: accelerate's.
        scaler: of gradients, with fp16.
        engine: DeepSpeed's engine, which counts windows itself and is stepped after each micro-batch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradient_state: GradientState,
        scaler: Any | None = None,
        engine: Any | None = None,
    ) -> None:
        super().__init__(optimizer, gradient_state)
        self._scaler = scaler
        self._engine = engine

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self._engine is not None:
            return self._engine.step()
        if not self._gradient_state.sync_gradients:
            return None
        scaler = self._scaler
        before = 0.0 if scaler is None else scaler.get_scale()
        result = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        # The scale shrinks exactly when gradients overflowed and the step was skipped.
        self.step_was_skipped = scaler is not None and scaler.get_scale() < before
        return result

    @override
    def zero_grad(self, set_to_none: bool | None = None) -> None:
        # Users inspect gradients after a step: they are not set to None unless the user requests it.
        super().zero_grad(set_to_none=bool(set_to_none))


class AgreedSampler(RandomSampler):
    """A `RandomSampler` that takes each order from torch's generator when it is iterated.

    The orders are those of accelerate 0.27, which did not change the sampler: they are the same on all
    processes as long as their generators agree. If the generators diverge, all processes use the first
    process's order.
    """

    @classmethod
    def of(cls, sampler: RandomSampler) -> AgreedSampler:
        """Convert a sampler in place."""
        # Without a generator, accelerate would draw a seed when it prepares the dataloader, which would
        # change every later random number.
        sampler.__class__, sampler.generator = cls, torch.Generator()
        return cast("AgreedSampler", sampler)

    def __iter__(self) -> Iterator[int]:
        seed = [int(torch.empty((), dtype=torch.int64).random_().item())]
        self.generator.manual_seed(broadcast_object_list(seed)[0])
        yield from super().__iter__()


class FabricAccelerator(LightningAccelerator):
    """An `accelerate.Accelerator` whose devices, processes, wrappers and steps are Lightning Fabric's.

    accelerate shards the data, gathers results, counts accumulation and writes to trackers.

    Args:
        lightning: flags of Fabric: accelerator, strategy, devices, num_nodes, precision, plugins, callbacks,
            loggers. "fsdp" is FSDP 2.
        further: the user's arguments of `accelerate.Accelerator`, with the names of 0.27.
        options: the arguments of `accelerate.Accelerator` that the trainer sets.

    Attributes:
        fabric: the Fabric.

    Raises:
        ArgumentError: a flag that Fabric does not take, or an option that it has no equivalent for.
    """

    fabric: Fabric
    state: PartialState

    def __init__(
        self,
        *,
        lightning: Mapping[str, Any] | None = None,
        further: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_flags(lightning or {})
        flags = {name: value for name, value in (lightning or {}).items() if value is not None}
        options.update(_accelerate_options(further or {}, options))
        plugins = {name: options.pop(name, None) for name in ASK_FOR_STRATEGIES}
        started.join()
        started.require_group()
        started.start(*_processes(flags))
        if flags.get("accelerator") == "cpu" or Facts.device_type_here() == "cpu":
            # Otherwise accelerate only detects devices, and treats each process as a job of its own.
            options["cpu"] = True
        asked = [ASK_FOR_STRATEGIES[name] for name, plugin in plugins.items() if plugin is not None]
        launched = configuration()
        asked += [name for variable, name in LAUNCHED.items() if launched.get(variable, "").lower() == "true"]
        with own_accelerator_state(), concealed(HIDDEN):
            accelerate.Accelerator.__init__(self, **options)
            self._lightning = self._session = None
            self.state = detached(self.state)
        strategy = flags.setdefault("strategy", asked[0] if asked else "auto")
        if isinstance(strategy, str) and strategy.startswith("deepspeed") and strategy in STRATEGY_REGISTRY:
            started.form_job_of_one()
        self._wrapped: dict[int, Any] = {}
        self._fabric_optimizers: list[FabricOptimizer] = []
        handler = self.ddp_handler
        self.fabric = build_fabric(
            Facts.of_state(self.state),
            flags,
            self._agreed_precision(flags.get("precision")),
            ddp={} if handler is None else handler.to_kwargs(),
            deepspeed={
                **_deepspeed_options(plugins["deepspeed_plugin"], launched),
                "gradient_accumulation_steps": self.gradient_accumulation_steps,
            },
        )
        self.scaler = getattr(self._precision, "scaler", None)

    def _agreed_precision(self, flag: object) -> str:
        """Return the mixed precision for both accelerate and Fabric, whichever source sets it."""
        told = self.mixed_precision if self.mixed_precision in PRECISIONS else "no"
        named = next((ours for ours, names in PRECISIONS.items() if str(flag) in names), None)
        if flag is None or isinstance(flag, Precision):
            return told
        if told not in {"no", named}:
            msg = (
                f"`lightning={{'precision': {flag!r}}}`: `mixed_precision={told!r}` says otherwise. Say "
                "the same by both, or `mixed_precision='no'`."
            )
            raise ArgumentError(msg)
        if named is not None:
            self.state._mixed_precision = named
        return named or "no"

    @property
    def _precision(self) -> Precision:
        return self.fabric.strategy.precision

    @property
    def is_sharding(self) -> bool:
        """Whether models are sharded, so that `get_state_dict` must be called on all processes."""
        return is_sharding(self.fabric.strategy)

    @override
    def prepare(self, *args: object, device_placement: list[bool] | None = None) -> Any:
        """Shard dataloaders, set up models and optimizers on Fabric, and wrap schedulers.

        Args:
            args: models, optimizers, dataloaders and schedulers, in any order; anything else is returned
                unchanged.
            device_placement: for each object, whether it is moved.
        """
        optimizers = [arg for arg in args if isinstance(arg, torch.optim.Optimizer)]
        models = [arg for arg in args if isinstance(arg, nn.Module)]
        before = [dict(self.unwrap_model(model).named_parameters()) for model in models]
        if sets_up_jointly(self.fabric.strategy) and len(models) == 1 and optimizers:
            args = self._set_up_jointly(args, models[0], optimizers)
        prepared = super().prepare(*args, device_placement=device_placement)
        if len(args) == 1:
            return self._prepare_last(prepared)
        prepared = tuple(map(self._prepare_last, prepared))
        if self.is_sharding:
            for model, names in zip(models, before, strict=True):
                _follow(optimizers, names, dict(self.unwrap_model(model).named_parameters()))
        return prepared

    def _prepare_last(self, obj: object) -> object:
        """Prepare schedulers, after the optimizers that they belong to."""
        return self.prepare_scheduler(obj) if isinstance(obj, LRScheduler) else obj

    def _set_up_jointly(
        self, args: Sequence[Any], model: nn.Module, optimizers: list[Any]
    ) -> tuple[Any, ...]:
        """Set up a model together with its optimizer, as DeepSpeed's engine requires."""
        module, *stepping = self.fabric.setup(model, *optimizers)
        places: dict[int, Any] = {id(model): self._keep_model(module)}
        for old, new in zip(optimizers, stepping, strict=True):
            places[id(old)] = self._keep_optimizer(new)
        return tuple(places.get(id(arg), arg) for arg in args)

    @override
    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        """Place a model, set Fabric's precision on it, and wrap it with Fabric's strategy.

        Args:
            model: the model.
            device_placement: whether to move it to the device; if None, its device map decides.
            evaluation_mode: whether it is only evaluated, and needs no wrapper.

        Returns:
            The strategy's result: the model itself on one device, DDP's wrapper, or DeepSpeed's engine.
        """
        if id(model) in self._wrapped:
            return model
        places = self.device_placement if device_placement is None else device_placement
        moves = bool(places and not self.verify_device_map(model))
        trains = any(parameter.requires_grad for parameter in model.parameters()) and not evaluation_mode
        if not is_compiled_module(model):
            compute_as(model, self._precision)
        # DeepSpeed's engine takes a trained model with its optimizer; a model without one is a reference.
        if self.is_sharding or (trains and not sets_up_jointly(self.fabric.strategy)):
            return self._keep_model(self.fabric.setup_module(model, move_to_device=moves))
        # A model that does not train needs no wrapper, and DDP refuses it.
        model = self._precision.convert_module(model)
        self._models.append(model)
        return self.fabric.to_device(model) if moves else model

    def _keep_model(self, module: nn.Module) -> nn.Module:
        forward = cast("nn.Module", module._forward_module)
        self._wrapped[id(forward)] = module
        self._models.append(forward)
        return forward

    @override
    def prepare_optimizer(self, optimizer: Optimizer, device_placement: bool | None = None) -> Optimizer:
        """Wrap an optimizer, to step through Fabric's precision and strategy at the end of windows."""
        if isinstance(optimizer, FabricOptimizer):
            return optimizer
        return self._keep_optimizer(self.fabric.setup_optimizers(optimizer))

    def _keep_optimizer(self, optimizer: Any) -> FabricOptimizer:
        engine = self.fabric.strategy.model if sets_up_jointly(self.fabric.strategy) else None  # type: ignore[attr-defined]
        kept = FabricOptimizer(optimizer, self.gradient_state, self.scaler, engine)
        self._optimizers.append(optimizer.optimizer)
        self._fabric_optimizers.append(kept)
        return kept

    @override
    def prepare_scheduler(self, scheduler: LRScheduler) -> Any:
        """Wrap a scheduler, to step when its optimizer has, once for each process, as under accelerate."""
        if isinstance(scheduler, AcceleratedScheduler):
            return scheduler
        stepping = [
            one
            for one, bare in zip(self._fabric_optimizers, self._optimizers, strict=True)
            if getattr(scheduler, "optimizer", None) in {one, bare}
        ]
        kept = AcceleratedScheduler(
            scheduler,
            stepping or self._fabric_optimizers,
            step_with_optimizer=self.step_scheduler_with_optimizer,
            split_batches=self.split_batches,
        )
        self._schedulers.append(kept)
        return kept

    @override
    def backward(self, loss: torch.Tensor, **kwargs: object) -> None:
        """Run the backward pass of a loss, divided by the micro-batches of a window.

        Args:
            loss: a scalar with its graph.
            kwargs: options of `torch.Tensor.backward`.
        """
        model = None
        if sets_up_jointly(self.fabric.strategy):
            model = next(m for m in self._wrapped.values() if any(p.requires_grad for p in m.parameters()))
        else:
            # DeepSpeed divides the loss itself.
            loss = loss / self.gradient_accumulation_steps
        self.fabric.backward(loss, model=model, **kwargs)

    @override
    @contextlib.contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Skip the reduction of gradients among processes.

        Args:
            model: the model that `prepare` returned.
        """
        module = self._wrapped.get(id(model))
        if module is None or sets_up_jointly(self.fabric.strategy):
            yield
            return
        with self.fabric.no_backward_sync(module):
            yield

    @override
    def clip_grad_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2
    ) -> torch.Tensor | None:
        """Clip gradients by norm; DeepSpeed clips by its own configuration.

        Args:
            parameters: the parameters whose gradients are clipped.
            max_norm: the largest norm.
            norm_type: the order of the norm.

        Returns:
            The norm before clipping, or None under DeepSpeed.
        """
        if sets_up_jointly(self.fabric.strategy):
            return None
        self.unscale_gradients()
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type)

    @override
    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> Any:
        """Return the full weights of a model; must be called on every process.

        Args:
            model: a model, wrapped or not.
            unwrap: whether to use the names of the model itself.
        """
        bare = self.unwrap_model(model)
        if any(hasattr(parameter, "ds_id") for parameter in bare.parameters()):
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(bare.parameters())):
                return {name: tensor.detach().cpu().clone() for name, tensor in bare.state_dict().items()}
        if not self.is_sharding:
            return super().get_state_dict(model, unwrap)
        state = bare.state_dict(keep_vars=True)
        # Each parameter is gathered once: tied weights stay tied, and are saved once.
        parts = {id(part): part for part in state.values() if isinstance(part, DTensor)}
        whole = {key: part.full_tensor().detach().cpu() for key, part in parts.items()}
        return {name: whole.get(id(tensor), tensor.detach()) for name, tensor in state.items()}

    @override
    def prepare_data_loader(self, data_loader: Loader, *args: object, **kwargs: object) -> Loader:
        """Shard a dataloader; a shuffled one draws its order as torch's does, the same on all processes.

        Args:
            data_loader: the dataloader.
            args: see `accelerate.Accelerator.prepare_data_loader`.
            kwargs: see `accelerate.Accelerator.prepare_data_loader`.
        """
        sampler = getattr(data_loader, "sampler", None)
        if self.num_processes > 1 and type(sampler) is RandomSampler and sampler.generator is None:
            AgreedSampler.of(sampler)
        return super().prepare_data_loader(data_loader, *args, **kwargs)

    @override
    def log(
        self, values: dict[str, Any], step: int | None = None, log_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Log values to the trackers, and the numbers among them to Fabric's loggers as well.

        Args:
            values: name → value.
            step: the step they belong to.
            log_kwargs: a tracker's name → its further arguments.
        """
        super().log(values, step=step, log_kwargs=log_kwargs or {})
        if self.fabric.loggers:
            self.fabric.log_dict({k: float(v) for k, v in values.items() if _is_number(v)}, step=step)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor) or hasattr(value, "dtype"):
        return bool(value.ndim == 0)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _accelerate_options(further: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a user's arguments for accelerate 0.27 to those of the installed release.

    Raises:
        ArgumentError: an option without equivalent in Fabric, one that the trainer sets, or an unknown one.
    """
    found = dict(further)
    known = inspect.signature(accelerate.Accelerator).parameters
    for name, value in found.items():
        why = (
            "Lightning Fabric has no such thing"
            if name in REFUSED and value is not None
            else "the trainer gives it by an argument of its own"
            if name in ours
            else "accelerate has no such option"
            if name not in known and name not in OF_DATA
            else None
        )
        if why:
            msg = f"`accelerator_kwargs={{{name!r}: ...}}`: {why}. Remove it."
            raise ArgumentError(msg)
    of_data = {name: found.pop(name) for name in OF_DATA if name in found}
    if of_data:
        configuration = found.get("dataloader_config") or DataLoaderConfiguration()
        found["dataloader_config"] = dataclasses.replace(configuration, **of_data)
    return found


def _processes(flags: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of processes per machine, and the number of machines."""
    devices = flags.get("devices", 1)
    count = len(devices) if isinstance(devices, (list, tuple)) else devices
    if count in {"auto", -1, "-1"}:
        count = max(1, torch.accelerator.device_count())
    is_chosen = isinstance(devices, (list, tuple)) and list(devices) != list(range(len(devices)))
    nodes = flags.get("num_nodes", 1)
    for name, value, is_wrong in (
        ("devices", devices, is_chosen or not str(count).isdigit() or int(count) < 1),
        ("num_nodes", nodes, not str(nodes).isdigit() or int(nodes) < 1),
    ):
        if is_wrong:
            msg = (
                f"`lightning={{{name!r}: {value!r}}}`: must be a positive integer. Give 1 or more. "
                "CUDA_VISIBLE_DEVICES selects the devices."
            )
            raise ArgumentError(msg)
    return int(count), int(nodes)


def _deepspeed_options(plugin: DeepSpeedPlugin, launched: Mapping[str, str]) -> dict[str, Any]:
    if plugin is None and launched.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        plugin = accelerate.DeepSpeedPlugin()
    return {} if plugin is None else {"config": plugin.deepspeed_config}


def _follow(optimizers: list[Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """Replace the parameters of optimizers by the ones that sharding has created."""
    moved = {id(parameter): after[name] for name, parameter in before.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [moved.get(id(parameter), parameter) for parameter in group["params"]]
