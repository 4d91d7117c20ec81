"""One process of a job: runs parity set-ups under one library and writes a record of each."""

from __future__ import annotations

import os
import pickle
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.module import compared
from tests.distributed.setups import BY_NAME
from tests.parity.bench import Bench, load_api
from tests.parity.record import isolated, recorded


def main(library: str, folder: str, names: list[str]) -> None:
    """Run the set-ups one after the other.

    Args:
        library: `transformers` or `compat`.
        folder: where runs and records go; all processes share the runs, each has its own records.
        names: the set-ups.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    # As a script's `seed_everything` leaves it; seeds are HF's.
    os.environ["PL_GLOBAL_SEED"] = "3"
    for name in names:
        place = Path(folder) / name.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        with isolated(forgiving=library == "transformers"):
            bench = Bench(load_api(library), BY_NAME[name], place)
            result = bench.run()
            # The first process may still be writing the files that all record.
            dist.barrier()
            found = recorded(bench, result)
        (Path(folder) / f"{place.name}-{rank}.pickle").write_bytes(pickle.dumps(found))
        dist.barrier()
    if library == "compat":
        found = compared(Path(folder))
        (Path(folder) / f"module-{rank}.pickle").write_bytes(pickle.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
