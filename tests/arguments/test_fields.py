from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

import compat
from compat.arguments.fields import is_secret, masked, shown, shown_of_unknown
from compat.arguments.training import fit_to_save
from compat.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hf_" + "abc" * 9


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub_token", True),
        ("push_to_hub_token", True),
        ("hub_tokn", True),
        ("api_key", True),
        ("WANDB_API_KEY", True),
        ("hf-token", True),
        ("password", True),
        ("include_num_input_tokens_seen", False),
        ("eos_token", False),
        ("pad_token", False),
        ("image_key", False),
        ("learning_rate", False),
    ],
)
def test_which_names_are_those_of_secrets(name: str, expected: bool) -> None:
    assert is_secret(name) is expected


def test_what_is_nested_is_masked() -> None:
    value = {"project": "x", "settings": [{"api_key": TOKEN, "n": 1}], "token": None}
    expected = {"project": "x", "settings": [{"api_key": "<secret>", "n": 1}], "token": None}
    assert masked("logger", value) == expected
    assert shown("logger", value) == f"logger={expected!r}"
    assert shown("hub_token", TOKEN) == "hub_token=<secret>"
    plain = {"a": [1, {"b": (2, 3)}]}
    assert masked("x", plain) is plain


def test_of_what_is_not_known_only_numbers_are_shown() -> None:
    assert shown_of_unknown("lerning_rate", 0.1) == "lerning_rate=0.1"
    assert shown_of_unknown("wandb", TOKEN) == "wandb=<str>"
    assert shown_of_unknown("wandb", {"x": TOKEN}) == "wandb=<dict>"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"lightning": {"wandb": TOKEN}},
            r"`lightning=\{'wandb': <str>\}`: Lightning's Trainer has no such flag",
        ),
        ({"lightning": TOKEN}, "`lightning=<str>`: not JSON"),
        (
            {"lightning": {"min_epochs": {"token": TOKEN}}},
            r"`lightning=\{'min_epochs': \{'token': '<secret>'",
        ),
        ({"lightnin": TOKEN}, r"`lightnin=<str>`: .*Did you mean `lightning`"),
        (
            {"fsdp": "full_shard", "fsdp_config": {"wandb": TOKEN}},
            r"`fsdp_config=\{'wandb': <str>\}`: no such entry",
        ),
        ({"accelerator_config": "{" + TOKEN}, "`accelerator_config=<str>`: not JSON"),
    ],
)
def test_no_error_shows_a_token(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told) as error:
        compat.TrainingArguments(str(tmp_path), **given)
    assert TOKEN not in str(error.value)


def test_a_nested_token_is_neither_shown_nor_saved(tmp_path: Path) -> None:
    entries = {"api_key": TOKEN, "num_cycles": 2}
    args = compat.TrainingArguments(
        str(tmp_path), hub_token=TOKEN, lr_scheduler_kwargs=entries, report_to=[], use_cpu=True
    )
    for text in (
        str(args),
        repr(args),
        str(args.to_dict()),
        str(args.to_sanitized_dict()),
        args.to_json_string(),
    ):
        assert TOKEN not in text
    assert args.to_dict()["lr_scheduler_kwargs"] == {"api_key": "<secret>", "num_cycles": 2}
    assert args.to_dict()["hub_token"] == "<HUB_TOKEN>"  # noqa: S105
    assert TOKEN not in compat.plan(args).to_json()
    with fit_to_save(args):
        assert args.hub_token == TOKEN
        assert args.lr_scheduler_kwargs == entries
        saved = pickle.loads(pickle.dumps(args))  # noqa: S301 (our own)
    assert (saved.hub_token, saved.lr_scheduler_kwargs) == (None, {"api_key": None, "num_cycles": 2})
    assert args.lr_scheduler_kwargs is entries
