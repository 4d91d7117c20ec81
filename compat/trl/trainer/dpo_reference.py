"""Log-probabilities of the reference model as columns of a dataset."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch
from accelerate.utils import tqdm
from torch.utils.data import DataLoader

from compat.trl.algorithms.dpo_tokens import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator
    from datasets import Dataset
    from peft import PeftModel
    from torch import Tensor
    from transformers import DataCollator, TrainingArguments

COLUMNS = tuple(f"reference_{side}_logps" for side in SIDES)
"""The columns: log-probabilities of the chosen and of the rejected answers."""


def has_columns(dataset: Dataset) -> bool:
    """Whether a dataset has the reference's log-probabilities."""
    return {*COLUMNS} <= {*dataset.column_names}


def add_columns(
    dataset: Dataset,
    batch_size: int,
    description: str,
    args: TrainingArguments,
    accelerator: Accelerator,
    data_collator: DataCollator,
    compute: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]],
) -> Dataset:
    """Add the log-probabilities of the reference to a dataset, unless it has them.

    Args:
        dataset: tokenized rows.
        batch_size: rows per batch and process.
        description: the title of the progress bar.
        args: training arguments with the options of dataloaders.
        accelerator: shards the dataloader, and gathers results.
        data_collator: makes batches.
        compute: maps a batch to log-probabilities of chosen and of rejected answers, shape (batch,) each.
    """
    if has_columns(dataset):
        return dataset
    loader = accelerator.prepare(
        DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            shuffle=False,
        )
    )
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for batch in tqdm(iterable=loader, desc=description, disable=args.disable_tqdm or None):
        gathered = accelerator.gather_for_metrics(compute(batch))
        for name, values in zip(columns, gathered, strict=True):
            columns[name].append(values.float().cpu())
    for name, values in columns.items():
        dataset = dataset.add_column(name=name, column=torch.cat(values).numpy())
    return dataset


@contextlib.contextmanager
def adapter_set(model: PeftModel, reference: str, trained: str) -> Iterator[None]:
    """Activate the reference's adapter inside the block.

    Args:
        model: the unwrapped model.
        reference: the name of the reference's adapter.
        trained: the name of the trained adapter, which is active afterwards.
    """
    model.set_adapter(reference)
    try:
        yield
    finally:
        model.set_adapter(trained)


def warn_of_trained_reference() -> None:
    """Warn the caller of `get_eval_dataloader` that the reference is the model under training."""
    warnings.warn(
        "`precompute_ref_log_probs=True`: this dataset is evaluated for the first time, and the "
        "model has been trained already: it is its own reference as it is now. Call `evaluate()` "
        "once ahead of `train()`.",
        stacklevel=4,
    )
