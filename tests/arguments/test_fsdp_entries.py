from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import compat
from compat.arguments.fsdp_entries import FSDP_CONFIG, config_of, problems, take_fsdp, words
from compat.errors import ArgumentError
from compat.upstream import started
from compat.upstream.environment import Here

if TYPE_CHECKING:
    from pathlib import Path


def found(fsdp: Any, config: Any = None, **others: Any) -> str:
    return "\n".join(problems({"fsdp": fsdp, "fsdp_config": config, **others}))


@pytest.mark.parametrize(
    ("fsdp", "config", "expected"),
    [
        (True, None, {}),
        ("full_shard", None, {"reshard_after_forward": True}),
        ("shard_grad_op auto_wrap", {}, {"reshard_after_forward": False}),
        (["full_shard", "offload"], None, {"reshard_after_forward": True, "cpu_offload": True}),
        ("full_shard", {"fsdp_version": 1}, {"version": 1, "reshard_after_forward": "full_shard"}),
        ("hybrid_shard", None, {"version": 1, "reshard_after_forward": "hybrid_shard"}),
        (
            ["no_shard", "auto_wrap"],
            {"xla": False},
            {"version": 1, "xla": False, "reshard_after_forward": "no_shard"},
        ),
        (
            True,
            {"reshard_after_forward": "hybrid_shard_zero2"},
            {"version": 1, "reshard_after_forward": "hybrid_shard_zero2"},
        ),
        ("full_shard", '{"fsdp_reshard_after_forward": false}', {"reshard_after_forward": False}),
        (
            "offload shard_grad_op",
            {"cpu_offload": False},
            {"cpu_offload": False, "reshard_after_forward": False},
        ),
    ],
    ids=str,
)
def test_words_and_entries_say_one_thing(fsdp: Any, config: Any, expected: dict[str, Any]) -> None:
    assert config_of(fsdp, config) == expected


def test_words_of_every_form() -> None:
    from transformers.trainer_utils import FSDPOption

    assert (
        words([FSDPOption.FULL_SHARD, "offload"]) == words("full_shard offload") == ("full_shard", "offload")
    )
    assert words(True) == words(False) == words(None) == ()


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps({"fsdp_version": 1, "min_num_params": 3}))
    assert config_of("no_shard", file) == {
        "version": 1,
        "min_num_params": 3,
        "reshard_after_forward": "no_shard",
    }
    assert found(True, str(file)) == ""
    file.write_text("version: 1")
    assert "the file holds no JSON" in found(True, str(file))
    assert "no such file" in found(True, str(tmp_path / "other.json"))
    file.write_text("[1]")
    assert "no entries by name" in found(True, str(file))


