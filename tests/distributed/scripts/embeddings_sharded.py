"""Trains embeddings replicated, sharded, and sharded from a checkpoint on: `embeddings_sharded.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

from compat.sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from compat.upstream.features import HAS_TRAINING_SEAMS
from tests.parity.parts.embeddings import saved_berts, triplets
from tests.parity.test_sentence_transformers import bert, retrieval

FSDP = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}
IN_SHARDS = {**FSDP, "fsdp_config": {**FSDP["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}
# The best model is the worst one: it is another than the last.
KEEPING = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}
RUNS = {
    "replicated": ({}, None),
    "sharded": (FSDP, None),
    "sharded-resumed": (FSDP, "sharded/checkpoint-4"),
    "in-shards": (IN_SHARDS, None),
    "in-shards-resumed": (IN_SHARDS, "in-shards/checkpoint-4"),
}


def weights(model):
    parameters = model.named_parameters()
    return {name: part.full_tensor() if hasattr(part, "full_tensor") else part for name, part in parameters}


def train(folder, name):
    more, resumed = RUNS[name]
    torch.manual_seed(3)
    model = bert(folder / "berts")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = SentenceTransformerTrainingArguments(
        str(folder / name),
        use_cpu=True,
        max_steps=6,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **KEEPING,
        **more,
    )
    trainer = SentenceTransformerTrainer(
        model,
        args,
        train_dataset=triplets(40),
        eval_dataset=triplets(8, 7),
        loss=losses.MultipleNegativesRankingLoss(model),
        # That of older releases moves the model, which torch refuses of shards.
        evaluator=retrieval() if HAS_TRAINING_SEAMS else None,
    )
    trainer.train(resume_from_checkpoint=resumed and str(folder / resumed))
    trainer.save_model(str(folder / name / "saved"))
    live = weights(trainer.model)
    dist.barrier()
    saved = weights(SentenceTransformer(str(folder / name / "saved"), device="cpu"))
    names = ("loss", "grad_norm", "eval_loss", "eval_ir_cosine_mrr@5")
    found = {
        "log": [entry[key] for entry in trainer.state.log_history for key in names if key in entry],
        "kind": type(trainer.model).__name__,
        "best": Path(trainer.state.best_model_checkpoint).name,
        "saved_is_live": live.keys() == saved.keys()
        and all(torch.equal(live[key], saved[key]) for key in live),
    }
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    if os.environ["RANK"] == "0":
        saved_berts(place / "berts")
        (place / "berts" / "ready").touch()
    while not (place / "berts" / "ready").exists():
        time.sleep(0.05)
    for name in RUNS:
        train(place, name)
        dist.barrier()
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)
