"""The forms of a checkpoint, as a table that the command, the docs and the tests read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compat.checkpoint.convert import folders, lightning, sharded, weights, zero_shards
from compat.checkpoint.convert.common import STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compat.checkpoint.convert.common import Checkpoint, Options


@dataclass(frozen=True)
class Form:
    """A form of a checkpoint.

    Attributes:
        name: its name; two rows share one if a form has two representations.
        what: its description.
        is_it: whether a path has this form.
        read: reads a path.
        write: writes to a path that does not exist; None if the form can only be read.
        called: a regular expression for the names of paths to write.
        way_out: what to do instead if it cannot be written.
        root_of: returns the folder to read, if a path inside it may be passed.
    """

    name: str
    what: str
    is_it: Callable[[Path], bool]
    read: Callable[[Path, Options], Checkpoint]
    write: Callable[[Checkpoint, Path, Options], None] | None = None
    called: str | None = None
    way_out: str = ""
    root_of: Callable[[Path], Path] = lambda path: path


FORMS = (
    Form(
        "deepspeed",
        "a `checkpoint-N` or `global_stepN` folder of ZeRO 1, 2 or 3",
        zero_shards.is_deepspeed,
        zero_shards.read,
        way_out="DeepSpeed loads a checkpoint of any number of processes: resume the run under DeepSpeed, or "
        "load the weights by `from_pretrained` after a conversion `--to pretrained`",
        root_of=zero_shards.root_of,
    ),
    Form("lightning", "a `.ckpt` file", lightning.is_file, lightning.read_file, lightning.write, r".*\.ckpt"),
    Form(
        "lightning",
        "a folder of shards of `ModelParallelStrategy(save_distributed_checkpoint=True)`",
        lightning.is_folder,
        lightning.read_folder,
        way_out="Lightning loads a single file under every strategy",
    ),
    Form(
        "sharded",
        "a `checkpoint-N` folder of FSDP with `SHARDED_STATE_DICT`",
        sharded.is_sharded,
        sharded.read,
        sharded.write,
        root_of=sharded.root_of,
    ),
    Form(
        "hf",
        "a `checkpoint-N` folder of HF's Trainer or ours",
        lambda path: (path / STATE).is_file() and weights.place_of(path) is not None,
        folders.read,
        folders.write,
        r"checkpoint-\d+",
    ),
    Form(
        "pretrained",
        "a folder for `from_pretrained`: weights, configuration, tokenizer",
        lambda path: path.is_dir() and weights.place_of(path) is not None,
        folders.read_pretrained,
        folders.write_pretrained,
        r".*",
    ),
)
"""The forms in the order in which a path is tested; the first match is its form."""


def form_of(path: Path) -> Form | None:
    """Return the form of an existing path; None if no form matches."""
    return next((form for form in FORMS if form.is_it(path)), None)


def named(name: str) -> Form | None:
    """Return the form with a name, a writable one first; None if there is none."""
    rows = [form for form in FORMS if form.name == name]
    return next((form for form in rows if form.write), rows[0] if rows else None)


def called(path: Path) -> Form:
    """Return the form of a path to be written, from its name."""
    return next(form for form in FORMS if form.called and re.fullmatch(form.called, path.name))
