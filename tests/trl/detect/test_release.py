"""Which package has the TRL names of a script."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from compat.trl.detect import release, usage

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = """
    class SFTTrainer:
        def __init__(self, model, args=None): ...
        def train(self): ...
    class PPOTrainer:
        def __init__(self, args=None, model=None): self.model = model
        def train(self): ...
    class DPOTrainer:
        def __init__(self, model, args=None): self.accelerator = None
        def train(self): ...
        def dpo_loss(self): ...
    class RewardConfig:
        __dataclass_fields__ = {"max_length": None}
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
    "an argument of a subclass": (
        "from trl import SFTTrainer\nclass My(SFTTrainer): pass\nMy('m', packing=True)",
        ["SFTTrainer(packing=...)"],
    ),
    "an argument that a subclass passes on": (
        "from trl import DPOTrainer\nclass My(DPOTrainer):\n"
        "  def __init__(self, t, other): super().__init__('m', None, beta=0.1, tokenizer=t)\nMy(1, other=2)",
        ["DPOTrainer(beta=...)", "DPOTrainer(tokenizer=...)"],
    ),
    "PPO in an attribute": (
        "from trl import PPOTrainer\nclass A:\n  def f(self):\n    self.t = PPOTrainer(1)\n"
        "  def g(self): self.t.step(1)",
        ["PPOTrainer.step"],
    ),
    "a method that one of two has": (
        "from trl import SFTTrainer, DPOTrainer\nt = SFTTrainer('m')\nt = DPOTrainer('m')\nt.dpo_loss()",
        [],
    ),
    "a method that neither of two has": (
        "from trl import PPOTrainer, SFTTrainer\nt = PPOTrainer(1)\nt.step()\nu = PPOTrainer(1)\n"
        "u = SFTTrainer(2)\nu.step()",
        ["PPOTrainer.step"],
    ),
    "what a constructor sets": ("from trl import DPOTrainer\nDPOTrainer('m').accelerator", []),
    "fields": ("from trl import RewardConfig\nc = RewardConfig()\nc.max_length", []),
    "a field that is gone": (
        "from trl import RewardConfig\nc = RewardConfig()\nc.warmup_ratio",
        ["RewardConfig.warmup_ratio"],
    ),
    "a name that may be missing": (
        "from trl import SFTTrainer\ntry:\n  from trl.core import LengthSampler\nexcept ImportError:\n"
        "  LengthSampler = None\nSFTTrainer('m').train()",
        [],
    ),
    "nothing is gone": ("from trl import SFTTrainer\nt = SFTTrainer('m', args=1)\nt.train()", []),
    "one that neither has": ("from trl import PPOTrainer, NeverThere\nPPOTrainer(config=1)", []),
    "a new name and an old one": ("from trl import GRPOTrainer\nfrom trl.core import LengthSampler", []),
    "nothing of TRL's": ("import transformers", []),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_missing_names(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected = DECISIONS[case]
    (tmp_path / "trl_of_tests.py").write_text(textwrap.dedent(INSTALLED))
    monkeypatch.syspath_prepend(str(tmp_path))
    used = usage.uses(source.replace("from trl", "from trl_of_tests"), package="trl_of_tests")
    assert list(map(str, release.missing_from_installed(used, "trl_of_tests"))) == expected
