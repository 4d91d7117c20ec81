from __future__ import annotations

import dataclasses
import gc
import importlib
import subprocess
import sys
import types
from typing import TYPE_CHECKING

import pytest
import transformers
import transformers.trainer
import transformers.trainer_seq2seq

import compat
from compat import patching
from compat.errors import InstallError
from compat.upstream.environment import contained
from compat.upstream.seams.common import HFTrainer
from tests.warm import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    compat.uninstall()
    assert transformers.Trainer is HFTrainer


def where(patch: object) -> tuple[object, str]:
    return sys.modules[patch.module], patch.name


@pytest.mark.parametrize("patch", patching.PATCHES, ids=lambda patch: f"{patch.module}.{patch.name}")
def test_each_name_is_replaced_and_restored(patch: object) -> None:
    __import__(patch.module)
    module, name = where(patch)
    original = getattr(module, name)
    compat.install()
    assert getattr(module, name) is getattr(compat, name)
    compat.uninstall()
    assert getattr(module, name) is original


def test_the_module_of_that_name_installs_too() -> None:
    code = (
        "import compat.install, transformers; "
        "compat.install(); print(transformers.Trainer.__module__); "
        "compat.uninstall(); print(transformers.Trainer.__module__)"
    )
    shown = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.split() == ["compat.trainer.trainer", "transformers.trainer"]


def test_installing_twice_is_installing_once() -> None:
    compat.install()
    compat.install()
    assert compat.installed()
    compat.uninstall()
    assert not compat.installed()
    assert transformers.Trainer is HFTrainer


def test_a_class_derived_before_is_rebased_and_put_back() -> None:
    class Before(HFTrainer):
        def compute_loss(self, *args: object, **kwargs: object) -> object:
            return super().compute_loss(*args, **kwargs)

    compat.install()
    assert issubclass(Before, compat.Trainer)
    compat.uninstall()
    assert Before.__bases__ == (HFTrainer,)


def test_a_class_derived_afterwards_is_ours() -> None:
    compat.install()

    class After(transformers.Seq2SeqTrainer):
        pass

    assert issubclass(After, compat.Trainer)


def test_a_name_imported_before_is_replaced_and_restored() -> None:
    library = types.ModuleType("a_library")
    library.Trainer = library.Renamed = HFTrainer
    sys.modules["a_library"] = library
    try:
        compat.install()
        assert library.Trainer is library.Renamed is compat.Trainer
        compat.uninstall()
        assert library.Trainer is library.Renamed is HFTrainer
    finally:
        del sys.modules["a_library"]


def test_a_missing_target_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = patching.Patch("transformers.trainer", "Trainor", "compat.trainer:Trainer")
    monkeypatch.setattr(patching, "PATCHES", (*patching.PATCHES, gone))
    with pytest.raises(InstallError, match=r"`transformers.trainer.Trainor`: not found"):
        compat.install()
    assert transformers.Trainer is HFTrainer
    assert not compat.installed()


def test_a_failure_half_way_undoes_what_was_done() -> None:
    class Stubborn(type):
        def __setattr__(cls, name: str, value: object) -> None:
            if name == "__bases__":
                msg = "cannot"
                raise TypeError(msg)
            super().__setattr__(name, value)

    class Fixed(HFTrainer, metaclass=Stubborn):
        pass

    try:
        with pytest.raises(InstallError, match=r"Call `compat.install\(\)` before importing it"):
            compat.install()
        assert transformers.Trainer is HFTrainer
        assert not compat.installed()
    finally:
        # Out of the list of derived classes, for the tests that follow.
        del Fixed
        gc.collect()


def test_arguments_made_before_take_the_names_of_every_generation(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Before(transformers.TrainingArguments):
        mine: int = 1

    @dataclasses.dataclass
    class Grandchild(Before):
        more: int = 2

    compat.install()
    try:
        with pytest.warns(FutureWarning, match="evaluation_strategy"):
            args = Grandchild(
                str(tmp_path),
                evaluation_strategy="epoch",
                train_sampling_strategy="sequential",
                lightning={"profiler": "simple"},
                more=3,
                use_cpu=True,
            )
    finally:
        compat.uninstall()
    assert (args.eval_strategy, args.train_sampling_strategy, args.mine, args.more) == (
        "epoch",
        "sequential",
        1,
        3,
    )
    assert args.lightning == {"profiler": "simple"}
    with contained():  # transformers 4 leaves its settings in the environment
        assert Grandchild(str(tmp_path), use_cpu=True).mine == 1
    with pytest.raises(TypeError, match="tomorrow"):
        Grandchild(str(tmp_path), tomorrow=True)


def test_a_constructor_written_before_hands_on_what_it_is_given(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Written(transformers.TrainingArguments):
        def __init__(self, folder: str, **kwargs: object) -> None:
            super().__init__(folder, **kwargs)

    compat.install()
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        args = Written(str(tmp_path), evaluation_strategy="epoch", use_cpu=True)
    assert args.eval_strategy == "epoch"


LIBRARIES = {
    "sentence_transformers": ("SentenceTransformerTrainer", "CrossEncoderTrainer", "SparseEncoderTrainer"),
    "setfit.trainer": ("BCSentenceTransformersTrainer",),
    "trl": ("SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer", "GRPOTrainer", "RLOOTrainer"),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_imported_before_are_on_ours_until_it_is_undone(library: str) -> None:
    module = pytest.importorskip(library, reason="a library that is optional")
    kinds = [getattr(module, name) for name in LIBRARIES[library]]
    before = [kind.__mro__ for kind in kinds]
    compat.install()
    assert all(issubclass(kind, compat.Trainer) for kind in kinds)
    compat.uninstall()
    assert [kind.__mro__ for kind in kinds] == before


def test_scripts_get_our_parser() -> None:
    compat.install()
    try:
        from transformers import HfArgumentParser

        assert HfArgumentParser is compat.HfArgumentParser
    finally:
        compat.uninstall()


@pytest.mark.parametrize("patch", patching.SUPPLIED, ids=lambda patch: f"{patch.module}.{patch.name}")
def test_dropped_names_are_there_while_installed(patch: object) -> None:
    module = importlib.import_module(patch.module)
    had_it = hasattr(module, patch.name)
    compat.install()
    assert hasattr(module, patch.name)
    compat.uninstall()
    assert hasattr(module, patch.name) is had_it
