"""Starts a second process and waits, and takes its time to save when interrupted: `waits.py FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from compat.upstream.launch import launch

# A shell starts what it starts in the background deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
launch(2)
(Path(sys.argv[1]) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
try:
    time.sleep(120)
except KeyboardInterrupt:
    if os.environ["RANK"] == "0":
        time.sleep(3)
        (Path(sys.argv[1]) / "saved").touch()
    raise
