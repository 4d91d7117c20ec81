"""Every guide, followed word for word: its files written, its commands run, its code executed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.commands import run_in_process

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PREPARES = "python examples/sentences.py"

pytestmark = [
    pytest.mark.slow,
    # What Lightning, torch and datasets warn of is not the reader's doing.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    spec = importlib.util.spec_from_file_location("sentences", ROOT / "examples" / "sentences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder)
    return folder


def run(command: str, prepared: Path) -> None:
    if command == PREPARES:
        shutil.copytree(prepared, ".", dirs_exist_ok=True)
        return
    program, *words = shlex.split(command)
    assert program == "compat", f"no test runs `{command}`"
    assert not run_in_process(*words), command


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_guide(guide: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    blocks = BLOCK.findall(guide.read_text(encoding="utf-8"))
    for language, title, text in blocks:
        if title:
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, guide.name, "exec"), names)  # noqa: S102 (what a reader would do)
        elif language == "sh":
            for command in text.replace("\\\n", "").splitlines():
                run(command, prepared)


def test_no_block_is_passed_over() -> None:
    languages = {language for guide in GUIDES for language, _, _ in BLOCK.findall(guide.read_text())}
    fences = sum(guide.read_text().count("```") for guide in GUIDES)
    assert languages <= {"python", "sh", "yaml", "text"}
    assert fences == 2 * sum(len(BLOCK.findall(guide.read_text())) for guide in GUIDES)
