"""`import trl` with the importer of `compat.trl`."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCRIPT = """
    import sys, types
    from compat.trl.detect.importer import install_importer, uninstall_importer
    install_importer(); install_importer()
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
    uninstall_importer()
    sys.modules["trl"] = before = types.ModuleType("trl")
    install_importer()
    import trl
    assert trl is compat.trl
    uninstall_importer()
    assert sys.modules["trl"] is before and "trl.core" not in sys.modules
"""


def test_installed_and_uninstalled() -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "No module named 'trl.experimental'\n"), done.stderr
