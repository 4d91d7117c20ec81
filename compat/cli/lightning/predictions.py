"""The output of `compat predict`."""

from __future__ import annotations

import csv
import json
import os
from typing import TYPE_CHECKING, Any

import torch

from compat.cli.lightning.data_options import TASKS, Labels, classified, translated
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from transformers import PreTrainedTokenizerBase

    from compat.upstream.values import Output


def write_predictions(folder: str, data: Any, outputs: Output, trainer: pl.Trainer) -> str:
    """Write a prediction beside each row: a CSV file for a classification, JSON lines for texts.

    Args:
        folder: the folder to write to.
        data: the data module, with the rows and their task.
        outputs: what `trainer.predict` gave: loss, logits of shape (batch, …) and labels of each batch.
        trainer: the Lightning Trainer.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: several processes have each predicted a part, or the task has nothing to write.
    """
    if trainer.world_size > 1:
        msg = f"`devices`: {trainer.world_size} processes have each predicted a part. Predict with one."
        raise ArgumentError(msg)
    rows = data.rows["predict" if "predict" in data.rows else "test"]
    os.makedirs(folder, exist_ok=True)
    if TASKS[data.task] is classified:
        path = os.path.join(folder, "predictions.csv")
        found = list(_classes(data.labels, outputs))
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows.column_names, *found[0]])
            writer.writeheader()
            writer.writerows({**row, **each} for row, each in zip(rows, found, strict=True))
        return path
    path = os.path.join(folder, "predictions.jsonl")
    if TASKS[data.task] is not translated:
        msg = f"`compat predict`: nothing is written for {data.task}. Use the model's `generate`."
        raise ArgumentError(msg)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({**row, "prediction": text}, ensure_ascii=False) + "\n"
            for row, text in zip(rows, _texts(data.processing_class, outputs), strict=True)
        )
    return path


def _classes(labels: Labels, outputs: Output) -> Iterator[dict[str, Any]]:
    for _, logits, _ in outputs:
        first = logits[0] if isinstance(logits, tuple) else logits
        if labels.is_regression:
            yield from ({"prediction": float(value)} for value in first.flatten())
            continue
        shares = torch.softmax(first.float(), dim=-1)
        for share in shares:
            best = int(share.argmax())
            yield {"prediction": labels.names[best], "score": round(float(share[best]), 6)}


def _texts(tokenizer: PreTrainedTokenizerBase, outputs: Output) -> Iterator[str]:
    for _, logits, _ in outputs:
        first = logits[0] if isinstance(logits, tuple) else logits
        ids = first if first.ndim == 2 else first.argmax(dim=-1)  # noqa: PLR2004 (batch, length)
        ids = ids.masked_fill(ids < 0, tokenizer.pad_token_id)
        yield from tokenizer.batch_decode(ids, skip_special_tokens=True)
