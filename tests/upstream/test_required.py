from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from compat.errors import CompatError, DependencyError
from compat.upstream.required import REQUIRED, require

ROOT = Path(__file__).parents[2]


def pretend(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Have distributions be of these releases, and all others have no metadata."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_table_is_what_pyproject_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = {
        each.name: bound.version
        for each in map(Requirement, declared)
        for bound in each.specifier
        if bound.operator == ">="
    }
    assert oldest == REQUIRED


def test_what_is_installed_here_is_new_enough() -> None:
    require.__wrapped__()


@pytest.mark.parametrize("version", ["2.6", "2.6.0", "2.6.0+cu124", "2.6.0a0+ecf3bae40a.nv25.01", "2.15.0"])
def test_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(monkeypatch, torch=version)
    require.__wrapped__()


def test_one_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="2.4.0", numpy="2.0.0")
    with pytest.raises(DependencyError) as caught:
        require.__wrapped__()
    assert str(caught.value) == (
        "`torch==2.4.0`: compat needs torch 2.6 or newer. Install it: pip install 'torch>=2.6'"
    )
    assert isinstance(caught.value, (CompatError, ImportError))


def test_all_that_are_too_old_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="2.5.1+cpu", accelerate="1.9.0")
    with pytest.raises(DependencyError) as caught:
        require.__wrapped__()
    assert str(caught.value) == (
        "`accelerate==1.9.0`, `torch==2.5.1+cpu`: compat needs accelerate 1.15 or newer and torch 2.6 or "
        "newer. Install them: pip install 'accelerate>=1.15' 'torch>=2.6'"
    )


def with_old_torch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the first torch on `sys.path` says that it is of 2.4.0."""
    info = folder / "torch-2.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.4.0\n")
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "code",
    [
        "from compat import Trainer",
        "from compat.trainer import Trainer",
        "from compat.trl import PPOTrainer",
        "from compat.sentence_transformers import SentenceTransformerTrainer",
    ],
)
def test_it_is_said_when_a_trainer_is_imported(tmp_path: Path, code: str) -> None:
    shown = with_old_torch(tmp_path, "-c", code)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1] == (
        "compat.errors.DependencyError: `torch==2.4.0`: compat needs torch 2.6 or newer. "
        "Install it: pip install 'torch>=2.6'"
    )


@pytest.mark.parametrize("words", [["explain", "--bf16"], ["run", "script.py"], ["fit", "--help"]])
def test_it_is_said_by_each_command(tmp_path: Path, words: list[str]) -> None:
    shown = with_old_torch(tmp_path, "-m", "compat", *words)
    assert shown.returncode == 2
    assert shown.stderr == (
        "compat: `torch==2.4.0`: compat needs torch 2.6 or newer. Install it: pip install 'torch>=2.6'\n"
    )


def test_importing_compat_asks_for_nothing(tmp_path: Path) -> None:
    code = "import sys, compat; print('importlib.metadata' in sys.modules, compat.__version__)"
    shown = with_old_torch(tmp_path, "-S", "-c", code)
    assert shown.stdout == "False 0.2.0\n"
