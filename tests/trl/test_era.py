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
    "in a branch": ("def f():\n    if big:\n        from trl import X", "X"),
    "a subclass": (
        "from trl import A\nclass B(Mixin, A): pass\nclass C(B): pass\nc = C(x=1)\nc.step()",
        "A A.step A(x=...)",
    ),
    "a subclass with a constructor": (
        "import trl\nclass B(trl.A):\n  def __init__(self, x): super().__init__(1, y=x)\nB(x=1)",
        "A A.__init__ A(y=...)",
    ),
    "a subclass of one with a constructor": (
        "from trl import A\nclass B(A):\n  def __init__(self, x): super(B, self).__init__(y=x)\n"
        "class C(B):\n  def __init__(self): super().__init__(x=1)\nC()\nclass D(B): pass\nD(x=1)",
        "A A.__init__ A(y=...)",
    ),
    "a subclass with members": (
        "from trl import A\n@dataclass\nclass B(A):\n  x: int = 1\n  def f(self): self.y = self.g(self.f())"
        "\n  def h(self): super().h()\nb = B(x=1, z=2)\nb.f() + b.h() + b.x + b.y + b.k()\nself.l()",
        "A A.g A.h A.k A(z=...)",
    ),
    "a subclass with a mixin": (
        "from trl import A\nif x:\n  class M:\n    def f(self): self.g()\n"
        "class B(M, A):\n  def h(self): self.f() + self.k()\nB(x=1)",
        "A A.k A(x=...)",
    ),
    "behind two stars": (
        "from trl import A\nk = dict(a=1, **{'b': 2})\nself.k = {'c': 1, 2: 3, **k}\n"
        "A(**k)\nA(**self.k)\nA(**dict(d=1), **f(e=1))",
        "A A(a=...) A(b=...) A(c=...) A(d=...)",
    ),
    "in an attribute": (
        "from trl import A\nself.t = A()\nself.t.f()\nt.g()\ns.t.g()\nu: A = self.t\nu.h()\nA().i()",
        "A A.f A.h A.i",
    ),
    "settings of PPO": (
        "import trl\ntrl.PPOTrainer(trl.PPOConfig(), m)",
        "PPOConfig PPOTrainer PPOTrainer(config=...)",
    ),
    "settings of PPO by name": (
        "from trl import PPOTrainer as T, PPOConfig\nc = PPOConfig()\nT(c, m, r, t)",
        "PPOConfig PPOTrainer PPOTrainer(config=...)",
    ),
    "settings of today's PPO": (
        "from trl import PPOTrainer, PPOConfig\nPPOTrainer(PPOConfig(), t, p, r, m, d, v)\nPPOTrainer()",
        "PPOConfig PPOTrainer",
    ),
    "no python": ("def f(:", ""),
}


GUARDS = {
    "an import that may fail": "try:\n    {}\nexcept ImportError:\n    B = None",
    "one of several errors": "try:\n    {}\nexcept (builtins.KeyError, ModuleNotFoundError) as e: pass",
    "any exception": "try:\n    pass\nexcept Exception:\n    {}",
    "any error": "try:\n    {}\nexcept: pass",
    "a release": "if Version(trl.__version__) > Version('0.8'): pass\nelse:\n    {}",
    "its version": "if version('trl') < '0.8':\n    if a:\n        {}",
    "a library": "if is_peft_available():\n    {}",
    "types": "if typing.TYPE_CHECKING:\n    {}",
}

NO_GUARDS = {
    "another error": "try:\n    {}\nexcept KeyError: print(Exception)",
    "other words": "try:\n    {}\nexcept ImportError as e:\n    raise SystemExit('pip install trl') from e",
    "no handler": "try:\n    {}\nfinally: pass",
    "a device": "if torch.cuda.is_available():\n    {}",
    "a conversion": "if conversion:\n    {}",
    "a guard elsewhere": "try:\n    from trl import B\nexcept ImportError: pass\n{}",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(text, "") for text in GUARDS.values()] + [(text, "B B(x=...)") for text in NO_GUARDS.values()],
    ids=[*GUARDS, *NO_GUARDS],
)
def test_what_a_script_can_do_without(text: str, expected: str) -> None:
    source = text.format("from trl import B") + "\nB(x=1)"
    assert " ".join(map(str, sorted(era.uses(source)))) == expected


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
