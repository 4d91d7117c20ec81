#!/usr/bin/env bash
# torchdata 0.11.0 over datasets 5.2.0: a loader without workers that has loaded its state begins every later pass there.
#
# `StatefulDataLoader.load_state_dict` hands the state on to `datasets.IterableDataset.load_state_dict`, which keeps it
# for good. The pass that is resumed is right; the passes after it leave out what lay before the checkpoint. With a
# worker the state lives in the worker's copy, and later passes are whole.
#
# Seen with torch 2.13.0, Python 3.11, ten rows in batches of two, state taken after three batches:
#   no worker:  [6 7] [8 9], then [6 7] [8 9], then [6 7] [8 9]
#   one worker: [6 7] [8 9], then [0 1] ... [8 9]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 "numpy<2.5" torchdata==0.11.0 datasets==5.2.0

cat > passes.py <<'PY'
from datasets import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader


def numbers(rows):
    return [row["number"] for row in rows]


def loader(workers):
    stream = Dataset.from_dict({"number": list(range(10))}).to_iterable_dataset()
    return StatefulDataLoader(stream, batch_size=2, num_workers=workers, collate_fn=numbers)


def passes(workers):
    first = loader(workers)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    resumed = loader(workers)
    resumed.load_state_dict(first.state_dict())
    return [list(resumed) for _ in range(3)]


if __name__ == "__main__":
    rest, whole = [[6, 7], [8, 9]], [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    alone, helped = passes(0), passes(1)
    print("no worker ", alone)
    print("one worker", helped)
    assert alone == [rest, rest, rest]
    assert helped == [rest, whole, whole]
PY
HF_HUB_OFFLINE=1 venv/bin/python -W ignore passes.py
echo "as described"
