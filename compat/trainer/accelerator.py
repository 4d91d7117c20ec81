"""`trainer.accelerator` for HF and third-party code, on Lightning's strategy."""

from __future__ import annotations

import contextlib
import operator
import sys
from typing import TYPE_CHECKING, Any, cast

import accelerate
import torch
from accelerate.utils import DistributedType, DynamoBackend, compile_regions, is_compiled_module
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from compat.engine import xla
from compat.engine.manual_optimization import is_manual
from compat.engine.optimizer import SyncedOptimizer
from compat.engine.precision import autocast, set_autocast
from compat.engine.user_module import is_user_module
from compat.engine.xla import ReducingOptimizer
from compat.errors import ArgumentError
from compat.upstream import ulysses
from compat.upstream.environment import detached
from compat.upstream.patched import is_own_training_step, is_patched
from compat.upstream.sharding import embeddings_with_the_rest, tied_again, wrap_by_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    import lightning.pytorch as pl
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from compat.engine.host import TrainerHost
    from compat.engine.session import Session


SHARDED = frozenset({DistributedType.FSDP, DistributedType.DEEPSPEED})
"""Distribution types for which accelerate shards the model together with its optimizer."""


class LightningAccelerator(accelerate.Accelerator):  # type: ignore[misc]
    """An `accelerate.Accelerator` that shards data and gathers results, and leaves the rest to Lightning.

    It is never constructed: HF builds its accelerator with all of its own checks, and `adopt` changes the
    class of that object to this one. From then on accelerate wraps no model and no optimizer, and steps none.
    """

    _lightning: pl.Trainer | None
    _session: Session | None
    _divisor: int = 1
    group_options: list[dict[str, Any]]
    """Options of an optimizer's groups before its model was sharded."""

    @classmethod
    def adopt(cls, accelerator: accelerate.Accelerator) -> LightningAccelerator:
        """Give `accelerator` this class, and a state that no other trainer in the process can change.

        A subclass may build its own accelerator, or replace ours: that one is adopted as well.
        """
        if isinstance(accelerator, cls):
            return accelerator
        accelerator.__class__ = cls
        face: LightningAccelerator = accelerator
        face._lightning = face._session = None
        face.state = detached(face.state)
        return face

    def compute_in(self, precision: str) -> None:
        """Set the precision that the arguments request.

        An accelerator that a subclass builds reads the precision from an environment variable, which HF's
        arguments set under transformers 4 and ours do not.

        Args:
            precision: "no", "bf16" or "fp16".

        Raises:
            ArgumentError: fp16, because a loop outside of `compat` would have to scale the gradients.
        """
        if precision == self.mixed_precision or self.mixed_precision != "no":
            return
        if precision != "bf16":
            msg = (
                f"`{precision}=True`: this trainer builds an accelerator of its own, and steps by itself. "
                "Give `bf16=True`, or leave both out."
            )
            raise ArgumentError(msg)
        self.state._mixed_precision = precision
        self.native_amp = True

    @contextlib.contextmanager
    def serving(self, trainer: pl.Trainer, session: Session) -> Iterator[None]:
        """Route backward to `trainer` for the duration of a run."""
        self._lightning, self._session = trainer, session
        try:
            yield
        finally:
            self._lightning = self._session = None
            # Code that steps its own optimizer after the run needs `sync_gradients` to be true.
            self.gradient_state._set_sync_gradients(True)

    @contextlib.contextmanager
    def dividing_by(self, window: int) -> Iterator[None]:
        """Divide losses before their backward, as accelerate did for the `training_step` of 4.37.

        HF's own `training_step` divides the loss itself, and is not affected.

        Args:
            window: micro-steps in an accumulation window.
        """
        self._divisor = window
        try:
            yield
        finally:
            self._divisor = 1

    @override
    def prepare(self, *args: object, device_placement: list[bool] | None = None) -> Any:
        """Shard dataloaders, place and compile models, and return all else unchanged."""
        if self.distributed_type in SHARDED:
            return self._prepare_sharded(*args, device_placement=device_placement)
        placements: list[Any] = list(device_placement) if device_placement else [None] * len(args)
        prepared = tuple(
            self._prepare_one(obj, first_pass=True, device_placement=place)
            for obj, place in zip(args, placements, strict=True)
        )
        return prepared if len(prepared) > 1 else prepared[0]

    def _prepare_sharded(self, *args: object, **options: object) -> Any:
        """Shard models together with their optimizers, as accelerate does."""
        has = {
            kind: any(isinstance(arg, kind) for arg in args) for kind in (nn.Module, torch.optim.Optimizer)
        }
        if self.is_fsdp2 and has[nn.Module] and not has[torch.optim.Optimizer]:
            # accelerate requires an optimizer even if a model is only evaluated.
            prepared = self._prepare_fsdp2(*args)
            return prepared if len(prepared) > 1 else prepared[0]
        self.group_options = [
            {name: value for name, value in group.items() if name != "params"}
            for optimizer in args
            if isinstance(optimizer, torch.optim.Optimizer)
            for group in optimizer.param_groups
        ]
        return super().prepare(*args, **options)

    @override
    def _prepare_deepspeed(self, *args: object) -> Any:
        """Prepare with DeepSpeed's engine, also where an earlier model of this process shared sequences."""
        if not self.shares_sequences or not any(isinstance(arg, nn.Module) for arg in args):
            return super()._prepare_deepspeed(*args)
        ulysses.release()
        # Evaluation shares no sequences: a model without an optimizer needs no other attention.
        with ulysses.own_attention() if len(args) == 1 else contextlib.nullcontext():
            return super()._prepare_deepspeed(*args)

    @property
    def shares_sequences(self) -> bool:
        """Whether processes share the sequences of a batch."""
        return bool(self.parallelism_config and self.parallelism_config.sp_size > 1)

    _cp_context: Any = None

    @property
    def shares_contexts(self) -> bool:
        """Whether processes share the context of attention, within the block of HF's training step."""
        return bool(self.parallelism_config and self.parallelism_config.cp_size > 1)

    @override
    def _prepare_fsdp2(self, *args: object) -> Any:
        if self.shares_contexts and self._cp_context is None:
            # accelerate does so with an optimizer only.
            self._prepare_cp(*args)
        with contextlib.ExitStack() as stack:
            for model in (arg for arg in args if isinstance(arg, nn.Module)):
                wrap_by_class(self.state.fsdp_plugin, model)
                stack.enter_context(embeddings_with_the_rest(self.state.fsdp_plugin, model))
            prepared = super()._prepare_fsdp2(*args)
        for model in (obj for obj in prepared if isinstance(obj, nn.Module)):
            if hasattr(model, "generate") and "generate" not in vars(model):
                register_fsdp_forward_method(model, "generate")
        return prepared

    @override
    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        """Place, cast and compile a model.

        Args:
            model: the model.
            device_placement: whether to move it to the device; if None, its device map decides.
            evaluation_mode: whether it is only evaluated, and needs no wrapper.

        Returns:
            The model itself, or its compiled form.
        """
        if self.distributed_type == DistributedType.FSDP and not self.is_fsdp2:
            wrapped: nn.Module = super().prepare_model(model, device_placement, evaluation_mode)
            return wrapped
        if self.is_fsdp2:
            (sharded,) = self._prepare_fsdp2(model)
            return cast("nn.Module", sharded)
        self._models.append(model)
        if is_compiled_module(model):
            return model
        places = self.device_placement if device_placement is None else device_placement
        if places and not self.verify_device_map(model):
            model = model.to(self.device)
        # Around the steps of a LightningModule, its adapter sets autocast.
        precision = "no" if is_user_module(model) else self._autocast_precision()
        set_autocast(model, self.device.type, precision, **self._autocast_options())
        if not evaluation_mode:
            model = self._wrap(model)
        plugin = self.state.dynamo_plugin
        if plugin.backend != DynamoBackend.NO:
            compile_model: Any = compile_regions if plugin.use_regional_compilation else torch.compile
            model = compile_model(model, **plugin.to_kwargs())
        return model

    def _wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model with Lightning's strategy if there is one, with the options that HF has set."""
        handler = self.ddp_handler
        options = {} if handler is None else handler.to_kwargs()
        strategy: Any = self._lightning and self._lightning.strategy
        wrap = self._wrap_alone if strategy is None else strategy.wrap
        wrapped: nn.Module = wrap(model, **options)
        if handler is not None and wrapped is not model:
            handler.register_comm_hook(wrapped)
        return wrapped

    def _wrap_alone(self, model: nn.Module, **options: Any) -> nn.Module:
        """Wrap a model that is trained in a user's own loop, without Lightning."""
        trains = any(parameter.requires_grad for parameter in model.parameters())
        is_apart = self.distributed_type in SHARDED or self.torch_device_mesh is not None
        if self.num_processes == 1 or is_apart or not trains:
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(model, device_ids=devices, **options)

    @override
    def prepare_optimizer(self, optimizer: Optimizer, device_placement: bool | None = None) -> Optimizer:
        """Wrap an optimizer, to step only at the end of accumulation windows; Lightning steps it."""
        if not isinstance(optimizer, SyncedOptimizer):
            kind = ReducingOptimizer if self._is_on_xla else SyncedOptimizer
            optimizer = kind(optimizer, self.gradient_state)
        self.has_lomo_optimizer |= hasattr(optimizer.optimizer, "fused_backward")
        # accelerate unscales the gradients of these: a gradient scaler identifies an optimizer by its `id`.
        self._optimizers.append(optimizer.optimizer)
        return optimizer

    @property
    def _is_on_xla(self) -> bool:
        return bool(self.distributed_type == DistributedType.XLA)

    def mark_step(self) -> None:
        """Execute the operations that an XLA device has collected; other devices execute each at once."""
        if self._is_on_xla:
            xla.mark_step()

    @override
    def clip_grad_norm_(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2
    ) -> torch.Tensor | None:
        """Clip gradients, which are reduced first on XLA devices.

        Args:
            parameters: with the gradients.
            max_norm: the largest norm that remains.
            norm_type: the kind of norm.

        Returns:
            The norm of all gradients together before clipping, a scalar; None if the engine does not have it.
        """
        norm: torch.Tensor | None
        if not self._is_on_xla:
            norm = super().clip_grad_norm_(parameters, max_norm, norm_type)
            return norm
        xla.reduce_gradients(self._optimizers, self.gradient_state)
        self.unscale_gradients()
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    @override
    def prepare_scheduler(self, scheduler: LRScheduler) -> LRScheduler:
        """Return a scheduler unchanged, and register it for `save_state`."""
        self._schedulers.append(scheduler)
        return scheduler

    @override
    def backward(self, loss: torch.Tensor, **kwargs: object) -> None:
        """Run the backward pass of a loss, or leave it to Lightning's closure.

        Args:
            loss: a scalar with its graph.
            kwargs: options of `torch.Tensor.backward`.
        """
        if not self.has_lomo_optimizer:
            # LOMO fuses the update into the backward, so HF passes the learning rate to it.
            kwargs.pop("learning_rate", None)
        if self._session is not None and is_manual(self._session.hf.model):
            _require_no_graph(loss, self._session.hf)
            return
        if is_patched(accelerate.Accelerator, "backward"):
            super().backward(loss, **kwargs)
            return
        if self.gradient_accumulation_steps != 1 and self.distributed_type != DistributedType.DEEPSPEED:
            loss = loss / self.gradient_accumulation_steps
        if self._divisor != 1 and not _is_in_own_training_step():
            loss = loss / self._divisor
        if self._session is None or self._lightning is None:
            scaled = loss if self.scaler is None else self.scaler.scale(loss)
            self.run_backward(scaled, **kwargs)
        elif self._defers(loss):
            self._session.pending_loss, self._session.backward_options = loss, kwargs
        else:
            optimizers = self._lightning.optimizers
            self._lightning.strategy.backward(loss, optimizers[0] if optimizers else None, **kwargs)

    def run_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss now, as the optimizer of the run requires.

        Args:
            loss: a scalar with its graph, scaled if gradients are scaled.
            args: of `torch.Tensor.backward`.
            kwargs: of `torch.Tensor.backward`; `learning_rate` for LOMO's optimizers.
        """
        if (rate := kwargs.pop("learning_rate", None)) is None:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        else:
            self.lomo_backward(loss, rate)

    def _defers(self, loss: torch.Tensor) -> bool:
        """Whether Lightning's closure is to run this backward; an invalid loss raises at once."""
        session = self._session
        if session is None or not session.defers_backward or session.pending_loss is not None:
            return False
        return isinstance(loss, torch.Tensor) and loss.numel() == 1

    @override
    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> Any:
        """Return the full weights of a model; must be called on every process.

        Args:
            model: a model, wrapped or not.
            unwrap: whether to use the names of the model itself.
        """
        state = super().get_state_dict(model, unwrap)
        if not state or self.distributed_type not in SHARDED:
            return state
        return tied_again(state, self.unwrap_model(model))

    @override
    def unwrap_model(
        self, model: nn.Module, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
    ) -> nn.Module:
        """Remove the wrappers of a model.

        Args:
            model: a model, wrapped or not.
            keep_fp32_wrapper: whether it keeps computing in mixed precision.
            keep_torch_compile: whether it stays compiled.

        Returns:
            The innermost model.
        """
        unwrapped: Any = super().unwrap_model(model, keep_torch_compile=keep_torch_compile)
        while type(unwrapped).__module__.startswith("torch_xla."):
            unwrapped = unwrapped.module
        bare: nn.Module = unwrapped
        if not keep_fp32_wrapper:
            set_autocast(bare, self.device.type, "no")
        return bare

    @override
    def lomo_backward(self, loss: torch.Tensor, learning_rate: float) -> None:
        """Run the backward pass in which LOMO's optimizers update the weights.

        Args:
            loss: a scalar with its graph.
            learning_rate: of this update.

        Raises:
            ValueError: no optimizer of LOMO's was prepared.
        """
        fused = [optimizer for optimizer in self._optimizers if hasattr(optimizer, "fused_backward")]
        if not fused:
            msg = "`lomo_backward`: no optimizer of LOMO's was prepared. Give `optim='lomo'`, or prepare one."
            raise ValueError(msg)
        for optimizer in fused:
            optimizer.fused_backward(loss, learning_rate)

    def holds_back(self, model: nn.Module | None) -> bool:
        """Whether gradient reduction is held back for all but the last micro-batch of a window, as under HF.

        Args:
            model: the model as a training step calls it.
        """
        # DeepSpeed's engine handles this itself.
        if (
            self.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            or self.distributed_type == DistributedType.DEEPSPEED
        ):
            return False
        has_reduction = self.is_fsdp2 or hasattr(model, "no_sync")
        return has_reduction or is_patched(accelerate.Accelerator, "no_sync")

    @property
    @override
    def optimizer_step_was_skipped(self) -> bool:
        if self.distributed_type == DistributedType.DEEPSPEED:
            return bool(super().optimizer_step_was_skipped)
        plugin: Any = self._lightning and self._lightning.precision_plugin
        return bool(plugin and plugin.step_was_skipped)

    @contextlib.contextmanager
    @override
    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> Iterator[None]:
        """Autocast in this trainer's precision, regardless of other trainers in the process."""
        options = self._autocast_options(autocast_handler)
        with autocast(self.device.type, self._autocast_precision(), **options):
            yield

    def _autocast_precision(self) -> str:
        # Some devices lack autocast for a precision, such as fp16 on a CPU.
        return str(self.mixed_precision) if self.native_amp else "no"

    def _autocast_options(self, handler: AutocastKwargs | None = None) -> dict[str, Any]:
        handler = handler or self.autocast_handler
        return {} if handler is None else dict(handler.to_kwargs())


