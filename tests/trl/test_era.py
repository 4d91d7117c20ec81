"""Which era a script is of: what it uses, and who has it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from compat.trl import era

if TYPE_CHECKING:
    from pathlib import Path

USES = {
    "names": (
        "from trl import PPOConfig, core\nfrom trl.core import LengthSampler as L",
        "PPOConfig core core.LengthSampler",
    ),
    "modules": (
        "import trl.trainer.utils\ntrl.trainer.utils.exact_div",
        "trainer trainer.utils trainer.utils.exact_div",
    ),
    "an alias": ("import trl as t\nt.PPOTrainer", "PPOTrainer"),
    "arguments": ("from trl import PPOConfig as C\nC(steps=1, **more)", "PPOConfig PPOConfig(steps=...)"),
    "members": ("import trl\nt = trl.PPOTrainer(c)\nt.step(q)\nu.step(q)", "PPOTrainer PPOTrainer.step"),
    "other libraries": ("from trlx import PPOConfig\nimport transformers.trl", ""),
    "relative": ("from .trl import PPOConfig", ""),
    "in a branch": ("def f():\n    try:\n        from trl import X\n    except ImportError: pass", "X"),
    "no python": ("def f(:", ""),
}


@pytest.mark.parametrize("case", USES)
def test_what_a_script_uses(case: str) -> None:
    source, expected = USES[case]
    assert " ".join(map(str, sorted(era.uses(source)))) == expected


def test_modules_beside_a_script_count(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("from policy import build\nimport parts.data")
    (tmp_path / "policy.py").write_text("from trl import PPOTrainer")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "data.py").write_text("import run\nfrom trl.core import LengthSampler")
    assert set(map(str, era.uses_of_files([str(tmp_path / "run.py")]))) == {
        "PPOTrainer",
        "core.LengthSampler",
    }


INSTALLED = """
    class SFTTrainer:
        def __init__(self, model, args=None): ...
        def train(self): ...
    class PPOTrainer:
        def __init__(self, args=None, model=None): self.model = model
        def train(self): ...
    class GRPOTrainer: ...
"""

DECISIONS = {
    "a name that is gone": ("from trl.core import LengthSampler", ["core.LengthSampler"]),
    "an argument that is gone": (
        "from trl import SFTTrainer\nSFTTrainer('m', packing=True)",
        ["SFTTrainer(packing=...)"],
    ),
    "a method that is gone": (
        "from trl import PPOTrainer\nt = PPOTrainer(1)\nt.model\nt.step()",
        ["PPOTrainer.step"],
    ),
    "a name that is gone, and what it has": (
        "from trl import PPOConfig, core\nPPOConfig(steps=1)\ncore.LengthSampler(1, 2)",
        ["PPOConfig", "core"],
    ),
    "nothing is gone": ("from trl import SFTTrainer\nt = SFTTrainer('m', args=1)\nt.train()", []),
    "one that neither has": ("from trl import PPOTrainer, NeverThere\nPPOTrainer(config=1)", []),
    "a new name and an old one": ("from trl import GRPOTrainer\nfrom trl.core import LengthSampler", []),
    "nothing of TRL's": ("import transformers", []),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_who_is_asked(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected = DECISIONS[case]
    (tmp_path / "trl_of_tests.py").write_text(textwrap.dedent(INSTALLED))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(era, "THEIRS", "trl_of_tests")
    wanted = era.uses(source.replace("from trl", "from trl_of_tests"))
    assert list(map(str, era.is_of_ours(wanted))) == expected


STAND_IN = """
    import sys, types
    from compat.trl import era
    era.stand_in(); era.stand_in()
    import trl, trl.core
    from trl import PPOConfig
    from trl.trainer.ppo_config import PPOConfig as same
    import compat.trl.core, compat.trl.trainer.ppo_config as ours
    assert trl.core is compat.trl.core and PPOConfig is same is ours.PPOConfig
    assert trl.__version__ == "0.7.11" and compat.trl.core.__spec__.name == "compat.trl.core"
    try:
        import trl.experimental
    except ModuleNotFoundError as error:
        print(error)
    era.stand_down()
    sys.modules["trl"] = before = types.ModuleType("trl")
    era.stand_in()
    import trl
    assert trl is compat.trl
    era.stand_down()
    assert sys.modules["trl"] is before and "trl.core" not in sys.modules
"""


def test_standing_in() -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(STAND_IN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "No module named 'trl.experimental'\n"), done.stderr
