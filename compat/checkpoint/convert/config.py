"""Finds the configuration of a model if a checkpoint lacks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compat.checkpoint.convert.common import ADAPTER_CONFIG, CONFIG, TRAINING_ONLY, content
from compat.checkpoint.convert.names import OF_ADAPTERS
from compat.checkpoint.manifest import MANIFEST
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compat.checkpoint.convert.common import Checkpoint, Options

_TEXTS = (".json", ".txt", ".jinja", ".model", ".py")


def add_config(
    checkpoint: Checkpoint, options: Options, *places: Path, names: Iterable[str] | None = None
) -> None:
    """Add the missing configuration to a checkpoint: the requested one, or one from a nearby folder.

    The configuration of an adapters' base model is not written with the adapters.

    Args:
        checkpoint: the checkpoint; modified in place.
        options: the options of the conversion.
        places: folders to search.
        names: the names of the weights, if the checkpoint has none yet.

    Raises:
        CheckpointError: the requested file does not exist, or the weights are those of unknown adapters.
    """
    given, needed = options.config, (CONFIG, ADAPTER_CONFIG)
    if given is not None and not given.is_file() and not any((given / name).is_file() for name in needed):
        msg = f"`--config {given}`: there is no `{CONFIG}`. Give one, or a folder that has one."
        raise CheckpointError(msg)
    told = () if given is None else (given,)
    are_adapters = any(OF_ADAPTERS in name for name in (checkpoint.weights if names is None else names))
    if are_adapters and not checkpoint.has_adapters:
        _add(checkpoint, ADAPTER_CONFIG, *told, *places)
        if not checkpoint.has_adapters:
            msg = (
                f"`{checkpoint.source}`: its weights are those of adapters, and no {ADAPTER_CONFIG} was "
                "found in it or beside it. Give a folder that has one as `--config PATH`."
            )
            raise CheckpointError(msg)
    if checkpoint.has_adapters:
        base = Path(checkpoint.told(ADAPTER_CONFIG).get("base_model_name_or_path") or "")
        found = _in(CONFIG, *told) or _in(CONFIG, base)
        checkpoint.base = content(found) if found else None
    elif given is not None:
        checkpoint.files.pop(CONFIG, None)
        beside = {path.name: content(path) for path in _small_files(given)}
        checkpoint.files = {**beside, **checkpoint.files}
        _add(checkpoint, CONFIG, given)
    elif CONFIG not in checkpoint.files:
        _add(checkpoint, CONFIG, *places)


def _in(name: str, *places: Path) -> Path | None:
    """Return the named file in the first folder that has it; a place may be the file itself."""
    files = (place / name if place.is_dir() else place for place in places)
    return next((file for file in files if file.is_file()), None)


def _add(checkpoint: Checkpoint, name: str, *places: Path) -> None:
    found = _in(name, *places)
    if found is not None:
        checkpoint.files[name] = content(found)
        checkpoint.notes.append(f"{name} taken from `{found}`")


def _small_files(folder: Path) -> list[Path]:
    """Return the files that describe a model or its tokenizer, without weights and training state."""
    return [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.is_file()
        and path.suffix in _TEXTS
        and not path.name.endswith(".index.json")
        and path.name not in (MANIFEST, CONFIG, ADAPTER_CONFIG)
        and not TRAINING_ONLY.fullmatch(path.name)
    ]
