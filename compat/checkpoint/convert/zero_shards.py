"""DeepSpeed checkpoints: the fp32 weights of ZeRO's three stages, assembled without DeepSpeed."""

from __future__ import annotations

import functools
import math
import pickle
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from compat.checkpoint.convert import folders, lazy, torchfile
from compat.checkpoint.convert.common import Checkpoint
from compat.checkpoint.convert.skeleton import saved_once, skeleton_of
from compat.checkpoint.deepspeed_files import LATEST
from compat.checkpoint.pickles import refuse_code
from compat.checkpoint.safe_unpickler import Inert
from compat.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import IO

    import torch

    from compat.checkpoint.convert.common import Options

_STEP = re.compile(r"global_step\d+")
_STATES = re.compile(r"(?:\w*zero_pp_rank_(\d+)_)?mp_rank_(\d+)_(model|optim)_states\.pt")

_MISSING = "`{folder}`: files of some processes are missing. Copy it again, whole."

_TENSORS = re.compile(
    r"""collections\.OrderedDict | torch\._utils\._rebuild_(tensor_v2|tensor_v3|parameter)
    | torch\._tensor\._rebuild_from_type_v2 | torch\.nn\.parameter\.Parameter
    | torch\.(Size|Tensor|device|(u?int|b?float|complex|bool)\d*)""",
    re.VERBOSE,
)
"""The only names that are looked up when such a file is read; all others become inert stand-ins."""


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if _TENSORS.fullmatch(f"{module}.{name}"):
            return super().find_class(module, name)
        return type(name, (Inert,), {"named": f"{module}.{name}", "__module__": __name__})


class _Pickle:
    """Replaces the module `pickle` in `torch.load`."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], **_: object) -> Any:
        """Do the same as `pickle.load`, with that unpickler."""
        return _Unpickler(file).load()


def is_deepspeed(path: Path) -> bool:
    """Whether a folder is a DeepSpeed checkpoint, or a `checkpoint-N` folder that contains one."""
    return _parts(path) is not None


def root_of(path: Path) -> Path:
    """Return the `checkpoint-N` folder; DeepSpeed's folder in it may be passed as well."""
    folder = _parts(path)
    return path if folder is None else folder.parent


def _parts(path: Path) -> Path | None:
    """Return the folder of DeepSpeed's files."""
    if _STEP.fullmatch(path.name) and any(path.glob("*_states.pt")):
        return path
    latest = path / LATEST
    name = latest.read_text("utf-8", "replace").strip() if latest.is_file() else ""
    return path / name if _STEP.fullmatch(name) and (path / name).is_dir() else None


def read(path: Path, options: Options) -> Checkpoint:
    """Read the weights, and the other files of the checkpoint."""
    folder = _parts(path)
    assert folder is not None
    checkpoint = Checkpoint(path, _weights(folder))
    folders.read_beside(checkpoint, folder.parent, options, folder.parent.parent)
    # The scheduler's state is useless without the optimizer's.
    checkpoint.scheduler = checkpoint.scaler = None
    checkpoint.notes.append("DeepSpeed's optimizer is left out")
    checkpoint.weights = saved_once(checkpoint.weights, skeleton_of(checkpoint))
    return checkpoint


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    models, optimizers = _states(folder, "model"), _states(folder, "optim")
    first = models[0]
    module: Mapping[str, torch.Tensor] = first["module"]
    parts = [states["optimizer_state_dict"] for states in optimizers]
    if not parts or "zero_stage" not in parts[0]:
        return dict(module)
    _require_all(folder, parts)
    is_third = "fp32_flat_groups" in parts[0]
    weights = {name: module[name] for name in first["buffer_names"]}
    weights.update(_frozen(models, is_third=is_third))
    weights.update((_third if is_third else _first_two)(first["param_shapes"], parts, folder))
    shared = {name: weights[of] for name, of in dict(first["shared_params"] or {}).items() if of in weights}
    weights.update(shared)
    return {name: weights[name] for name in module if name in weights} | weights


