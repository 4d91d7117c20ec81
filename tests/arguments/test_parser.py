from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.arguments.parser import gathered, gathered_keys, without_secrets
from compat.errors import ArgumentError, UnknownArgumentError

if TYPE_CHECKING:
    from pathlib import Path

BASE = ["--output_dir", "out", "--report_to", "none"]


@dataclass
class Model:
    name: str = "bert"
    layers: int = 2
    frozen: bool = False


@dataclass
class Data:
    path: str
    words: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture(autouse=True)
def old_names_are_no_matter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def parsed(*words: str, parser: Any = compat.HfArgumentParser) -> Any:
    (args,) = parser(compat.TrainingArguments).parse_args_into_dataclasses([*BASE, *words])
    return args


def test_texts_stay_texts_whichever_way_round_a_union_is() -> None:
    parser = compat.HfArgumentParser(compat.TrainingArguments)
    (action,) = (action for action in parser._actions if action.dest == "fsdp_config")
    action.type = dict
    parser._widen()
    assert action.type is str


FOR_BOTH: list[tuple[list[str], str, Any]] = [
    (["--no_cuda"], "use_cpu", True),
    (["--no_cuda", "--bf16"], "bf16", True),
    (["--no_cuda", "False"], "use_cpu", False),
    (["--no_cuda=true"], "use_cpu", True),
    (["--overwrite_output_dir"], "overwrite_output_dir", True),
    (["--learning_rate=0.5"], "learning_rate", 0.5),
    (["--learning-rate", "0.5"], "learning_rate", 0.5),
    (["--learning_rate", "1e-4"], "learning_rate", 1e-4),
    (["--bf16", "--use_cpu"], "bf16", True),
    (["--fp16", "no"], "fp16", False),
    (["--evaluation_strategy", "epoch"], "eval_strategy", "epoch"),
    (["--evaluation-strategy", "epoch"], "eval_strategy", "epoch"),
    (["--warmup_ratio=1.0"], "warmup_ratio", 1.0),
    (["--save_safetensors", "False"], "save_safetensors", False),
    (["--no_save_safetensors"], "save_safetensors", False),
    (["--group_by_length"], "group_by_length", True),
    (["--label_names", "a", "b"], "label_names", ["a", "b"]),
    (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
    (["--lightning", '{"profiler": "simple"}'], "lightning", {"profiler": "simple"}),
    (["--max_steps", "-1"], "max_steps", -1),
    (["--per_gpu_train_batch_size", "4"], "train_batch_size", 4),
    (["--split_batches"], "split_batches", True),
    (["--lightning.profiler", "simple"], "lightning", {"profiler": "simple"}),
    (["--lightning.limit_train_batches=3"], "lightning", {"limit_train_batches": 3}),
    (["--lightning.limit_train_batches", "0.5"], "lightning", {"limit_train_batches": 0.5}),
    (["--lightning.fast_dev_run"], "max_steps", 1),
    (["--lightning.detect_anomaly", "--use_cpu"], "lightning", {"detect_anomaly": True}),
    (
        ["--lightning.benchmark", "False", "--lightning.profiler=simple"],
        "lightning",
        {"benchmark": False, "profiler": "simple"},
    ),
    (["--lightning.devices", "[0]"], "lightning", {"devices": [0]}),
    (["--lightning.max_epochs=2"], "num_train_epochs", 2),
    (
        ["--lightning", '{"benchmark": true}', "--lightning.profiler", "simple"],
        "lightning",
        {"benchmark": True, "profiler": "simple"},
    ),
]
"""Words → an attribute, and its value."""

OURS: list[tuple[list[str], str, Any]] = [
    (["--no-save-safetensors"], "save_safetensors", False),
]


@pytest.mark.parametrize(("words", "name", "value"), FOR_BOTH)
@pytest.mark.parametrize("parser", [transformers.HfArgumentParser, compat.HfArgumentParser])
def test_words_are_read(parser: Any, words: list[str], name: str, value: Any) -> None:
    ours_alone = words == ["--no_save_safetensors"] and parser is transformers.HfArgumentParser
    if ours_alone and "save_safetensors" not in transformers.TrainingArguments.__dataclass_fields__:
        pytest.skip("a field that is not HF's has no such option there")
    assert getattr(parsed(*words, parser=parser), name) == value


@pytest.mark.parametrize(("words", "name", "value"), OURS)
def test_words_that_only_we_read(words: list[str], name: str, value: Any) -> None:
    assert getattr(parsed(*words), name) == value


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (
            ["--lerning_rate", "1"],
            ["`--lerning_rate`", "Did you mean `--learning_rate`?", "TrainingArguments"],
        ),
        (["--lerning_rate=1"], ["`--lerning_rate=1`", "Did you mean `--learning_rate`?"]),
        (["stray"], ["`stray`: not used by any of TrainingArguments"]),
        (["--lightning.profilr"], ["`--lightning.profilr`: no value", "Did you mean `profiler`?"]),
        (["--lightning.profilr", "simple"], ["Did you mean `profiler`?"]),
        (["--lightning", "{bad"], ["not JSON"]),
        (["--hub_tokn", "s3cret"], ["`--hub_tokn`", "Did you mean `--hub_token`?"]),
        (["--hub_tokn=s3cret"], ["`--hub_tokn=<secret>`"]),
    ],
)
def test_what_is_not_known_is_answered(words: list[str], texts: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        parsed(*words)
    for text in texts:
        assert text in str(caught.value)
    # The value of an option is none by itself.
    assert str(caught.value).count("\n") == 0
    assert isinstance(caught.value, ValueError)


def test_words_of_a_wrong_type_end_the_program_as_in_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--max_steps", "many")
    assert caught.value.code == 2
    assert "argument --max_steps" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [(compat.TrainingArguments,), (Model, compat.TrainingArguments), (Model,)])
