"""Names for values of HF's and of users' that have no one class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import (
        BaseImageProcessor,
        FeatureExtractionMixin,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

Batch: TypeAlias = Any
"""What a collator makes of some rows: most often a mapping from names to tensors of shape (batch, …)."""

Trial: TypeAlias = Any
"""A trial of a hyperparameter search: Optuna's object, or a dict of values."""

Output: TypeAlias = Any
"""What a model or a step returns: a tensor, or tensors in tuples, lists and mappings."""

Loader: TypeAlias = Any
"""What yields batches: torch's dataloader, accelerate's, a user's, or one of ours around it."""

Rows: TypeAlias = Any
"""Data: a dataset of torch's or of `datasets`, an iterable one, several by name, or a list of rows."""

NumItems: TypeAlias = Any
"""How many targets an accumulation window has: a number, a tensor on any device, or None."""

ProcessingClass: TypeAlias = (
    "PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin | ProcessorMixin | None"
)
"""What makes inputs of raw data, as `processing_class` takes it."""
