"""What every argument does, seen in runs with it and without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import compat
from compat.translate.rules import RULES
from tests.effects import EFFECTS
from tests.effects.effect import Bench, Effect, same, settings_kept
from tests.effects.strategy import RETIRED

if TYPE_CHECKING:
    from pathlib import Path


def test_every_rule_has_an_effect() -> None:
    assert {effect.field for effect in EFFECTS} == set(RULES)


def test_every_effect_has_its_own_name() -> None:
    names = [effect.name for effect in EFFECTS]
    assert len(names) == len(set(names))


@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")  # Runs last no second here.
@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.name)
def test_effect(effect: Effect, tmp_path: Path) -> None:
    without, _ = run(effect, tmp_path / "without", given=False)
    with_it, warned = run(effect, tmp_path / "with", given=True)
    if isinstance(effect.expected, tuple):
        assert (without, with_it) == effect.expected
    else:
        assert effect.expected(without, with_it), f"without: {without}\nwith it: {with_it}"
    assert_warned(effect, warned)


@pytest.mark.parametrize("effect", [e for e in RETIRED if e.expected is same], ids=lambda effect: effect.name)
def test_what_is_retired_can_still_be_read(effect: Effect, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match=effect.field):
        args = compat.TrainingArguments(str(tmp_path), use_cpu=True, **{effect.field: effect.value})
    assert getattr(args, effect.field) == effect.value


def run(effect: Effect, folder: Path, *, given: bool) -> tuple[Any, list[list[str]]]:
    """Run the script of an effect in an empty folder, and return what it saw and which warnings it caused."""
    folder.mkdir()
    with settings_kept(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bench = Bench(effect.options(given=given), patch)
        return effect.observe(bench), bench.warned


def assert_warned(effect: Effect, warned: list[list[str]]) -> None:
    """Check that an old name warns once whenever it is used, and tells the new one; others never warn."""
    for messages in warned:
        about_it = [message for message in messages if re.search(rf"\b{effect.field}\b", message)]
        assert len(about_it) == int(effect.warns), messages
        assert all(effect.replaced_by in message for message in about_it)
        about_base = [m for m in messages if any(re.search(rf"\b{name}\b", m) for name in effect.base)]
        assert set(about_it) | set(about_base) == set(messages)
