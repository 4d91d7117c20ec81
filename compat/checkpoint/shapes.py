"""Tables of the content of a checkpoint's small files, to find wrong types before use."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable, Mapping  # noqa: TC003 (of dataclasses)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.checkpoint.layout import CALLBACKS, OPTIMIZER_EXTRA, STATE, is_one_of
from compat.checkpoint.safe_unpickler import Inert, InertUnpickler

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 2**63
"""The upper bound of counts; data without length has as many epochs as an index can hold."""


@dataclass(frozen=True)
class Kind:
    """A type of values.

    Attributes:
        what: the description.
        fits: whether a value is of this type.
    """

    what: str
    fits: Callable[[Any], bool]

    def or_none(self) -> Kind:
        """Return the same type, with None allowed."""
        return Kind(f"{self.what} or null", lambda value: value is None or self.fits(value))


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < LARGEST


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


WHOLE = Kind("a whole number from 0 on", _is_whole)
NUMBER = Kind("a number from 0 on", _is_number)
ANY_NUMBER = Kind("a number", lambda value: type(value) in (int, float))
LIMIT = Kind("a whole number from -1 on", lambda value: value == -1 or _is_whole(value))
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECTS = Kind("a list of objects", _are_objects)
TEXTS = Kind("an object of texts", _are_texts)
EITHER = Kind("an object or a list", lambda value: isinstance(value, (dict, list)))
ROW = Kind("a tuple of three", lambda value: isinstance(value, tuple) and len(value) == 3)  # noqa: PLR2004
STATES = Kind("states by name", lambda value: isinstance(value, (dict, Inert)))
ANY = Kind("anything", lambda _: True)

STATE_OF_RUN: Mapping[str, Kind] = {
    "global_step": WHOLE,
    "epoch": NUMBER.or_none(),
    "max_steps": LIMIT,
    "num_train_epochs": NUMBER,
    "num_input_tokens_seen": NUMBER,
    "total_flos": Kind("a number from 0 on", lambda v: type(v) in (int, float) and 0 <= v < math.inf),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), NUMBER.or_none()),
    **dict.fromkeys(("train_batch_size", "best_global_step"), WHOLE.or_none()),
    "best_metric": ANY_NUMBER.or_none(),
    **dict.fromkeys(("best_model_checkpoint", "trial_name"), TEXT.or_none()),
    "log_history": OBJECTS.or_none(),
    "trial_params": OBJECT.or_none(),
    "stateful_callbacks": EITHER.or_none(),
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), FLAG),
}
"""Entry of `trainer_state.json` → its type."""

POSITION: Mapping[str, Kind] = {
    **dict.fromkeys(("epoch", "batches"), WHOLE),
    **dict.fromkeys(("is_over", "leaves_epoch", "has_ended"), FLAG),
    **dict.fromkeys(("depends_on", "devices"), STATES),
    **dict.fromkeys(("order", "ahead"), STATES.or_none()),
    "own": ANY,
    "rows": WHOLE.or_none(),
}
"""Entry of `data_state.pth` → its type."""


@dataclass(frozen=True)
class Shape:
    """The content of a file.

    Attributes:
        entries: entry → its type; other entries may be anything.
        needed: required entries.
    """

    entries: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()

    def wrong(self, value: object) -> str:
        """Describe the problem of a file's content; empty if there is none."""
        if not isinstance(value, dict):
            return f"a {type(value).__name__}, where entries by name are wanted"
        if missing := [name for name in self.needed if name not in value]:
            return f"its entry `{missing[0]}` is missing"
        for name, kind in self.entries.items():
            if name in value and not kind.fits(value[name]):
                return f"its entry `{name}` is {_described(value[name])}, where {kind.what} is wanted"
        return ""


INDEX_OF_WEIGHTS = Shape({"weight_map": TEXTS}, ("weight_map",))

OF_JSON: Mapping[str, Shape] = {
    STATE: Shape(STATE_OF_RUN, ("global_step",)),
    "*.index.json": INDEX_OF_WEIGHTS,
    "config.json": Shape({"model_type": TEXT, "architectures": LIST.or_none()}),
    "generation_config.json": Shape(),
    "adapter_config.json": Shape({"peft_type": TEXT.or_none()}),
    "*/adapter_config.json": Shape({"peft_type": TEXT.or_none()}),
}
"""JSON files → their content."""

OF_PICKLES: Mapping[str, Shape] = {
    "data_state*.pth": Shape(POSITION, ("epoch", "batches", "is_over", "depends_on")),
    "rng_state*.pth": Shape({"python": ROW}),
    "scheduler.pt": Shape(),
    "scaler.pt": Shape(),
    CALLBACKS: Shape({"callbacks": STATES, "callback_metrics": STATES}),
    OPTIMIZER_EXTRA: Shape(dict.fromkeys(("attributes", "groups", "optimizers", "schedulers"), STATES)),
}
"""Pickles of plain data → their content."""


def shape_of(name: str, table: Mapping[str, Shape]) -> Shape:
    """Return the shape of a file, from its path within a checkpoint; one that allows anything by default."""
    return next((shape for pattern, shape in table.items() if is_one_of(name, (pattern,))), _ANYTHING)


def wrong_in_json(name: str, text: str) -> str:
    """Describe the problem of a JSON file's text; empty if there is none.

    Args:
        name: path within a checkpoint.
        text: its content.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON, or cut short ({error})"
    return shape_of(name, OF_JSON).wrong(value)


def wrong_in_pickle(name: str, file: Path) -> str:
    """Describe the problem of a pickle's content, without looking up or calling any name.

    Args:
        name: path within a checkpoint.
        file: a torch archive; other files are not checked.
    """
    shape = shape_of(name, OF_PICKLES)
    if shape is _ANYTHING or not zipfile.is_zipfile(file):
        return ""
    with zipfile.ZipFile(file) as archive:
        member = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        with archive.open(member) as content:
            value = InertUnpickler(content).load()
    # Objects of classes are checked elsewhere.
    return "" if isinstance(value, Inert) else shape.wrong(value)


def _described(value: object) -> str:
    """Describe a value in a few characters."""
    text = json.dumps(value) if isinstance(value, (str, int, float, bool, type(None))) else ""
    return text if text and len(text) <= _SHORT else f"a {type(value).__name__}"


class _Anything(Shape):
    def wrong(self, value: object) -> str:
        return ""


_ANYTHING = _Anything()
_SHORT = 40
