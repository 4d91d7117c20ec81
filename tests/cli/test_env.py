"""`compat env`, `compat --version`, and `compat` alone."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch

import compat
from compat.cli import main
from compat.upstream.report import OPTIONAL, report
from compat.upstream.required import REQUIRED


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    found = report()
    assert list(found["required"]) == list(REQUIRED)
    assert found["required"]["torch"] == version("torch")
    assert list(found["optional"]) == list(OPTIONAL)
    assert found["devices"]["kind"] == ("cuda" if torch.cuda.is_available() else "cpu")
    generation = version("transformers").partition(".")[0]
    assert found["transformers"]["served by"].startswith("V")
    assert ("PUSH_IS_AN_EVENT" in found["transformers"]["features"]) == (generation == "5")
    told = found["launcher"]
    assert (told["WORLD_SIZE"], told["ACCELERATE_MIXED_PRECISION"]) == ("1", "bf16")


def test_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert f"  torch                {version('torch')}\n" in text
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report()))


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: compat ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"compat {compat.__version__}\n"
