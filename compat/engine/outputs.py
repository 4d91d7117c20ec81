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
"""The padding value for batches that differ in dimension 1."""


class Gathering:
    """Collects the outputs of a batch from all processes, padded to one length along dimension 1.

    A single process has all outputs: accelerate's checks and copies are skipped, except for a last batch,
    which accelerate truncates to the rows of the dataset.

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
        """Check whether the current batch has more rows than the dataset has left."""
        self._is_whole = self._is_alone and not self._hf.accelerator.gradient_state.end_of_dataloader

    def pad(self, outputs: Output) -> Output:
        """Pad outputs to the same length of dimension 1 in all processes."""
        if self._is_alone and _has_tensors_alone(outputs):
            return outputs
        return self._hf.accelerator.pad_across_processes(outputs, dim=1, pad_index=PADDING)

    def gather(self, outputs: Output) -> Output:
        """Gather the outputs of all processes along dimension 0."""
        if self._is_whole and _has_tensors_alone(outputs):
            return outputs
        return self._hf.gather_function(outputs)

    def gather_repeated(self, value: torch.Tensor, times: int) -> torch.Tensor:
        """Gather a value of each process, repeated once per row; in a single process it is a view."""
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
    """HF's container, changed to concatenate once when it is read instead of at each batch."""

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
        """Whether one concatenation gives the same result as one at each batch."""
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


def make_container(*, concatenates: bool, joins_once: bool = True) -> Any:
    """A container for the outputs of one kind.

    Args:
        concatenates: whether the batches become one array; otherwise they stay a list.
        joins_once: whether they may be concatenated when the array is read.

    Returns:
        An instance of `transformers.trainer.EvalLoopContainer`, or of the class that has replaced it there.
    """
    kind = hf_trainer.EvalLoopContainer
    if joins_once and kind is EvalLoopContainer and is_upstream(kind, "transformers"):
        kind = JoinedOnce
    return kind(concatenates, padding_index=PADDING)
