"""Differences between a run and the checkpoint that it resumes from: logged, without an error."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


SETTLED_LATER = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)
"""Configuration entries that loading, saving and training change themselves."""

SHOWN = 3
"""The maximum number of differences that are shown."""


def changes(checkpoint: str, *, processing_class: Any, config: PretrainedConfig) -> Iterator[str]:
    """Compare a run with a checkpoint; yield one sentence for each difference.

    Args:
        checkpoint: a folder in HF's layout.
        processing_class: the tokenizer of this run, or an object that holds it.
        config: the model's configuration.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if callable(getattr(tokenizer, "get_vocab", None)):
        saved = _vocabulary(os.path.join(checkpoint, "tokenizer.json")) or _of_slow(checkpoint, tokenizer)
        if saved:
            yield from _other_vocabulary(saved, tokenizer.get_vocab())
    file = os.path.join(checkpoint, "config.json")
    if isinstance(config, PretrainedConfig) and os.path.isfile(file):
        yield from _other_config(_read(file), config)


def other_length(saved: int | None, now: int | None) -> Iterator[str]:
    """Yield a sentence if the length of the dataset has changed.

    Args:
        saved: the number of its rows when the checkpoint was written; None if unknown.
        now: the number of its rows.
    """
    if None not in (saved, now) and saved != now:
        yield (
            f"`train_dataset`: it has {now} rows, and {saved} when the checkpoint was written: batches are "
            "not those of the uninterrupted run"
        )


def _other_vocabulary(saved: dict[str, int], now: dict[str, int]) -> Iterator[str]:
    other = sorted(
        (token for token in {*saved, *now} if saved.get(token) != now.get(token)),
        key=lambda token: (saved.get(token, len(saved)), token),
    )
    if not other:
        return
    shown = ", ".join(
        f"{token!r} is {_number(now, token)} and was {_number(saved, token)}" for token in other[:SHOWN]
    )
    yield (
        f"`processing_class`: its vocabulary ({len(now)} tokens) is not that of the checkpoint "
        f"({len(saved)} tokens): {shown}{_more(other)}. The weights know the checkpoint's: load the "
        "tokenizer from there"
    )


def _other_config(saved: dict[str, Any], config: PretrainedConfig) -> Iterator[str]:
    now = config.to_dict()
    try:
        then = type(config).from_dict(saved).to_dict()
    except Exception:  # noqa: BLE001 (of another class, whose fields this one refuses)
        return
    other = sorted(
        name
        for name, value in now.items()
        # The first step may set a missing entry, such as `problem_type`.
        if value is not None and name not in SETTLED_LATER and name in then and then[name] != value
    )
    if other:
        shown = ", ".join(
            f"`{name}` is {now[name]!r:.60} and was {then[name]!r:.60}" for name in other[:SHOWN]
        )
        yield f"`model.config`: it is not that of the checkpoint: {shown}{_more(other)}"


def _number(vocabulary: dict[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "none"


def _more(other: list[str]) -> str:
    return f", and {len(other) - SHOWN} more" if len(other) > SHOWN else ""


def _vocabulary(file: str) -> dict[str, int]:
    """Read token → number from a file of the tokenizers library; empty if there is no readable one."""
    state = _read(file)
    model = state.get("model")
    tokens = model.get("vocab", {}) if isinstance(model, dict) else {}
    if isinstance(tokens, list):
        tokens = {entry[0]: number for number, entry in enumerate(tokens)}
    added = {entry["content"]: entry["id"] for entry in state.get("added_tokens") or ()}
    return {**tokens, **added}


def _of_slow(checkpoint: str, tokenizer: Any) -> dict[str, int]:
    """Read token → number from the files of a slow tokenizer; empty if they cannot be read."""
    names = getattr(tokenizer, "vocab_files_names", {}).values()
    if not any(os.path.isfile(os.path.join(checkpoint, name)) for name in names):
        return {}
    try:
        vocabulary: dict[str, int] = type(tokenizer).from_pretrained(checkpoint).get_vocab()
    except Exception:  # noqa: BLE001 (of another class, whose files this one refuses)
        return {}
    return vocabulary


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            state = json.load(stream)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
