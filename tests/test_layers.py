from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

SCRIPT = Path(__file__).with_name("layers.py")

# What is expected of a line stands in the line itself, behind `#!`.
TREE = {
    "__init__.py": """
        import torch  #! `compat` must not import `torch`
        def __getattr__(name):
            from compat.trainer import Trainer
    """,
    "elsewhere.py": "#! `elsewhere` has no place in the layers",
    "errors.py": """
        from compat import Trainer  #! `errors` imports `compat`, which is not below it
    """,
    "upstream/private.py": """
        import os
        from ..errors import CompatError
        home = os.environ["HOME"]
    """,
    "arguments/training.py": """
        from lightning import Trainer  #! `arguments` must not import `lightning`
        from ..translate import plan  #! `arguments` imports `translate`, which is not below it
    """,
    "translate/plan.py": """
        import os
        from typing import TYPE_CHECKING
        from . import rules
        from compat.arguments import fields
        import torch.nn as nn  #! `translate` must not import `torch`
        if TYPE_CHECKING:
            import torch
            from compat.engine import build
        def late():
            from compat.translate.source import source
            import transformers  #! `translate` must not import `transformers`
            os.getenv("RANK")  #! `translate` touches the environment; only `cli` and `upstream` may
    """,
    "translate/source/__init__.py": """
        from compat.translate.source.text import source
    """,
    "translate/source/text.py": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from compat.translate.plan import Plan
    """,
    "callbacks/a.py": """
        from compat.callbacks.b import second  #! imports in a circle: compat.callbacks.a, compat.callbacks.b
        def first(): ...
    """,
    "callbacks/b.py": """
        def second():
            from compat.callbacks.a import first
    """,
    "checkpoint/__init__.py": """
        from compat.checkpoint.io import save
        from compat.checkpoint.layout import STATE
    """,
    "checkpoint/io.py": """
        from compat.checkpoint import STATE
        def save(): ...
    """,
    "checkpoint/layout.py": "STATE = 1",
    "engine/build.py": """
        import lightning
        from compat import errors
        from os import environ  #! `engine` touches the environment; only `cli` and `upstream` may
        from compat.checkpoint.io import save  #! `engine` imports `checkpoint`, which is not below it
        class Loop:
            def run(self):
                log.exception("no")
                errors.PlanError("lost")  #! an exception is made and not raised
                ValueError()  #! an exception is made and not raised
                raise ValueError()
    """,
}


def run(*arguments):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(root, tree):
    """Writes the tree and returns the lines that the script should print about it."""
    expected = []
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip(), encoding="utf-8")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            _, marked, finding = line.partition("#! ")
            if marked:
                expected.append(f"{path}:{number}: {finding}")
    return expected


def test_the_package_keeps_to_the_layers():
    done = run()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_each_break_of_the_layers_is_told_and_nothing_else(tmp_path):
    expected = write(tmp_path, TREE)
    done = run(tmp_path)
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert done.returncode == 1


def test_a_tree_without_breaks_passes(tmp_path):
    write(tmp_path, {"upstream/private.py": TREE["upstream/private.py"]})
    assert run(tmp_path).returncode == 0
