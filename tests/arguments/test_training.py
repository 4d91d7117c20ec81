from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["TrainingArguments", "Seq2SeqTrainingArguments"])
def test_fields_and_defaults_are_those_of_transformers(name: str) -> None:
    def signature(cls: Any) -> list[tuple[str, Any]]:
        return [(field.name, repr(field.default)) for field in dataclasses.fields(cls)]

    assert signature(getattr(compat, name)) == signature(getattr(transformers, name))


@pytest.mark.parametrize("options", [{"bf16": True}, {"torch_compile_backend": "eager"}])
def test_arguments_leave_nothing_in_the_environment(tmp_path: Path, options: dict[str, Any]) -> None:
    before = dict(os.environ)
    compat.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options)
    assert dict(os.environ) == before


def test_one_run_does_not_inherit_the_precision_of_another(tmp_path: Path) -> None:
    common = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": []}
    half = compat.TrainingArguments(bf16=True, **common)
    full = compat.TrainingArguments(**common)
    precisions = [
        compat.Trainer(model=transformers.BertForMaskedLM(_tiny()), args=args).accelerator.mixed_precision
        for args in (half, full, half)
    ]
    assert precisions == ["bf16", "no", "bf16"]


def _tiny() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )


def test_arguments_copy_and_pickle(tmp_path: Path) -> None:
    args = compat.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to=[])
    for twin in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):  # noqa: S301 (our own bytes)
        assert type(twin) is compat.TrainingArguments
        assert twin.to_dict() == args.to_dict()


def test_a_token_is_never_shown(tmp_path: Path) -> None:
    args = compat.TrainingArguments(output_dir=str(tmp_path), hub_token="s3cret", use_cpu=True, report_to=[])  # noqa: S106
    assert "s3cret" not in repr(args) + str(args) + args.to_json_string()


def test_the_parser_reads_them(tmp_path: Path) -> None:
    parser = transformers.HfArgumentParser(compat.TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--learning_rate", "0.25", "--use_cpu", "--bf16"]
    )
    assert (args.learning_rate, args.bf16) == (0.25, True)
