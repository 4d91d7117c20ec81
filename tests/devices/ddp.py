"""One of two processes on stand-in devices: trains with HF's Trainer and with ours; the first prints JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.devices import stand_in  # noqa: F401 # isort: skip (ahead of transformers)

import torch

from tests.devices.cases import OF_TWO
from tests.devices.runs import run
from tests.parity.record import isolated


def main(place: Path) -> None:
    results: dict[str, Any] = {}
    for package in ("transformers", "compat"):
        for name in OF_TWO:
            with isolated():
                # To find unused parameters, torch's DDP allocates memory that the stand-in has not.
                found = run(package, name, place / package / name, ddp_find_unused_parameters=False)
            results.setdefault(package, {})[name] = found
    results["backends"] = torch.distributed.get_backend_config()
    if os.environ["RANK"] == "0":
        print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
