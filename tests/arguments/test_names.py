from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import transformers

import compat
from compat.arguments.fields import FIELDS
from compat.arguments.generations import ALONE, OLD, migration
from compat.arguments.names import explained
from tests.conformance.test_arguments import ALONG, unlike

BASE: dict[str, Any] = {"output_dir": "out", "report_to": [], "use_cpu": True}
OLD_NAMES = [name for name, field in FIELDS.items() if field.is_old]
TODAYS = [
    name
    for name, field in FIELDS.items()
    if not field.is_old and name not in {"ddp_backend", "deepspeed", "parallelism_config"}
]


@dataclass
class Mine(compat.TrainingArguments):
    beta: float = 0.1


class Custom(compat.TrainingArguments):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


def by_parser(parser: type) -> Any:
    def make(**options: Any) -> Any:
        texts = {**options, "report_to": "none"}
        words = [text for name, value in texts.items() for text in (f"--{name}", str(value))]
        return parser(compat.TrainingArguments).parse_args_into_dataclasses(words)[0]

    return make


WAYS = {
    "class": compat.TrainingArguments,
    "seq2seq": compat.Seq2SeqTrainingArguments,
    "dataclass": Mine,
    "constructor": Custom,
    "replace": lambda **options: dataclasses.replace(compat.TrainingArguments(**BASE), **options),
    "HF's parser": by_parser(transformers.HfArgumentParser),
    "our parser": by_parser(compat.HfArgumentParser),
    "dict": lambda **options: compat.HfArgumentParser(Mine).parse_dict(options)[0],
}


def future_warnings(make: Any, **options: Any) -> list[Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(**{**BASE, **options})
    return [warning for warning in caught if warning.category is FutureWarning]


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_warns_once_where_it_is_given(name: str) -> None:
    (warning,) = future_warnings(compat.TrainingArguments, **ALONG.get(name, {}), **{name: unlike(name)})
    assert warning.filename == __file__
    assert str(warning.message).startswith(f"`{name}` is an old name: ")
    assert (f"`{OLD[name].says}`" if name in OLD else ALONE[name]) in str(warning.message)


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_it_warns_at_the_line_of_the_caller_in_every_way(make: Any) -> None:
    found = future_warnings(make, warmup_ratio=0.25, logging_dir="logs")
    assert sorted(str(warning.message).split("`")[1] for warning in found) == ["logging_dir", "warmup_ratio"]
    assert {warning.filename for warning in found} == {__file__}


@pytest.mark.parametrize("name", TODAYS)
def test_a_name_of_today_does_not_warn(name: str) -> None:
    along = {} if name == "gradient_checkpointing_kwargs" else ALONG.get(name, {})
    found = future_warnings(compat.Seq2SeqTrainingArguments, **along, **{name: unlike(name)})
    # transformers 5 says it itself, of names that it still has.
    assert [w for w in found if "will be removed in v6" not in str(w.message)] == []


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_defaults_do_not_warn(make: Any) -> None:
    assert future_warnings(make) == []


def test_a_line_that_warns_is_named_exactly() -> None:
    with pytest.warns(FutureWarning) as caught:
        compat.TrainingArguments(**BASE, warmup_ratio=0.5)
    first = test_a_line_that_warns_is_named_exactly.__code__.co_firstlineno
    assert [warning.lineno - first for warning in caught] == [2]


@pytest.mark.parametrize("name", FIELDS)
def test_every_name_is_explained(name: str) -> None:
    text = explained(name)
    assert text.endswith(".")
    assert text.startswith("Old name") == (name in OLD)


def test_a_name_that_was_not_given_has_the_default_of_its_generation() -> None:
    args = compat.TrainingArguments(**BASE)
    for name in OLD_NAMES:
        if name not in {"logging_dir", "evaluation_strategy", "no_cuda", "include_tokens_per_second"}:
            held = read(args, name)
            expected = {"per_gpu_train_batch_size": {None, 8}, "per_gpu_eval_batch_size": {None, 8}}
            assert held in expected.get(name, {FIELDS[name].default}), name
    assert args.no_cuda in {True, False}
    assert args.evaluation_strategy == "no"


def read(args: Any, name: str) -> Any:
    """An attribute as a script writes it."""
    return eval(f"args.{name}", {"args": args})  # noqa: S307 (what stands in code differs from getattr)


HF_FIELDS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
WITHOUT_SUCCESSOR = sorted(
    name for name in compat.TrainingArguments.other_names if migration(name, dict.fromkeys(HF_FIELDS)) is None
)
NOBODY = object()


def shows(args: Any, name: str) -> set[bool]:
    """Whether arguments have a name, by every way of asking for it."""
    return {
        hasattr(args, name),
        getattr(args, name, NOBODY) is not NOBODY,
        name in vars(args),
        name in args.to_dict(),
        f"\n{name}=" in str(args),
        name in {field.name for field in dataclasses.fields(args)},
        name in dataclasses.asdict(args),
    }


@pytest.mark.parametrize("kind", [compat.TrainingArguments, compat.Seq2SeqTrainingArguments, Mine, Custom])
def test_releases_can_be_told_apart_by_names_that_nobody_has_set(kind: Any) -> None:
    args, native = kind(**BASE), transformers.TrainingArguments
    assert {name for name in WITHOUT_SUCCESSOR if shows(args, name) != {False}} == set()
    # For those of the installed release nothing changes.
    assert hasattr(args, "save_safetensors") is ("save_safetensors" in HF_FIELDS)
    assert {name for name in HF_FIELDS if not hasattr(args, name)} == set()
    assert isinstance(args, native)


@pytest.mark.parametrize("name", WITHOUT_SUCCESSOR)
def test_whoever_sets_a_name_finds_it(name: str) -> None:
    args = compat.TrainingArguments(**{**BASE, **ALONG.get(name, {})})
    value = object() if FIELDS[name].kind == "object" else unlike(name)
    setattr(args, name, value)
    assert (getattr(args, name, NOBODY), hasattr(args, name), vars(args)[name]) == (value, True, value)
    assert name in {field.name for field in dataclasses.fields(args)}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_a_name_that_is_given_in_any_way_is_found(make: Any) -> None:
    args = make(**{**BASE, "past_index": 2})
    assert shows(args, "past_index") == {True}
    assert (args.past_index, getattr(args, "past_index", -1)) == (2, 2)


def test_names_that_have_a_successor_say_what_that_one_says() -> None:
    args = compat.TrainingArguments(**BASE, eval_strategy="epoch")
    assert (getattr(args, "evaluation_strategy", None), args.evaluation_strategy) == ("epoch", "epoch")


def test_a_loop_over_the_fields_of_arguments_finds_each() -> None:
    args = Mine(**BASE)
    copied = Mine(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    )
    assert copied == args
    assert copy.deepcopy(args) == args == pickle.loads(pickle.dumps(args))  # noqa: S301 (its own)
    assert dataclasses.replace(args, seed=3).seed == 3


def test_absent_names_are_answered_as_any_other() -> None:
    args = compat.TrainingArguments(**BASE)
    name = WITHOUT_SUCCESSOR[0]
    with pytest.raises(AttributeError, match=f"'TrainingArguments' object has no attribute '{name}'"):
        getattr(args, name)
