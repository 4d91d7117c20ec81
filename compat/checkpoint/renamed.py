"""Weights that `save_pretrained` wrote under names that the model no longer has."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch.nn.modules.module import _IncompatibleKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_renamed(model: PreTrainedModel, checkpoint: str) -> _IncompatibleKeys:
    """Load the weights that `from_pretrained` finds for a model, and keep the others unchanged.

    `from_pretrained` initializes missing weights at random.

    Args:
        model: the model; modified in place.
        checkpoint: a folder with weights.

    Returns:
        The missing and the unexpected keys, under the names that transformers translates to.
    """
    current, told = type(model).from_pretrained(
        checkpoint, config=copy.deepcopy(model.config), output_loading_info=True
    )
    missing = set(told["missing_keys"])
    found = {name: value for name, value in current.state_dict().items() if name not in missing}
    model.load_state_dict(found, strict=False)
    return _IncompatibleKeys(sorted(missing), sorted(told["unexpected_keys"]))
