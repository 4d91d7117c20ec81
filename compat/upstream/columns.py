"""HF's removal of unused columns, with at most a copy if there is nothing to remove."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from transformers.data.data_collator import (
    DefaultDataCollator,
    default_data_collator,
    torch_default_data_collator,
)
from transformers.trainer_utils import RemoveColumnsCollator
from typing_extensions import override

from compat.upstream.patched import is_upstream

if TYPE_CHECKING:
    from compat.upstream.values import Batch


_READERS = frozenset(
    id(collator)
    for collator in (default_data_collator, torch_default_data_collator)
    if is_upstream(collator, "transformers")
)


def _only_reads(collator: object) -> bool:
    """Whether a collator is one of HF's that change no row."""
    return type(collator) is DefaultDataCollator or id(collator) in _READERS


class ColumnsCollator(RemoveColumnsCollator):  # type: ignore[misc]
    """HF's collator, changed to filter a row only if the model does not accept all of its columns."""

    @override
    def __call__(self, features: list[Any]) -> Batch:
        columns = frozenset(self.signature_columns)
        if (
            _only_reads(self.data_collator)
            and set(map(type, features)) == {dict}
            and columns.issuperset(chain(*features))
        ):
            return self.data_collator(features)
        return self.data_collator(
            [
                dict(row) if type(row) is dict and row.keys() <= columns else self._remove_columns(row)
                for row in features
            ]
        )


def copying_whole_rows(collator: Any) -> Any:
    """Return a collator unchanged, or HF's in its faster form.

    Args:
        collator: the collator that HF's Trainer created.
    """
    methods = (RemoveColumnsCollator.__call__, RemoveColumnsCollator._remove_columns)
    is_own = type(collator) is RemoveColumnsCollator
    if is_own and all(is_upstream(method, "transformers") for method in methods):
        collator.__class__ = ColumnsCollator
    return collator
