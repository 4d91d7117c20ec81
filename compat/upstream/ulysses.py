"""What DeepSpeed's Ulysses sets for the whole process: groups of processes, and attention functions."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = ("_SEQUENCE_PARALLEL_GROUP", "_SEQUENCE_DATA_PARALLEL_GROUP")
"""Globals of DeepSpeed's module for the groups, which it sets once and refuses to set again."""


def release() -> None:
    """Have DeepSpeed form its groups again for the next model; earlier models keep theirs."""
    state: Any = sys.modules.get("deepspeed.runtime.sequence_parallel.parallel_state_sp")
    for name in GROUPS if state is not None else ():
        setattr(state, name, None)


@contextlib.contextmanager
def own_attention() -> Iterator[None]:
    """Undo the block's changes to the attention functions of all of transformers' models."""
    functions: Any = ALL_ATTENTION_FUNCTIONS
    before = dict(functions)
    try:
        yield
    finally:
        for name, function in before.items():
            if functions[name] is not function:
                del functions[name]
                if functions[name] is not function:
                    functions[name] = function