@pytest.mark.parametrize(
    ("fsdp", "config", "others", "texts"),
    [
        ("ful_shard", None, {}, ["`fsdp='ful_shard'`: 'ful_shard' is none of its words", "`full_shard`?"]),
        ("xyz", None, {}, ["Give full_shard, shard_grad_op, hybrid_shard"]),
        ("true", None, {}, ["`fsdp='true'`: text. Give 'full_shard'"]),
        ("offload", None, {}, ["`fsdp='offload'`", "Give 'full_shard offload'."]),
        (["full_shard", "no_shard"], None, {}, ["full_shard and no_shard exclude each other"]),
        (True, {"version": 3}, {}, ["`fsdp_config={'version': 3}`", "versions 1 and 2"]),
        (
            "hybrid_shard",
            {"version": 2},
            {},
            ["`fsdp_config={'version': 2}` with `hybrid_shard`", "{'version': 1}"],
        ),
        (True, {"reshard_after_forward": "shard_grad_op"}, {}, ["Give 'reshard_after_forward': False."]),
        (True, {"version": 1, "reshard_after_forward": True}, {}, ["takes the name of a way to shard"]),
        (True, {"activation_checkpointing_offload": True}, {}, ["nothing to offload"]),
        (
            True,
            {"version": 1, "activation_checkpointing": True, "activation_checkpointing_offload": "true"},
            {},
            ["version 2 alone has it"],
        ),
        (
            True,
            {"fsdp_activation_checkpoint": True},
            {},
            ["'activation_checkpoint': True", "`activation_checkpointing`?"],
        ),
        (
            True,
            {"fsdp_sharding_strategy": 1},
            {},
            ["'sharding_strategy': 1", "HF calls it `reshard_after_forward`."],
        ),
        (
            True,
            {"state_dict_type": "SHARDED"},
            {},
            ["`fsdp_config={'state_dict_type': 'SHARDED'}`", "Give FULL_STATE_DICT, LOCAL_STATE_DICT"],
        ),
        (
            True,
            {"min_num_params": 2, "transformer_layer_cls_to_wrap": "A"},
            {},
            [
                "`fsdp_config={'min_num_params': 2, 'transformer_layer_cls_to_wrap': 'A'}`",
                "by size or by class",
            ],
        ),
        (True, {"auto_wrap_policy": "?"}, {}, ["Give TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP, NO_WRAP."]),
        (
            "full_shard",
            {"activation_checkpointing": "true"},
            {"gradient_checkpointing": True},
            [
                "`gradient_checkpointing=True` and `fsdp_config={'activation_checkpointing': True}`",
                "Remove gradient_",
            ],
        ),
        (
            True,
            {"state_dict_type": "SHARDED_STATE_DICT"},
            {"save_only_model": True},
            [
                "`save_only_model=True` with `fsdp_config={'state_dict_type': 'SHARDED_STATE_DICT'}`",
                "'FULL_STATE_DICT'",
            ],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(fsdp: Any, config: Any, others: dict[str, Any], texts: list[str]) -> None:
    told = found(fsdp, config, **others)
    assert [text for text in texts if text not in told] == []
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("fsdp", "config", "others"),
    [
        (None, {"no_such_entry": 1}, {}),
        ("", "nowhere.json", {"gradient_checkpointing": True}),
        ("full_shard auto_wrap offload", None, {"save_only_model": True, "gradient_checkpointing": True}),
        (
            "auto_wrap",
            {"version": "2", "activation_checkpointing": "false"},
            {"gradient_checkpointing": True},
        ),
        (True, {"xla": True, "version": 7}, {}),
        (True, dict.fromkeys(FSDP_CONFIG.keys() - {"version"}), {}),
        (True, {f"fsdp_{key}": None for key in FSDP_CONFIG.keys() - {"version"}}, {}),
        (True, {"version": 1, "reshard_after_forward": "FULL_SHARD"}, {}),
        (True, {"backward_prefetch": "backward_pre", "state_dict_type": 1}, {}),
    ],
)
def test_what_is_right_passes(fsdp: Any, config: Any, others: dict[str, Any]) -> None:
    assert found(fsdp, config, **others) == ""


def test_version_1_is_written_where_it_is_implied_and_nowhere_else() -> None:
    given: dict[str, Any] = {"min_num_params": 2}
    values = {"fsdp": "hybrid_shard", "fsdp_config": given}
    take_fsdp(values)
    assert values["fsdp_config"] == {"min_num_params": 2, "version": 1}
    assert given == {"min_num_params": 2}
    for same in (
        {"fsdp": "full_shard", "fsdp_config": None},
        {"fsdp": "hybrid_shard", "fsdp_config": {"fsdp_version": 1}},
        {"fsdp": "", "fsdp_config": "nowhere.json"},
        {"fsdp": "hybrid_shard", "fsdp_config": "nowhere.json"},
    ):
        values = dict(same)
        take_fsdp(values)
        assert values == same


def test_a_word_of_version_1_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "look", lambda **_: Here(device_type="cuda", devices=1))
    monkeypatch.setattr(started, "start", lambda *_: None)
    with pytest.warns(UserWarning, match="`fsdp='hybrid_shard'`: version 1 of FSDP alone has it"):
        args = compat.TrainingArguments(str(tmp_path), report_to=[], fsdp="hybrid_shard auto_wrap")
    assert args.fsdp_config["version"] == 1
    made = compat.plan(args, accelerator="cuda", devices=2)
    notes = {setting.field: setting.note for setting in made.settings}
    assert made.strategy == "fsdp"
    assert "of version 1 alone" in notes["fsdp_config.version"]
    again = compat.TrainingArguments(
        str(tmp_path), report_to=[], fsdp="hybrid_shard", fsdp_config={"fsdp_version": 1}
    )
    assert again.fsdp_config["version"] == 1


def test_on_a_cpu_it_is_refused_when_the_arguments_are_made(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        compat.TrainingArguments(str(tmp_path), use_cpu=True, fsdp="hybrid_shard")
    assert str(caught.value).startswith("`fsdp='hybrid_shard'` with `fsdp_config={'version': 1}`: version 1")
    assert len(str(caught.value).splitlines()) == 1
