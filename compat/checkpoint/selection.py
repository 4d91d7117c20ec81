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
"""The value of `resume_from_checkpoint` that resumes where there is something to resume from."""

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Choice:
    """What `resume_from_checkpoint` comes to.

    Attributes:
        checkpoint: what HF is to be given.
        passed_over: checkpoint → its problems, for those that are newer and broken.
    """

    checkpoint: str | Path | bool | None
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """A sentence for each checkpoint that was passed over."""
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
    # Listing tells what is a folder: none is looked at.
    with os.scandir(folder) as entries:
        found = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
        steps = {int(name[1]): entry.path for name, entry in found if name and entry.is_dir()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_whole(folder: str | Path, *, needs_weights: bool = True) -> str | None:
    """The newest checkpoint in `folder` that is whole.

    Mirrors `transformers.trainer_utils.get_last_checkpoint`, which takes the last one as it is.
    """
    return cast("str | None", choose(AUTO, folder, needs_weights=needs_weights).checkpoint)


def _was_ended(checkpoint: str) -> bool:
    """Whether a checkpoint was written to its end, and so was whole once."""
    there = {name for name in (MANIFEST, STATE, INCOMPLETE) if os.path.exists(os.path.join(checkpoint, name))}
    return bool(there) and INCOMPLETE not in there


def is_loadable(checkpoint: str | Path, *, is_fresh: bool = False) -> bool:
    """Whether a run can resume from a checkpoint, wherever its weights lie; states must be without classes.

    Args:
        checkpoint: a `checkpoint-N` folder.
        is_fresh: whether its bytes are known to be as they were written.
    """
    return is_plain(checkpoint) and not problems(checkpoint, needs_weights=False, is_fresh=is_fresh)


def is_plain(checkpoint: str | Path) -> bool:
    """Whether what states a folder has are without classes."""
    states = (os.path.join(checkpoint, part.file) for part in LAYOUT)
    return not any(os.path.isfile(file) and unloadable(file) for file in states)


class Disk:
    """What one disk has of a run's checkpoints; where a job has several, all of them are looked at as one."""

    def numbered(self, folder: str | Path) -> list[str]:
        """The checkpoints of a folder, the newest update step first."""
        return numbered(folder)

    def has(self, checkpoint: str | Path) -> bool:
        """Whether a folder is there."""
        return os.path.isdir(checkpoint)

    def was_ended(self, checkpoint: str) -> bool:
        """Whether a checkpoint was written to its end, and so was whole once."""
        return _was_ended(checkpoint)

    def problems(
        self, checkpoint: str | Path, *, needs_weights: bool = True, processes: int | None = None
    ) -> list[str]:
        """What keeps a checkpoint from being loaded."""
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
        asked: `resume_from_checkpoint` as given.
        folder: where True and "auto" look for one.
        needs_weights: whether the weights must lie where HF's own Trainer has them.
        processes: how many will load it.
        disk: what looks at checkpoints.

    Returns:
        The newest whole one for True and "auto". Where there is none at all, None for "auto", and True as it
        is: HF has words for it. All else as it is.

    Raises:
        BrokenCheckpointError: the checkpoint that was given is broken, or with True all are; or with "auto"
            all are that were written to their end.
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