def _states(folder: Path, kind: str) -> list[Any]:
    """Read the files of all processes, in the order of their ranks."""
    found = {}
    for path in folder.iterdir():
        name = _STATES.fullmatch(path.name)
        if "expert" in path.name or (name and int(name[2])):
            what = "experts and tensor parallel models of DeepSpeed's are not read"
            msg = f"`{path}`: {what}. Load it under DeepSpeed, and save it with `save_16bit_model`."
            raise CheckpointError(msg)
        if name and name[3] == kind:
            found[int(name[1] or 0)] = path
    if sorted(found) != list(range(len(found))) or (kind == "model" and not found):
        raise CheckpointError(_MISSING.format(folder=folder))
    for path in found.values():
        # The file is read below without looking up any class.
        refuse_code(path, is_loaded_whole=False)
    return [torchfile.read(found[rank], pickle_module=_Pickle) for rank in sorted(found)]


def _require_all(folder: Path, parts: list[Any]) -> None:
    """Check that the number of files matches the number of processes recorded in them, if recorded."""
    told = parts[0].get("partition_count", len(parts))
    if max(told if isinstance(told, (list, tuple)) else [told], default=1) != len(parts):
        raise CheckpointError(_MISSING.format(folder=folder))


def _first_two(
    shapes: list[Mapping[str, torch.Size]], parts: list[Any], folder: Path
) -> dict[str, torch.Tensor]:
    """Stages 1 and 2: each parameter group is one flat tensor, split into a piece for each process."""
    found = {}
    for group, names in enumerate(shapes):
        pieces = [part["single_partition_of_fp32_groups"][group] for part in parts]
        offset = 0
        for name, shape in names.items():
            count = math.prod(shape)
            found[name] = _joined(shape, _cut(pieces, offset, count))
            offset += count
        if offset > sum(piece.numel() for piece in pieces):
            raise CheckpointError(_MISSING.format(folder=folder))
    return found


def _third(shapes: list[Mapping[str, torch.Size]], parts: list[Any], folder: Path) -> dict[str, torch.Tensor]:
    """Stage 3: each parameter is split into a piece for each process."""
    found, offset = {}, 0
    rows = [part["fp32_flat_groups"] for part in parts]
    for name, shape in chain.from_iterable(group.items() for group in shapes):
        length = math.ceil(math.prod(shape) / len(rows))
        pieces = [piece for row in rows for piece in _cut(row, offset, length)]
        found[name] = _joined(shape, pieces)
        offset += length
    if offset > min(sum(piece.numel() for piece in row) for row in rows):
        raise CheckpointError(_MISSING.format(folder=folder))
    return found


def _frozen(models: list[Any], *, is_third: bool) -> dict[str, torch.Tensor]:
    """Return the frozen parameters, which no optimizer holds."""
    shapes = dict(models[0].get("frozen_param_shapes") or {})
    holders = models if is_third else models[:1]
    return {
        name: _joined(shape, [holder["frozen_param_fragments"][name].flatten() for holder in holders])
        for name, shape in shapes.items()
    }


def _cut(row: list[torch.Tensor], offset: int, count: int) -> list[torch.Tensor]:
    """Return `count` elements from `offset` on, out of a sequence of one-dimensional tensors."""
    found, end = [], offset + count
    start = 0
    for piece in row:
        first, last = max(offset, start), min(end, start + piece.numel())
        if first < last:
            found.append(piece[first - start : last - start])
        start += piece.numel()
    return found


def _joined(shape: torch.Size, pieces: list[torch.Tensor]) -> torch.Tensor:
    make = functools.partial(_join, tuple(shape), pieces)
    return lazy.declared(shape, pieces[0].dtype, lazy.Assembled(make))


def _join(shape: tuple[int, ...], pieces: list[torch.Tensor]) -> torch.Tensor:
    whole = lazy.memory(math.prod(shape) * pieces[0].dtype.itemsize).view(pieces[0].dtype)
    start = 0
    for piece in pieces:
        # The last process pads its piece of a parameter.
        count = min(piece.numel(), whole.numel() - start)
        whole[start : start + count].copy_(lazy.filled(piece[:count]))
        start += count
    return whole.view(shape)
