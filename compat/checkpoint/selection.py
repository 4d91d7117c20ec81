"""Which checkpoint a run resumes from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from compat.checkpoint.io import unloadable
from compat.checkpoint.layout import INCOMPLETE, LAYOUT, STATE
from compat.checkpoint.manifest import MANIFEST
from compat.checkpoint.verify import problems
from compat.errors import BrokenCheckpointError

AUTO = "auto"
"""The value of `resume_from_checkpoint` that resumes if there is a checkpoint."""

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Choice:
    """The resolved value of `resume_from_checkpoint`.

    Attributes:
        checkpoint: the value to pass to HF.
        passed_over: checkpoint → its problems, for those that are newer and broken.
    """

    checkpoint: str | Path | bool | None
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return a sentence for each checkpoint that was passed over."""
        then = (
            f"resuming from `{self.checkpoint}`" if isinstance(self.checkpoint, str) else "there is no other"
        )
        return [
            f"`{path}` is passed over, {then}: {'; '.join(wrong)}."
            for path, wrong in self.passed_over.items()
        ]


def numbered(folder: str | Path) -> list[str]:
    """The checkpoints of a folder, the newest update step first."""
    if not os.path.isdir(folder):
        return []
    # Listing already identifies folders, so none is opened.
    with os.scandir(folder) as entries:
        found = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
        steps = {int(name[1]): entry.path for name, entry in found if name and entry.is_dir()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_whole(folder: str | Path, *, needs_weights: bool = True) -> str | None:
    """Return the newest intact checkpoint in `folder`.

    Mirrors `transformers.trainer_utils.get_last_checkpoint`, which returns the last one without a check.
    """
    return cast("str | None", choose(AUTO, folder, needs_weights=needs_weights).checkpoint)


def _was_ended(checkpoint: str) -> bool:
    """Whether a checkpoint was written to its end, and so was whole once."""
    there = {name for name in (MANIFEST, STATE, INCOMPLETE) if os.path.exists(os.path.join(checkpoint, name))}
    return bool(there) and INCOMPLETE not in there


def is_loadable(checkpoint: str | Path, *, is_fresh: bool = False) -> bool:
    """Whether a run can resume from a checkpoint, whose states must be plain data; weights may be anywhere.

    Args:
        checkpoint: a `checkpoint-N` folder.
        is_fresh: whether its bytes are known to be unchanged.
    """
    return is_plain(checkpoint) and not problems(checkpoint, needs_weights=False, is_fresh=is_fresh)


def is_plain(checkpoint: str | Path) -> bool:
    """Whether all states in a folder are plain data, without classes."""
    states = (os.path.join(checkpoint, part.file) for part in LAYOUT)
    return not any(os.path.isfile(file) and unloadable(file) for file in states)


class Disk:
    """The checkpoints of a run on one disk; the subclass for several disks treats them as one."""

    def numbered(self, folder: str | Path) -> list[str]:
        """The checkpoints of a folder, the newest update step first."""
        return numbered(folder)

    def has(self, checkpoint: str | Path) -> bool:
        """Whether a folder exists."""
        return os.path.isdir(checkpoint)

    def was_ended(self, checkpoint: str) -> bool:
        """Whether a checkpoint was written to its end, and so was whole once."""
        return _was_ended(checkpoint)

    def problems(
        self, checkpoint: str | Path, *, needs_weights: bool = True, processes: int | None = None
    ) -> list[str]:
        """Return the problems that prevent loading a checkpoint."""
        return problems(checkpoint, needs_weights=needs_weights, processes=processes)


ALONE = Disk()


def choose(
    asked: str | Path | bool | None,
    folder: str | Path,
    *,
    needs_weights: bool = True,
    processes: int | None = None,
    disk: Disk = ALONE,
) -> Choice:
    """The checkpoint that a run resumes from.

    Args:
        asked: the value of `resume_from_checkpoint`.
        folder: the folder that True and "auto" search.
        needs_weights: whether the weights must be at the paths of HF's own Trainer.
        processes: the number of processes that will load it.
        disk: the object that checks checkpoints.

    Returns:
        The newest intact one for True and "auto". If there is none at all, None for "auto", and True
        unchanged, for which HF raises its error. All other values unchanged.

    Raises:
        BrokenCheckpointError: the given checkpoint is broken; with True, all are broken; with "auto", all
            that were completely written are broken.
    """
    if asked is True or asked == AUTO:
        choice = Choice(None if asked == AUTO else asked)
        for path in disk.numbered(folder):
            if not (wrong := disk.problems(path, needs_weights=needs_weights, processes=processes)):
                choice.checkpoint = path
                break
            choice.passed_over[path] = wrong
        if choice.checkpoint is True and choice.passed_over:
            msg = (
                f"`resume_from_checkpoint=True`: no checkpoint in {str(folder)!r} is whole: "
                f"{' '.join(choice.notes())} Give the path of another one, or begin afresh without it."
            )
            raise BrokenCheckpointError(msg)
        ended = [path for path in choice.passed_over if disk.was_ended(path)]
        if choice.checkpoint is None and ended:
            msg = (
                f"`resume_from_checkpoint={AUTO!r}`: a run has saved itself in {str(folder)!r}, and none of "
                f"its checkpoints is as it was written: {' '.join(choice.notes())} Nothing is begun anew "
                f"over them. Where a change was meant, delete `{MANIFEST}` from the folder; to begin afresh, "
                f"move {', '.join(f'`{path}`' for path in ended)} away, or give another `output_dir`."
            )
            raise BrokenCheckpointError(msg)
        return choice
    if isinstance(asked, (str, Path)) and disk.has(asked):
        if wrong := disk.problems(asked, needs_weights=needs_weights, processes=processes):
            msg = (
                f"`resume_from_checkpoint={str(asked)!r}`: the checkpoint is broken, or was changed since it "
                f"was written: {'; '.join(wrong)}. Give an earlier one, or True for the newest whole one. "
                "Where the change was meant, delete `compat_manifest.json` from the folder."
            )
            raise BrokenCheckpointError(msg)
        return Choice(str(asked))
    return Choice(asked)
