from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import transformers

import compat
from compat.arguments.setters import PARAMETERS
from compat.errors import UnknownArgumentError

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}

VALUES: dict[str, Any] = {
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "in_order": False,
    "jit_mode": True,
    "multiprocessing_context": "spawn",
    "prefetch_factor": 4,
    "revision": "main",
    "warmup_ratio": 0.25,
}
NEEDED: dict[str, dict[str, Any]] = {
    "set_push_to_hub": {"model_id": "me/m"},
    "set_dataloader": {"num_workers": 1},
}


@pytest.mark.parametrize(
    ("method", "parameter", "field"),
    [
        (m, parameter, field)
        for m, parameters in PARAMETERS.items()
        for parameter, field in parameters.items()
    ],
)
def test_a_parameter_of_any_generation_sets_its_argument(method: str, parameter: str, field: str) -> None:
    args = compat.TrainingArguments(**BASE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert getattr(args, method)(**NEEDED.get(method, {}), **{parameter: VALUES[parameter]}) is args
    assert getattr(args, field) == VALUES[parameter]


@pytest.mark.parametrize(
    "method", [name for name in dir(transformers.TrainingArguments) if name.startswith("set_")]
)
def test_a_setter_does_what_that_of_transformers_does(method: str) -> None:
    theirs, ours = transformers.TrainingArguments, compat.TrainingArguments
    assert list(inspect.signature(getattr(ours, method)).parameters)[
        : len(inspect.signature(getattr(theirs, method)).parameters)
    ] == list(inspect.signature(getattr(theirs, method)).parameters)
    args = compat.TrainingArguments(**BASE)
    same = compat.TrainingArguments(**BASE)
    getattr(args, method)(**NEEDED.get(method, {}))
    getattr(theirs, method)(same, **NEEDED.get(method, {}))
    assert args == same


def test_a_setter_after_an_old_name() -> None:
    with pytest.warns(FutureWarning, match="warmup_ratio"):
        args = compat.TrainingArguments(**BASE, warmup_ratio=0.5)
    args.set_lr_scheduler(warmup_ratio=0.25)
    assert args.get_warmup_steps(100) == 25
    args.set_lr_scheduler(warmup_steps=7)
    assert args.get_warmup_steps(100) == 7


def test_a_setter_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        compat.TrainingArguments(**BASE).set_training(nonsense=1)


@dataclass
class Mine(compat.TrainingArguments):
    beta: float = 0.1


class Any_(compat.TrainingArguments):  # noqa: N801 (takes any)
    def __init__(self, **options: Any) -> None:
        options.pop("own", None)
        super().__init__(**options)


def test_a_subclass_takes_its_own_names_and_no_others() -> None:
    assert Mine(**BASE, beta=2).beta == 2
    assert Any_(**BASE, own=1).output_dir == "out"
    with pytest.raises(TypeError, match="betta"):
        Mine(**BASE, betta=2)
    with pytest.raises(UnknownArgumentError, match="TrainingArguments has no such argument"):
        Any_(**BASE, owned=1)
