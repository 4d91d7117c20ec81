"""The outputs of an evaluation: collected from all processes, and kept until its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from transformers import trainer as hf_trainer
from transformers.trainer_pt_utils import EvalLoopContainer
from typing_extensions import override

from compat.upstream.patched import is_upstream

if TYPE_CHECKING:
    from compat.engine.host import TrainerHost
    from compat.upstream.values import Output

PADDING = -100
"""What fills up dimension 1 where batches differ in it."""


class Gathering:
    """Collects the outputs of a batch from all processes, padded to one length along dimension 1.

    A process alone has them all: accelerate's tests and copies are left out, but for a last batch, which it
    cuts to the rows that the dataset has.

    Args:
        hf: the HF Trainer, whose `gather_function` collects.
    """

    def __init__(self, hf: TrainerHost) -> None:
        self._hf = hf
        accelerator = hf.accelerator
        gather = getattr(hf.gather_function, "func", hf.gather_function)
        methods = (getattr(gather, "__func__", None), type(accelerator).pad_across_processes)
        self._is_alone = accelerator.distributed_type == DistributedType.NO and all(
            method is not None and is_upstream(method, "accelerate") for method in methods
        )
        self._is_whole = False

    def begin_batch(self) -> None:
        """Find out whether the batch in progress has more rows than the dataset has left."""
        self._is_whole = self._is_alone and not self._hf.accelerator.gradient_state.end_of_dataloader

    def pad(self, outputs: Output) -> Output:
        """Outputs with dimension 1 as long as in all other processes."""
        if self._is_alone and _has_tensors_alone(outputs):
            return outputs
        return self._hf.accelerator.pad_across_processes(outputs, dim=1, pad_index=PADDING)

    def gather(self, outputs: Output) -> Output:
        """Outputs of all processes, along dimension 0."""
        if self._is_whole and _has_tensors_alone(outputs):
            return outputs
        return self._hf.gather_function(outputs)

    def gather_repeated(self, value: torch.Tensor, times: int) -> torch.Tensor:
        """A value of each process, as often as it has rows; a view of the one value in a process alone."""
        if self._is_whole:
            return value.expand(times) if value.ndim == 0 else value.repeat(times)
        gathered: torch.Tensor = self._hf.gather_function(value.repeat(times))
        return gathered


def _has_tensors_alone(outputs: Output) -> bool:
    """Whether outputs are a tensor or a flat tuple of them; accelerate refuses some others."""
    if type(outputs) is tuple:
        return all([isinstance(output, torch.Tensor) for output in outputs])  # noqa: C419 (one call)
    return isinstance(outputs, torch.Tensor)


class JoinedOnce(EvalLoopContainer):  # type: ignore[misc]
    """HF's container, which concatenates when it is read, and not at each batch what lies behind."""

    @override
    def __init__(self, do_nested_concat: bool = True, padding_index: int = PADDING) -> None:
        super().__init__(do_nested_concat, padding_index)
        self._added: list[torch.Tensor] = []

    @override
    def add(self, tensors: Output) -> None:
        if self.do_nested_concat and self._fits(tensors):
            self._added.append(tensors)
        else:
            self._join()
            super().add(tensors)

    def _fits(self, tensors: Output) -> bool:
        """Whether one concatenation of all gives what one at each batch would."""
        if not (isinstance(tensors, torch.Tensor) and tensors.ndim and self.tensors is None):
            return False
        if not self._added:
            return True
        first = self._added[0]
        return (
            type(tensors) is type(first)
            and tensors.dtype == first.dtype
            and tensors.device == first.device
            and tensors.shape[1:] == first.shape[1:]
        )

    def _join(self) -> None:
        added, self._added = self._added, []
        if added:
            super().add(added[0].contiguous() if len(added) == 1 else torch.cat(added))

    @override
    def to_cpu_and_numpy(self) -> None:
        self._join()
        super().to_cpu_and_numpy()


def make_container(*, concatenates: bool) -> Any:
    """A container for the outputs of one kind.

    Args:
        concatenates: whether the batches become one array; otherwise they stay a list.

    Returns:
        An instance of `transformers.trainer.EvalLoopContainer`, of whatever somebody has put in its place.
    """
    kind = hf_trainer.EvalLoopContainer
    return (JoinedOnce if kind is EvalLoopContainer and is_upstream(kind, "transformers") else kind)(
        concatenates, padding_index=PADDING
    )
