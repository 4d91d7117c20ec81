"""Trains embeddings in two processes that gather their negatives, under HF and under compat: `embeddings.py FOLDER`."""

from __future__ import annotations

import os
import pickle
import sys
import time
from functools import partial
from pathlib import Path

import sentence_transformers
import torch
import torch.distributed as dist
from sentence_transformers.sentence_transformer import losses

from compat import sentence_transformers as ours
from tests.distributed.scripts.forms import run
from tests.parity.parts.embeddings import saved_berts, triplets
from tests.parity.plain import plain
from tests.parity.record import isolated, record_trainer
from tests.parity.test_sentence_transformers import EVALUATES, SAVES, Setup, retrieval

SETUPS = (
    Setup(
        "negatives",
        train=partial(triplets, 18),
        loss=partial(losses.MultipleNegativesRankingLoss, gather_across_devices=True),
        eval=partial(triplets, 8, 7),
        evaluator=retrieval,
        args={**EVALUATES, **SAVES},
    ),
    Setup(
        "cached negatives",
        train=partial(triplets, 26),
        loss=partial(
            losses.CachedMultipleNegativesRankingLoss, mini_batch_size=2, gather_across_devices=True
        ),
        args={"gradient_accumulation_steps": 2},
    ),
)


def write(folder):
    torch.set_num_threads(1)
    found = {}
    for setup in SETUPS:
        for library in (sentence_transformers, ours):
            home = folder / f"{setup.name}-{library.__name__}"
            with isolated():
                trainers, result = setup.run(library, folder / "berts", home)
                dist.barrier()
                record = {
                    "result": plain(result, home),
                    "trainers": [record_trainer(trainer, [], home) for trainer in trainers],
                    "wrapped": [type(trainer.model_wrapped).__name__ for trainer in trainers],
                }
            found.setdefault(setup.name, []).append(record)
    (folder / f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    saved_berts(place / "berts")
    sys.exit(any(run(partial(write, place), 2)))
