"""Subclasses that change losses and training steps, as people write them.

Each function makes a subclass of the base it is given.
"""

from __future__ import annotations

import torch
from torch import nn


def plain(base: type) -> type:
    """No subclass at all."""
    return base


def own_loss(base: type) -> type:
    """A loss that knows nothing of accumulation windows."""

    class OwnLoss(base):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.l1_loss(outputs["logits"], labels)
            return (loss, outputs) if return_outputs else loss

    return OwnLoss


def token_loss(base: type) -> type:
    """A loss normalized by the tokens of the whole window."""

    class TokenLoss(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            total = nn.functional.cross_entropy(logits, targets, reduction="sum")
            loss = total / (num_items_in_batch or (targets != -100).sum())
            return (loss, outputs) if return_outputs else loss

    return TokenLoss


def logged_loss_parts(base: type) -> type:
    """Keeps parts of the loss and adds their mean to the next log, as preference trainers do."""

    class LoggedLossParts(base):
        parts: list[float]

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            self.__dict__.setdefault("parts", []).append(outputs["logits"].mean().item())
            return (loss, outputs) if return_outputs else loss

        def log(self, logs, start_time=None):
            if parts := self.__dict__.pop("parts", None):
                logs["parts"] = sum(parts) / len(parts)
            super().log(logs, start_time)

    return LoggedLossParts


def noted_step(base: type) -> type:
    """Notes at each micro-step what other libraries read there."""

    class NotedStep(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.__dict__.setdefault("notes", []).append(
                {
                    "loss": loss,
                    "loss_has_graph": loss.requires_grad,
                    "items": num_items_in_batch,
                    "sync": self.accelerator.sync_gradients,
                    "batch_size": self._train_batch_size,
                    "rates": [group["lr"] for group in self.optimizer.param_groups],
                    "scheduled": self.lr_scheduler.get_last_lr(),
                    "step": self.state.global_step,
                    "epoch": self.state.epoch,
                    "in_train": self.is_in_train,
                    "training": model.training,
                    "wrapped": model is self.model_wrapped,
                    "grad_enabled": torch.is_grad_enabled(),
                }
            )
            return loss

    return NotedStep


def noted_window(base: type) -> type:
    """Notes at each micro-step how many of them its window has."""

    class NotedWindow(base):
        def training_step(self, *args, **kwargs):
            self.__dict__.setdefault("notes", []).append(self.current_gradient_accumulation_steps)
            return super().training_step(*args, **kwargs)

    return NotedWindow


def noted_accelerator(base: type) -> type:
    """Asks the accelerator inside the loss, in training and evaluation, as other libraries do."""

    class NotedAccelerator(base):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            accelerator = self.accelerator
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            with accelerator.autocast():
                product = self.model.head.weight @ self.model.head.weight.T
            self.__dict__.setdefault("notes", []).append(
                {
                    "gathered": accelerator.gather(loss.detach()),
                    "for metrics": accelerator.gather_for_metrics(loss.detach().repeat(3)),
                    "padded": accelerator.pad_across_processes(inputs["x"].detach()),
                    "reduced": accelerator.reduce(loss.detach(), "mean"),
                    "unwrapped": accelerator.unwrap_model(model) is self.model,
                    "product": product.dtype is torch.bfloat16,
                    "main": accelerator.is_main_process,
                    "processes": (accelerator.process_index, accelerator.num_processes),
                    "device": str(accelerator.device),
                    "precision": accelerator.mixed_precision,
                    "sync": accelerator.sync_gradients,
                    "distributed": str(accelerator.distributed_type),
                }
            )
            accelerator.wait_for_everyone()
            return (loss, outputs) if return_outputs else loss

    return NotedAccelerator


def product_outside(base: type) -> type:
    """Multiplies matrices in the loss: only the model's forward runs in lower precision."""

    class ProductOutside(base):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            logits = outputs["logits"]
            loss = loss + (logits @ logits.T).mean()
            return (loss, outputs) if return_outputs else loss

    return ProductOutside


def own_backward(base: type) -> type:
    """Runs forward and backward itself, through the accelerator."""

    class OwnBackward(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = 2 * self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            loss = loss / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

    return OwnBackward


def retained_backward(base: type) -> type:
    """Two backward passes through one graph."""

    class RetainedBackward(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss / 2, retain_graph=True)
            self.accelerator.backward(loss / 4)
            return loss.detach()

    return RetainedBackward


def undetached_loss(base: type) -> type:
    """Returns the loss with its graph after having gone back through it."""

    class UndetachedLoss(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss, retain_graph=True)
            return loss

    return UndetachedLoss


def skips_batches(base: type) -> type:
    """Leaves every third batch out: no backward, a loss of zero."""

    class SkipsBatches(base):
        def training_step(self, *args, **kwargs):
            self.calls = self.__dict__.get("calls", 0) + 1
            if self.calls % 3 == 1:
                return torch.tensor(0.0)
            return super().training_step(*args, **kwargs)

    return SkipsBatches


def steps_itself(base: type) -> type:
    """Steps the optimizer itself; the Trainer's own step finds no gradients."""

    class StepsItself(base):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss

    return StepsItself


def bare_backward(base: type) -> type:
    """Runs the backward on the tensor, past every Trainer and accelerator."""

    class BareBackward(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            (loss / self.args.gradient_accumulation_steps).backward()
            return loss.detach() / self.args.gradient_accumulation_steps

    return BareBackward


def two_backwards(base: type) -> type:
    """A second backward in the same micro-step, on noisy inputs (adversarial training)."""

    class TwoBackwards(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            first = super().training_step(model, dict(inputs), num_items_in_batch)
            inputs["x"] = inputs["x"] + 0.1 * torch.randn_like(inputs["x"])
            return first + super().training_step(model, inputs, num_items_in_batch)

    return TwoBackwards


def read_gradients(base: type) -> type:
    """Reads the gradients right after the inherited step."""

    class ReadGradients(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            norms = [None if p.grad is None else p.grad.norm() for p in model.parameters()]
            self.__dict__.setdefault("notes", []).append(norms)
            return loss

    return ReadGradients


def scale_gradients(base: type) -> type:
    """Scales and clips what has been accumulated so far, after the inherited step."""

    class ScaleGradients(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            for parameter in model.parameters():
                parameter.grad.mul_(0.5)
            nn.utils.clip_grad_value_(model.parameters(), 0.05)
            return loss

    return ScaleGradients


def not_a_number(base: type) -> type:
    """Reports NaN or infinity at some micro-steps though the gradients are sound."""

    class NotANumber(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.calls = self.__dict__.get("calls", 0) + 1
            return loss * {2: float("nan"), 5: float("inf"), 6: float("nan")}.get(self.calls, 1.0)

    return NotANumber


def exploding(base: type) -> type:
    """A loss that is infinite in the third micro-step: the weights become NaN."""

    class Exploding(base):
        def compute_loss(self, *args, **kwargs):
            self.calls = self.__dict__.get("calls", 0) + 1
            answer = super().compute_loss(*args, **kwargs)
            return answer * float("inf") if self.calls == 3 else answer

    return Exploding


def perturbed(base: type) -> type:
    """A Trainer wrong by one part in ten million: the harness has to notice."""

    class Perturbed(base):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss if isinstance(loss, tuple) else loss * (1 + 1e-7)

    return Perturbed


def draws_once_more(base: type) -> type:
    """A Trainer that takes one random number too many."""

    class DrawsOnceMore(base):
        def training_step(self, *args, **kwargs):
            torch.rand(1)
            return super().training_step(*args, **kwargs)

    return DrawsOnceMore


def mute(base: type) -> type:
    """A Trainer that fires one kind of event less."""

    class Mute(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.callback_handler.on_substep_end = lambda args, state, control: control

    return Mute


def forgetful(base: type) -> type:
    """A Trainer that leaves a file out of its checkpoints."""

    class Forgetful(base):
        def _save_rng_state(self, output_dir):
            pass

    return Forgetful


def keeps_gradients(base: type) -> type:
    """A Trainer that zeroes gradients before the next step, not after the last one."""

    class KeepsGradients(base):
        def training_step(self, model, *args, **kwargs):
            torch.nn.Module.zero_grad(model)
            model.zero_grad = lambda: None
            return super().training_step(model, *args, **kwargs)

    return KeepsGradients
