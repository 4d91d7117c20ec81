"""The `compat` command within this process, which finds everything afterwards as it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from compat.cli import main
from compat.install import uninstall
from compat.trainer import Trainer
from compat.trl.detect.importer import uninstall_importer
from compat.upstream import process


def run_in_process(*words: str) -> Any:
    """Run `compat` with these words, and return its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compat", *words])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(Trainer, "announces_plan", Trainer.announces_plan)
        patch.setattr(process, "command", [])
        patch.setattr(process, "is_told", process.is_told)
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        try:
            return main(words)
        except SystemExit as ended:
            return ended.code
        finally:
            uninstall_importer()
            uninstall()
