"""Keeps a run away from everything that outlasts it: output folders, the Hub, services that log.

Patched in the process of the run only. Both Trainers run with the same patches.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.verification.mirror import Mirror

SERVICES: Final = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Variables of a run: services that a script itself logs to receive nothing."""

FOLDERS: Final = frozenset({"output_dir", "logging_dir"})
"""Arguments whose folders are replaced by folders of the run."""

FIXED: Final[dict[str, Any]] = {"push_to_hub": False, "report_to": []}
"""Arguments that have another value in a run than in the script."""

NOTES: Final = (
    "Each run works in a copy of the working folder, made of links, with output folders of its own, and the "
    "copy is removed. What the script itself writes to other absolute paths or existing folders is written.",
    "Nothing is pushed or reported: `push_to_hub=False`, `report_to=[]`.",
)
"""What reports say about it."""

_TRANSFORMERS: Final = (
    ("transformers.modeling_utils", "PreTrainedModel"),
    ("transformers.configuration_utils", "PretrainedConfig"),
    ("transformers.configuration_utils", "PreTrainedConfig"),
    ("transformers.generation.configuration_utils", "GenerationConfig"),
    ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase"),
    ("transformers.feature_extraction_utils", "FeatureExtractionMixin"),
    ("transformers.image_processing_base", "ImageProcessingMixin"),
    ("transformers.processing_utils", "ProcessorMixin"),
    ("peft.peft_model", "PeftModel"),
    ("sentence_transformers.base.model", "BaseModel"),
    ("sentence_transformers.SentenceTransformer", "SentenceTransformer"),
    ("sentence_transformers.cross_encoder.CrossEncoder", "CrossEncoder"),
    ("setfit.modeling", "SetFitModel"),
)
_AUTO: Final = (
    ("transformers.models.auto.auto_factory", "_BaseAutoModelClass"),
    ("transformers.models.auto.configuration_auto", "AutoConfig"),
    ("transformers.models.auto.tokenization_auto", "AutoTokenizer"),
)
SAVES: Final = tuple((*place, name) for place in _TRANSFORMERS for name in ("save_pretrained", "save"))
LOADS: Final = tuple((*place, "from_pretrained") for place in (*_TRANSFORMERS, *_AUTO))
PUSHES: Final = (
    *((*place, "push_to_hub") for place in _TRANSFORMERS),
    ("transformers.utils.hub", "PushToHubMixin", "push_to_hub"),
    ("transformers.trainer", "Trainer", "push_to_hub"),
)
"""Module, class and method, where installed: those that save to, and load from, the folder that is their
first parameter, and those that upload."""


class Isolation:
    """Redirects what a script writes.

    Args:
        mirror: the tree for all of it; the working folder is in it.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._patched: set[tuple[str, str, str]] = set()

    def inside(self, path: Any) -> Any:
        """Return the path that the run writes to in place of one of the script's, and make it free.

        Args:
            path: any folder. One that is relative, in the tree, or temporary stays as it is.
        """
        absolute = os.path.abspath(os.path.expanduser(os.fspath(path)))
        temporary = os.path.realpath(tempfile.gettempdir())
        if os.path.realpath(absolute).startswith(temporary + os.sep):
            return path
        inside = self.mirror.of(absolute)
        self.mirror.free(inside)
        return path if inside == absolute else inside

    def written(self, path: Any) -> Any:
        """Return the path in the tree in place of an absolute one, if the script has written there."""
        if not isinstance(path, (str, os.PathLike)) or not os.path.isabs(path):
            return path
        inside = self.mirror.of(os.path.abspath(path))
        is_written = os.path.isdir(inside) and not os.path.islink(inside)
        return inside if is_written else path

    def argument(self, name: str, value: Any) -> Any:
        """Return the value that an argument has in a run."""
        if name in FOLDERS and isinstance(value, (str, os.PathLike)):
            return self.inside(value)
        return type(FIXED[name])(FIXED[name]) if name in FIXED else value

    def patch_arguments(self) -> None:
        """Apply `argument` to all arguments, also to those that a script sets after they are made."""
        from transformers.training_args import TrainingArguments

        def __setattr__(arguments: Any, name: str, value: Any) -> None:  # noqa: N807 (takes its place)
            object.__setattr__(arguments, name, self.argument(name, value))

        TrainingArguments.__setattr__ = __setattr__

    def patch_classes(self) -> None:
        """Patch the methods of `SAVES`, `LOADS` and `PUSHES` of every module that is loaded by now."""
        for places, wrap in ((SAVES, self.saving), (LOADS, self._loading), (PUSHES, self._pushing)):
            for module, kind, method in places:
                self._patch(module, kind, method, wrap)

    def _patch(self, module: str, kind: str, method: str, wrap: Callable[[Any], Any]) -> None:
        where = (module, kind, method)
        # A library that is not loaded yet is looked at again when the script makes its Trainer.
        if where in self._patched or module.partition(".")[0] not in sys.modules:
            return
        try:
            owner = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError):
            return
        if method not in vars(owner):
            return
        self._patched.add(where)
        original = vars(owner)[method]
        if isinstance(original, classmethod):
            setattr(owner, method, classmethod(wrap(original.__func__)))
        elif callable(original):
            setattr(owner, method, wrap(original))

    def saving(self, original: Any) -> Any:
        """Wrap a method that saves to the folder that is its first parameter."""
        return _with_folder(original, self.inside)

    def _loading(self, original: Any) -> Any:
        return _with_folder(original, self.written)

    def _pushing(self, original: Any) -> Any:
        @functools.wraps(original)
        def push(*args: Any, **kwargs: Any) -> None:
            sys.stderr.write(f"compat verify: `{original.__qualname__}` is left out.\n")

        return push


def _with_folder(original: Any, folder: Callable[[Any], Any]) -> Any:
    """Wrap a method whose first parameter, after `self` or `cls`, is a folder; it may be None."""
    name = [*inspect.signature(original).parameters, "", ""][1]

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is not None:
            args = (folder(args[0]), *args[1:])
        elif kwargs.get(name) is not None:
            kwargs[name] = folder(kwargs[name])
        return original(self, *args, **kwargs)

    return wrapped
