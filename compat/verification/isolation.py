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
    "Each run has its own output folder: `output_dir`, `logging_dir` and the folders of `save_model` and "
    "`save_pretrained` are redirected, and removed afterwards. Files that the script writes by itself are "
    "written.",
    "`push_to_hub=False` and `report_to=[]` apply, and calls of `push_to_hub` do nothing.",
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
        home: the folder for all of it. The folder for temporary files has to be the run's own, too.
    """

    def __init__(self, home: str) -> None:
        self.home = os.path.realpath(home)
        self.temporary = os.path.realpath(tempfile.gettempdir())
        self._patched: set[tuple[str, str, str]] = set()

    def inside(self, path: Any) -> str:
        """Return the folder of the run that stands for a folder of the script's.

        Args:
            path: any folder; one below the run's, or below that for temporary files, stays.
        """
        real = os.path.realpath(os.path.expanduser(os.fspath(path)))
        if _is_below(real, self.home) or _is_below(real, self.temporary):
            return str(path)
        relative = os.path.relpath(real, os.getcwd())
        if relative.startswith(os.pardir) or os.path.isabs(relative):
            relative = os.path.join("elsewhere", os.path.splitdrive(real)[1].lstrip(os.sep))
        return os.path.join(self.home, relative)

    def written(self, path: Any) -> Any:
        """Return the folder of the run in place of `path`, if the script has written there."""
        if not isinstance(path, (str, os.PathLike)):
            return path
        inside = self.inside(path)
        return inside if os.path.exists(inside) else path

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


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
