"""The uses of TRL in the source of a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compat.trl.detect import usage

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
    assert " ".join(map(str, sorted(usage.uses(source)))) == expected


@pytest.mark.parametrize("case", USES)
def test_what_a_script_uses(case: str) -> None:
    source, expected = USES[case]
    assert " ".join(map(str, sorted(usage.uses(source)))) == expected


def test_modules_beside_a_script_count(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("from policy import build\nimport parts.data")
    (tmp_path / "policy.py").write_text("from trl import PPOTrainer")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "data.py").write_text("import run\nfrom trl.core import LengthSampler")
    assert set(map(str, usage.uses_of_files([str(tmp_path / "run.py")]))) == {
        "PPOTrainer",
        "core.LengthSampler",
    }
