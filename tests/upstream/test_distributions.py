from __future__ import annotations

import importlib
from typing import Any

import lightning.pytorch as ours
import pytest
import pytorch_lightning as theirs

from compat.engine.build import quiet
from compat.errors import ArgumentError
from compat.upstream.distributions import ROLES, check_distribution, role_in_other


class Own(theirs.Callback): ...


class OnTheirs(theirs.callbacks.EarlyStopping): ...


class Module(theirs.LightningModule): ...


def test_both_distributions_have_every_role() -> None:
    for role in ROLES:
        of_ours = importlib.import_module(role.module)
        of_theirs = importlib.import_module(role.module.replace("lightning.pytorch", "pytorch_lightning"))
        assert getattr(of_ours, role.name) is not getattr(of_theirs, role.name)


@pytest.mark.parametrize(
    ("thing", "role"),
    [
        (Own(), "Callback"),
        (Own, "Callback"),
        (theirs.callbacks.Timer, "Callback"),
        (theirs.loggers.CSVLogger, "Logger"),
        (Module(), "LightningModule"),
        (theirs.LightningDataModule(), "LightningDataModule"),
        (theirs.profilers.SimpleProfiler(), "Profiler"),
    ],
)
def test_what_is_of_the_other_distribution_is_known_by_its_role(thing: Any, role: str) -> None:
    assert role_in_other(thing).name == role


@pytest.mark.parametrize("thing", [ours.Callback(), ours.callbacks.Timer, ours.LightningModule(), 3, None])
def test_all_else_has_none(thing: Any) -> None:
    assert role_in_other(thing) is None
    check_distribution(thing, "callbacks")


def test_what_derives_from_the_base_alone_is_used() -> None:
    check_distribution(Own(), "callbacks")


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (OnTheirs("x"), "from lightning.pytorch.callbacks import EarlyStopping"),
        (theirs.callbacks.RichProgressBar, "from lightning.pytorch.callbacks import RichProgressBar"),
        (theirs.loggers.CSVLogger, "from lightning.pytorch.loggers import CSVLogger"),
        (Module(), "from lightning.pytorch import LightningModule"),
        (theirs.profilers.SimpleProfiler(), "from lightning.pytorch.profilers import SimpleProfiler"),
    ],
)
def test_what_is_built_on_more_is_refused_with_the_import_line(thing: Any, line: str) -> None:
    with pytest.raises(ArgumentError, match=line.replace(".", r"\.")) as caught:
        check_distribution(thing, "callbacks")
    assert str(caught.value).startswith("`callbacks=")


def test_the_other_distribution_being_imported_breaks_no_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), quiet():
        ours.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    assert caplog.text == ""
