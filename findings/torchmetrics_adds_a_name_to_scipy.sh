#!/usr/bin/env bash
# torchmetrics 1.9.0: what its import does to scipy, and what it loads.
#
# `scipy.signal.hamming` is gone since scipy 1.13 (the window is `scipy.signal.windows.hamming`). After
# `import torchmetrics` it is there again, for the whole process: a program that uses the old name runs or fails
# by the order of its imports. The same import loads `scipy.signal` and `matplotlib.pyplot` where they are installed.
# Lightning imports torchmetrics, so that `import lightning.pytorch` does all of this, too.
#
# Seen with scipy 1.17.1, matplotlib 3.11.2, torch 2.13.0, Python 3.11, on a CPU:
#   before the import: no hamming; after it: hamming, pyplot loaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv environment
environment/bin/pip install -qq torch==2.13.0 torchmetrics==1.9.0 scipy==1.17.1 matplotlib==3.11.2 numpy==2.4.6

environment/bin/python - <<'PY'
import sys
from importlib.metadata import version

import scipy.signal

before = hasattr(scipy.signal, "hamming")
import torchmetrics  # noqa: E402, F401

after = hasattr(scipy.signal, "hamming")
loaded = "matplotlib.pyplot" in sys.modules
for name in ("torchmetrics", "scipy", "matplotlib", "torch"):
    print(name, version(name))
print(f"scipy.signal.hamming before the import: {before}, after it: {after}; pyplot loaded: {loaded}")
assert (before, after, loaded) == (False, True, True)
assert scipy.signal.hamming is scipy.signal.windows.hamming
PY