HELD_AS = "_accelerator"
"""The attribute of a trainer that holds its accelerator."""


def _adopt(trainer: object, accelerator: Accelerator) -> None:
    if issubclass(type(accelerator), accelerate.Accelerator):
        accelerator = LightningAccelerator.adopt(accelerator)
        args = getattr(trainer, "args", None)
        written: dict[str, str] = getattr(args, "accelerate_environment", {})
        accelerator.compute_in(written.get("ACCELERATE_MIXED_PRECISION", "no"))
    vars(trainer)[HELD_AS] = accelerator


def _forget(trainer: object) -> None:
    delattr(trainer, HELD_AS)


# Read several times in a micro-step: without a call of Python's.
accelerator_of_trainer = property(
    operator.attrgetter(HELD_AS),
    _adopt,
    _forget,
    "`trainer.accelerator`: wraps what is assigned to it, including an accelerator that a subclass creates.",
)


def _require_no_graph(loss: torch.Tensor, hf: TrainerHost) -> None:
    """Refuse a loss of a Trainer's own where the module has already run backward and stepped."""
    if not loss.requires_grad:
        return
    msg = (
        f"`{type(hf).__name__}`: it adds a loss to that of `{type(hf.model).__name__}`, which optimizes "
        "manually and has already stepped. Compute it in the module's `training_step`."
    )
    raise ArgumentError(msg)


def _is_in_own_training_step() -> bool:
    """Whether HF's own `training_step` is running in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_own_training_step(frame.f_code):
        frame = frame.f_back
    return frame is not None
