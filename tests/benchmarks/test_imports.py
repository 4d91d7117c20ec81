"""What `from compat import Trainer` loads beyond Hugging Face's Trainer: Lightning, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

HF = "from transformers import Trainer, TrainingArguments"
LIGHTNING = "import lightning.pytorch"
OURS = "from compat import Trainer, TrainingArguments"
MODULES = "import json, sys; print('modules', json.dumps(sorted(sys.modules)))"


def loaded_by(*lines: str) -> set[str]:
    """The modules of a new process after some lines."""
    script = "\n".join([*lines, MODULES])
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output.splitlines()[-1].removeprefix("modules ")))


def test_imports_beyond_hf() -> None:
    added = loaded_by(OURS) - loaded_by(HF, LIGHTNING)
    foreign = {name for name in added if name.partition(".")[0] != "compat"}
    packages = {name.partition(".")[0] for name in foreign}
    # Of these, HF's Trainer or Lightning has loaded other modules.
    assert packages <= {"accelerate", "lightning", "multiprocessing", "torch", "transformers"}
    assert len(foreign) <= 25, sorted(foreign)
