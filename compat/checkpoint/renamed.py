"""Weights that `save_pretrained` has written under names that the model no longer has."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch.nn.modules.module import _IncompatibleKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_renamed(model: PreTrainedModel, checkpoint: str) -> _IncompatibleKeys:
    """Load what `from_pretrained` finds for a model, and leave the rest of it as it is.

    `from_pretrained` draws at random what it does not find.

    Args:
        model: takes the weights.
        checkpoint: a folder with weights.

    Returns:
        What was missing there and what was not known, by the names that transformers translates to.
    """
    current, told = type(model).from_pretrained(
        checkpoint, config=copy.deepcopy(model.config), output_loading_info=True
    )
    missing = set(told["missing_keys"])
    found = {name: value for name, value in current.state_dict().items() if name not in missing}
    model.load_state_dict(found, strict=False)
    return _IncompatibleKeys(sorted(missing), sorted(told["unexpected_keys"]))
