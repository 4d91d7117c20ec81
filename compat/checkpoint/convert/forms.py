"""The forms of a checkpoint, as a table: the command, the docs and the tests read it."""

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
    """One form.

    Attributes:
        name: of it; two rows may share one where there are two ways to write it down.
        what: what it is.
        is_it: whether a path is one.
        read: reads it.
        write: writes it to a path that does not exist; None where it is only read.
        called: what paths that are to be written are called, as a regular expression.
        way_out: what to do instead of writing it.
        root_of: the folder that is read, where only a part of it may be given.
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
"""In the order in which a path is held against them; the first that fits is its form."""


def form_of(path: Path) -> Form | None:
    """The form of what lies at a path; None if it is none of them."""
    return next((form for form in FORMS if form.is_it(path)), None)


def named(name: str) -> Form | None:
    """The form of a name, the one that is written first; None if there is none."""
    rows = [form for form in FORMS if form.name == name]
    return next((form for form in rows if form.write), rows[0] if rows else None)


def called(path: Path) -> Form:
    """The form that a path to be written is of by its name."""
    return next(form for form in FORMS if form.called and re.fullmatch(form.called, path.name))