def test_remaining_words_are_returned(kind: tuple[type, ...]) -> None:
    words = ["--layers", "3", "--zzz", "x"] if Model in kind else ["--output_dir", "out", "--zzz", "x"]
    *_, remaining = compat.HfArgumentParser(kind).parse_args_into_dataclasses(
        words, return_remaining_strings=True
    )
    assert remaining == ["--zzz", "x"]


def test_several_dataclasses_at_once() -> None:
    parser = compat.HfArgumentParser((Model, Data, compat.Seq2SeqTrainingArguments))
    model, data, args = parser.parse_args_into_dataclasses(
        [*BASE, "--layers", "3", "--frozen", "--path", "p", "--words", "a", "b", "--predict_with_generate"]
    )
    assert (model, data) == (Model(layers=3, frozen=True), Data("p", ["a", "b"]))
    assert args.predict_with_generate is True
    with pytest.raises(UnknownArgumentError, match=r"any of Model, Data, .*\n?.*Did you mean `--layers`"):
        parser.parse_args_into_dataclasses([*BASE, "--path", "p", "--layrs", "3"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--name", "x", "--layers=3", "--frozen"],
        ["--frozen", "no"],
        ["--layers", "3", "--nope"],
        ["--layers", "many"],
        ["--lay", "3"],
    ],
)
def test_without_arguments_of_ours_it_is_transformers_parser(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def outcome(parser: Any) -> Any:
        try:
            return parser(Model).parse_args_into_dataclasses(words)
        except (ValueError, SystemExit) as error:
            return isinstance(error, ValueError), capsys.readouterr().err

    assert outcome(compat.HfArgumentParser) == outcome(transformers.HfArgumentParser)


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--evaluation_strategy", "--learning_rate", "--lightning", "Old name: the same is said by"):
        assert text in shown


GIVEN: dict[str, Any] = {
    "output_dir": "out",
    "report_to": "none",
    "learning_rate": 0.5,
    "evaluation_strategy": "epoch",
    "lightning": {"profiler": "simple"},
    "lightning.limit_train_batches": 3,
}


def files(folder: Path) -> dict[str, Path]:
    (folder / "a.json").write_text(json.dumps(GIVEN))
    (folder / "a.yaml").write_text(
        "output_dir: out\nreport_to: none\nlearning_rate: 0.5\nevaluation_strategy: epoch\n"
        "lightning:\n  profiler: simple\nlightning.limit_train_batches: 3\n"
    )
    return {path.suffix: path for path in folder.iterdir()}


@pytest.mark.parametrize("way", [".json", ".yaml", "dict"])
def test_files_and_dicts_are_read(tmp_path: Path, way: str) -> None:
    parser = compat.HfArgumentParser(compat.TrainingArguments)
    read = {".json": parser.parse_json_file, ".yaml": parser.parse_yaml_file, "dict": parser.parse_dict}[way]
    (args,) = read(str(files(tmp_path)[way]) if way != "dict" else dict(GIVEN))
    assert (args.learning_rate, args.eval_strategy) == (0.5, "epoch")
    assert args.lightning == {"profiler": "simple", "limit_train_batches": 3}


def test_keys_that_are_not_known_are_answered_or_passed_over() -> None:
    parser = compat.HfArgumentParser((Model, compat.TrainingArguments))
    with pytest.raises(UnknownArgumentError) as caught:
        parser.parse_dict({"output_dir": "out", "lerning_rate": 1, "hub_tokn": "s3cret", "layers": 3})
    assert (
        "`lerning_rate=1`: not used by any of Model, TrainingArguments. Did you mean `learning_rate`?"
        in str(caught.value)
    )
    assert "s3cret" not in str(caught.value)
    model, _ = parser.parse_dict({"output_dir": "out", "nope": 1, "layers": 3}, allow_extra_keys=True)
    assert model.layers == 3


def test_yaml_that_reads_a_number_as_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("output_dir: out\nlearning_rate: 2e-5\n")
    with pytest.raises(ArgumentError, match=r"`learning_rate='2e-5'`.*2\.0e-5"):
        compat.HfArgumentParser(compat.TrainingArguments).parse_yaml_file(str(tmp_path / "a.yaml"))


def test_args_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.args").write_text("--learning_rate 0.5 --lightning.profiler simple --no_cuda")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), *BASE, "--learning_rate", "0.25"])
    (args,) = compat.HfArgumentParser(compat.TrainingArguments).parse_args_into_dataclasses()
    assert (args.learning_rate, args.use_cpu) == (0.25, True)
    assert args.lightning == {"profiler": "simple"}
    (args,) = compat.HfArgumentParser(compat.TrainingArguments).parse_args_into_dataclasses(
        [*BASE, "--more", str(tmp_path / "script.args")], args_file_flag="--more"
    )
    assert args.learning_rate == 0.5


def test_what_is_typed_leaves_out_defaults() -> None:
    parser = compat.HfArgumentParser(compat.Seq2SeqTrainingArguments)
    assert parser.typed(["--no_cuda", "--lightning.profiler", "simple", "--learning_rate=0.5"]) == {
        "no_cuda": True,
        "lightning": '{"profiler": "simple"}',
        "learning_rate": 0.5,
    }
    assert compat.HfArgumentParser(compat.TrainingArguments).typed([]) == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--a", "b"], ["--a", "b"]),
        (["--lightning.x", "1", "--a"], ["--a", "--lightning", '{"x": 1}']),
        (["--lightning.x=", "b"], ["b", "--lightning", '{"x": ""}']),
        (["--lightning.x", "a=b"], ["--lightning", '{"x": "a=b"}']),
        (["--lightning.x", "-1"], ["--lightning", '{"x": -1}']),
        (["--lightning.x", "None"], ["--lightning", '{"x": null}']),
        (
            ["--lightning", '{"x": 1, "y": 1}', "--lightning.y=2", "b"],
            ["b", "--lightning", '{"x": 1, "y": 2}'],
        ),
        (["--lightning={bad", "--lightning"], ["--lightning={bad", "--lightning"]),
    ],
)
def test_flags_are_gathered(words: list[str], expected: list[str]) -> None:
    assert gathered(words) == expected


def test_keys_are_gathered() -> None:
    assert gathered_keys({"a": 1}) == {"a": 1}
    assert gathered_keys({"lightning": {"a": 1, "b": 1}, "lightning.b": 2}) == {"lightning": {"a": 1, "b": 2}}
    assert gathered_keys({"lightning": '{"a": 1}', "lightning.b": 2}) == {"lightning": {"a": 1, "b": 2}}
    assert gathered_keys({"lightning": None, "lightning.b": 2}) == {"lightning": {"b": 2}}
    with pytest.raises(ArgumentError, match="flags by name"):
        gathered_keys({"lightning": "{bad", "lightning.b": 2})


def test_both_ways_of_giving_flags_join() -> None:
    args = parsed(
        "--lightning", '{"profiler": "simple", "benchmark": true}', "--lightning.profiler", "advanced"
    )
    assert args.lightning == {"profiler": "advanced", "benchmark": True}


def test_words_without_secrets() -> None:
    words = ["--hub_token", "x", "--seed", "y", "--hf-token=z", "--hub_token", "--bf16", "w"]
    hidden = ["--hub_token", "<secret>", "--seed", "y", "--hf-token=<secret>", "--hub_token", "--bf16", "w"]
    assert list(without_secrets(words)) == hidden
