"""Atomic conversion of a checkpoint into another form."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from compat.checkpoint.atomic import delete, is_of_the_disk, partial_of, put
from compat.checkpoint.convert.checking import refuse_damage, size_of
from compat.checkpoint.convert.common import Options
from compat.checkpoint.convert.forms import FORMS, Form, called, form_of, named
from compat.checkpoint.convert.lightning import PREFIX
from compat.checkpoint.convert.secrets import leave_out_secrets
from compat.checkpoint.counting import telling
from compat.checkpoint.flushing import flush
from compat.errors import CheckpointError, CompatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compat.checkpoint.convert.common import Checkpoint


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        path: the path that was written.
        source: the form that was read.
        form: the form that was written.
        tensors: number of weights.
        size: bytes on the disk.
        notes: remarks for the user.
    """

    path: Path
    source: str
    form: str
    tensors: int
    size: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a summary in one line."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        size = f"{self.tensors} tensors, {self.size:,} bytes"
        return f"{self.path}: {self.form}, {size}, from {self.source}{notes}"


def convert(
    src: str | Path,
    dst: str | Path,
    to: str | None = None,
    max_shard_size: str | int = "5GB",
    *,
    dtype: str | torch.dtype | None = None,
    config: str | Path | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> Converted:
    """Convert a checkpoint into another form, with at most about two of its tensors in memory.

    Args:
        src: a checkpoint of any form; the form is detected.
        dst: the path to write, which appears atomically.
        to: `hf`, `lightning`, `sharded` or `pretrained`; derived from the name of `dst` if None.
        max_shard_size: the maximum size of a weights file.
        dtype: the type of floating-point weights, with `to="pretrained"`; unchanged if None.
        config: a config.json, or a folder that has one, for a checkpoint that has none.
        prefix: the prefix of the model's names in a Lightning checkpoint, if it cannot be detected.
        overwrite: whether to replace an existing `dst`.
        quiet: whether to hide the progress.

    Raises:
        CheckpointError: it cannot be read or written; the error names the path, the reason and a remedy.
    """
    source, target = Path(os.path.abspath(src)), Path(os.path.abspath(dst))
    read, write = _form_to_read(source), _form_to_write(target, to)
    options = Options(max_shard_size, _dtype(dtype, write), None if config is None else Path(config), prefix)
    if write.write is None:
        msg = f"`{dst}`: the form `{write.name}` is read and never written: {write.way_out}."
        raise CheckpointError(msg)
    # The prefix of what is written may be said.
    if prefix not in (None, PREFIX, PREFIX.removesuffix(".")) and read.name != "lightning":
        msg = (
            f"`prefix={prefix!r}`: it says how names begin in a Lightning checkpoint that is read, and "
            f"`{src}` is `{read.name}`. Leave it out; "
            f"names in a `.ckpt` that is written begin with `{PREFIX}`."
        )
        raise CheckpointError(msg)
    if os.path.lexists(target) and not overwrite:
        msg = f"`{dst}`: it is there already. Give another name, or `--overwrite`."
        raise CheckpointError(msg)
    if target in source.parents:
        msg = f"`{dst}`: `{src}` lies in it, and would be gone. Give another name."
        raise CheckpointError(msg)
    checkpoint = _read(read, source, options, quiet=quiet)
    partial = partial_of(target)
    delete(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _shown("converting", checkpoint.size(), quiet=quiet):
            write.write(checkpoint, partial, options)
        for path in (*partial.rglob("*"), partial):
            flush(path)
        size = size_of(partial)
        put(partial, target)
    except CompatError:
        raise
    except Exception as error:
        if not is_of_the_disk(error):
            raise _no_sense(source, read, error) from error
        msg = f"`{dst}`: not written ({error}). See to the space and the permissions of its folder."
        raise CheckpointError(msg) from error
    finally:
        delete(partial)
    notes = tuple(checkpoint.notes)
    return Converted(target, read.name, write.name, len(checkpoint.weights), size, notes)


def _form_to_read(source: Path) -> Form:
    form = form_of(source)
    if form is None:
        what = "none of the forms that are known" if source.exists() else "no such file or folder"
        known = "; ".join(f"{form.name}: {form.what}" for form in FORMS)
        msg = f"`{source}`: {what}. Give one of these ({known})."
        raise CheckpointError(msg)
    return form


def _form_to_write(target: Path, to: str | None) -> Form:
    form = called(target) if to is None else named(to)
    if form is None:
        writable = ", ".join(dict.fromkeys(form.name for form in FORMS if form.write))
        msg = f"`--to {to}`: no such form. Give one of {writable}."
        raise CheckpointError(msg)
    return form


def _dtype(asked: str | torch.dtype | None, form: Form) -> torch.dtype | None:
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if asked is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        msg = f"`--dtype {asked}`: no floating-point type of torch's. Give float32, bfloat16 or float16."
        raise CheckpointError(msg)
    if form.name != "pretrained":
        msg = f"`--dtype {asked}`: the form `{form.name}` is for resuming, and keeps its types. Leave it out."
        raise CheckpointError(msg)
    return found


def _read(form: Form, source: Path, options: Options, *, quiet: bool) -> Checkpoint:
    """Check a checkpoint, and read its structure without its data."""
    root = form.root_of(source)
    try:
        with _shown("checking", size_of(root), quiet=quiet):
            refuse_damage(root)
        checkpoint = form.read(source, options)
        leave_out_secrets(checkpoint)
    except CompatError:
        raise
    except Exception as error:
        raise _no_sense(source, form, error) from error
    return checkpoint


def _no_sense(source: Path, form: Form, error: Exception) -> CheckpointError:
    """Return the error for a file without checksums, which may hold anything and make its reader fail."""
    msg = (
        f"`{source}`: its content is not that of a checkpoint of the form `{form.name}` "
        f"({type(error).__name__}: {error}). Copy it again, whole, or give another one."
    )
    return CheckpointError(msg)


@contextlib.contextmanager
def _shown(what: str, total: int, *, quiet: bool) -> Iterator[None]:
    """Show a progress bar of the bytes that are read in this context."""
    bar: Any = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet, desc=what)
    with bar, telling(bar.update):
        yield
        bar.update(bar.total - bar.n)
