"""One argument that is explained without imports, against the plan that has them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import compat
from compat.arguments.fields import FIELDS
from compat.arguments.parser import HfArgumentParser
from compat.cli import explain, single
from compat.errors import CompatError

NOT_LOADED = ("torch", "transformers", "lightning")

WORDS = {
    "bool": ([], ["True"], ["no"], ["on"]),
    "int": (["7"], ["1"], ["0"], ["1e3"], ["-1"]),
    "float": (["0.25"], ["2"], ["1e-4"], ["-1e-4"], ["0"]),
    "str": (["some"], ["no"], ["steps"], ["cosine"], ["sgd"], ["end"]),
}
"""Kind of a field → words behind its option."""


def planned(words: list[str]) -> Any:
    """The plan's decision on the argument of a command line, or the problem."""
    name = words[0].removeprefix("--").partition("=")[0].replace("-", "_")
    try:
        made = compat.plan(explain.gather(words))
    except (CompatError, SystemExit) as error:
        return error
    return next((setting for setting in made.settings if setting.field == name), None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", FIELDS)
def test_the_answer_is_that_of_the_plan(name: str) -> None:
    behind = WORDS.get(FIELDS[name].kind.rstrip("?"), (["some"], ["none"]))
    for words in ([f"--{name}", *each] for each in behind):
        answer = single.explained(words)
        assert answer is None or answer == planned(words), words


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "2e-5"],
        ["--bf16"],
        ["--bf16", "True"],
        ["--max-steps=10"],
        ["--eval_strategy", "steps"],
        ["--evaluation_strategy", "epoch"],
        ["--optim", "sgd"],
        ["--lr_scheduler_type", "cosine"],
        ["--gradient_accumulation_steps", "4"],
        ["--output_dir", "out"],
        ["--push_to_hub"],
    ],
    ids=" ".join,
)
def test_what_people_ask_is_answered_at_once(words: list[str]) -> None:
    answer = single.explained(words)
    assert answer is not None
    assert answer == planned(words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["args.yaml"],
        ["learning_rate", "1"],
        ["--learning_rate"],
        ["--learning_rate", "1", "--bf16"],
        ["--learning_rat", "1"],
        ["--fp16"],
        ["--fsdp", "full_shard"],
        ["--use_cpu"],
        ["--ddp_find_unused_parameters", "True"],
        ["--adam_beta1", "2"],
        ["--optim", "none_such"],
        ["--load_best_model_at_end"],
    ],
    ids=" ".join,
)
def test_what_needs_the_plan_is_left_to_it(words: list[str]) -> None:
    assert single.explained(words) is None


def test_choices_are_known_to_the_installed_release() -> None:
    parser = HfArgumentParser(compat.Seq2SeqTrainingArguments)
    known = {action.dest: set(action.choices) for action in parser._actions if action.choices}
    known["evaluation_strategy"] = known["eval_strategy"]
    for name, values in single.CHOICES.items():
        assert set(values) <= known.get(name, set(values)), name
    text = {name for name, field in FIELDS.items() if field.kind.startswith("str")}
    assert known.keys() & text <= single.CHOICES.keys(), "values that are not checked"


def test_nothing_is_imported_for_an_answer() -> None:
    script = f"""
import sys
from compat.cli import main
assert main(["explain", "--bf16", "True"]) == 0
print(sorted(set(sys.modules) & set({NOT_LOADED})))
"""
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "Trainer(precision='bf16-mixed')" in shown
    assert explain.MORE in shown
