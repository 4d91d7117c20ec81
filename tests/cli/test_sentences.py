"""What `compat fit` says of a command line that its parser cannot read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from compat.cli import main
from compat.cli.lightning.sentences import sentence
from compat.upstream import process

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*intended to run from within Python",
    # Lightning's command line, under the newest jsonargparse.
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)


class Sized(pl.LightningModule):
    """A module with an argument that has a default, and one that is a secret."""

    def __init__(self, width: int = 4, api_key: int = 3) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, width)


class Needy(Sized):
    """A module with an argument that has none, and those of the class that it derives from."""

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class OwnRows(pl.LightningDataModule):
    """A data module with an argument."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a few files of settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compat"])
    monkeypatch.setattr(process, "command", [])
    Path("unknown.yaml").write_text("trainer:\n  max_epoch: 3\n")
    Path("broken.yaml").write_text("model: [a\n")


HERE = __name__
OWN = f"--model={HERE}.Sized"
HINT = "(`compat fit --help` shows the arguments.)"

OF_PARSER = {
    f"{OWN} --model.widht 3": "`model.widht`: Sized has no such argument. Did you mean `--model.width`?",
    f"--model={HERE}.Needy --model.depth 1 --model.widht 3": (
        "`model.widht`: Needy has no such argument. Did you mean `--model.width`?"
    ),
    f"{OWN} --model.zzz 3": "`model.zzz`: Sized has no such argument. It takes api_key, width.",
    f"--model={HERE}.Sizde": (
        f"`model={HERE}.Sizde`: the module `{HERE}` has no `Sizde`. Did you mean `{HERE}.Sized`?"
    ),
    "--model=Needyy": "`model=Needyy`: no class of that name is known. Did you mean `Needy`?",
    "--model=/zzz": (
        "`model=/zzz`: no class of that name is known. Give a class as in `package.module.Class`."
    ),
    "--model=nomodule.Sized": (
        "`model=nomodule.Sized`: there is no module `nomodule`. Python looks for modules in the folders of "
        "PYTHONPATH."
    ),
    f"--model={HERE}.torch": f"`model={HERE}.torch`: it has to be LightningModule or None.",
    f"{OWN} --model.width three": "`model.width=three`: it has to be int.",
    f"{OWN} --model.api_key abc": "`model.api_key`: it has to be int.",
    f"--model={HERE}.Needy": "`model`: Needy needs `depth`. Give `--model.depth VALUE`.",
    f"{OWN} --data={HERE}.OwnRows --data.rosw 3": (
        "`data.rosw`: OwnRows has no such argument. Did you mean `--data.rows`?"
    ),
    "--data.trian x.csv": "`data.trian`: DataFiles has no such argument. Did you mean `--data.train`?",
    "--data.max_length abc": "`data.max_length=abc`: it has to be int or None.",
    "--trainer.max_epoks 3": (
        "`--trainer.max_epoks`: `compat fit` has no such argument. Did you mean `--trainer.max_epochs`?"
    ),
    # Cut short, it would be read otherwise than the whole.
    "--learning_rat 3": (
        "`--learning_rat`: `compat fit` has no such argument. Did you mean `--learning_rate`?"
    ),
    "--zzz 3 --qqq 4": (
        "`--zzz`: `compat fit` has no such argument.\n`--qqq`: `compat fit` has no such argument."
    ),
    "--hub_tokn=abc": "`--hub_tokn`: `compat fit` has no such argument. Did you mean `--hub_token`?",
    "stray": "`stray`: `compat fit` has no such argument.",
    "--trainer.max_epochs three": "`trainer.max_epochs=three`: it has to be int or None.",
    "--trainer.max_epochs": "`--trainer.max_epochs`: it has no value. Give `--trainer.max_epochs VALUE`.",
    "--trainer.callbacks+=EarlyStoping": (
        "`trainer.callbacks=EarlyStoping`: no class of that name is known. Did you mean `EarlyStopping`?"
    ),
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr a": (
        "`trainer.callbacks.monitr`: EarlyStopping has no such argument. "
        "Did you mean `--trainer.callbacks.monitor`?"
    ),
    "--trainer.callbacks+=EarlyStopping": (
        "`trainer.callbacks`: EarlyStopping needs `monitor`. Give `--trainer.callbacks.monitor VALUE`."
    ),
    "--callbaks EarlyStopping": (
        "`--callbaks`: `compat fit` has no such argument. Did you mean `--trainer.callbacks`?"
    ),
    "--optimizer=AdmaW": "`optimizer=AdmaW`: no class of that name is known. Did you mean `AdamW`?",
    "--config unknown.yaml": (
        "`trainer.max_epoch`: `compat fit` has no such argument. Did you mean `--trainer.max_epochs`?"
    ),
    "--config": "`--config`: it has no value. Give `--config VALUE`.",
    "--trainer nowhere.yaml": "`trainer=nowhere.yaml`: there is no such file that can be read.",
    "--learning_rate abc": "`learning_rate=abc`: it has to be float.",
    "--max_steps": "`--max_steps`: it has no value. Give `--max_steps VALUE`.",
    "--save_safetensors 3": ("`save_safetensors=3`: it has to be one of yes/no, true/false, t/f, y/n, 1/0."),
    "--optim adamw_torhc": "`optim=adamw_torhc`: there is no such choice. Did you mean `adamw_torch`?",
}


def said(capsys: Any, *words: str) -> str:
    """What a command line that is wrong is answered with."""
    try:
        status = main(["fit", *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return str(shown.err)


@pytest.mark.parametrize("line", OF_PARSER)
def test_one_sentence_and_the_way_to_the_help(capsys: Any, line: str) -> None:
    assert said(capsys, *line.split()) == f"compat fit: {OF_PARSER[line]}\n{HINT}\n"


def test_files_of_settings_that_cannot_be_read(capsys: Any, tmp_path: Path) -> None:
    missing = said(capsys, "--config", "nowhere.yaml")
    assert missing == (
        f"compat fit: `config={tmp_path / 'nowhere.yaml'}`: there is no such file that can be read.\n{HINT}\n"
    )
    broken = said(capsys, "--config", "broken.yaml")
    assert broken.startswith("compat fit: `config`: the file is no YAML: while parsing a flow sequence")
    assert broken.count("\n") == 2


OF_LIBRARIES = {
    "--trainer.strategy=dpd": (
        "compat fit: `trainer`: Lightning refuses it, in its own words: You selected an invalid strategy"
    ),
    "--use_cpu --trainer.devices=x": "`trainer`: Lightning refuses it, in its own words: `devices` selected",
    "--report_to=wndb": (
        "compat fit: `report_to`: transformers refuses it, in its own words: wndb is not supported"
    ),
    "--ckpt_path=nowhere.ckpt --use_cpu": (
        "compat fit: `ckpt_path=nowhere.ckpt`: there is no such file. Give a .ckpt.\n"
    ),
}


@pytest.mark.parametrize("line", OF_LIBRARIES)
def test_libraries_that_refuse_what_they_are_given(capsys: Any, line: str) -> None:
    assert OF_LIBRARIES[line] in said(capsys, OWN, *line.split())


def test_a_message_that_is_not_known_is_shown_as_it_is() -> None:
    assert sentence("something\nelse", ["--model"], "compat fit") == "something\nelse"
