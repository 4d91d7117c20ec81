"""One process of a job whose hosts have disks of their own: `hosts.py SETUP`, in the folder that is its disk.

What the variables ask for: LIMIT is the last update step, RESUME what is resumed from, EACH whether the
checkpoint is saved on each host; KILLED is the process that dies when its disk is about to give a checkpoint of
step AT its name. ON_SAVE has a callback end the run when it is told of the checkpoint; CKPT is the file to which a
callback saves the run after step 4, as Lightning does. What was learnt is written to `learnt-RANK.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from transformers.utils import logging as hf_logging

import compat
from compat.trainer.components import checkpoint_writer
from tests.distributed.sharded import compile_nothing, gpt2, rows, whole, zero

FSDP = {"fsdp": "full_shard auto_wrap"}
SHARDS = {"min_num_params": 2000, "state_dict_type": "SHARDED_STATE_DICT"}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    # The worst one: it is another than the last.
    "greater_is_better": True,
}
SETUPS = {
    "ddp": {},
    "async": {"lightning": {"save_async": True}},
    "best": BEST,
    "best-alone": {**BEST, "save_total_limit": 1},
    "limited": {"save_total_limit": 2},
    "fsdp": FSDP,
    "fsdp-shards": {**FSDP, "fsdp_config": SHARDS},
    "zero-2": zero(2),
    "zero-3": zero(3),
}


class Noisy(torch.utils.data.Dataset):
    """Rows that are another each time they are drawn, by the random numbers of the process."""

    def __init__(self):
        self.rows = rows(48)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]["input_ids"].clone()
        row[int(torch.randint(0, 16, ()))] = 2
        return {"input_ids": row, "labels": row}


def die_at(step):
    honest = checkpoint_writer.place

    def place(checkpoint):
        if checkpoint.endswith(f"-{step}"):
            # The other has given its part the name by then.
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        honest(checkpoint)

    checkpoint_writer.place = place


def main(name):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    compile_nothing()
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    hf_logging.get_logger("transformers.trainer").addHandler(handler)
    args = compat.TrainingArguments(
        output_dir="out",
        use_cpu=True,
        max_steps=8,
        save_steps=2,
        save_on_each_node="EACH" in os.environ,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        seed=3,
        disable_tqdm=True,
        report_to="none",
        log_level_replica="info",
        **{"save_strategy": "steps", **SETUPS[name]},
    )
    if os.environ.get("KILLED") == os.environ["RANK"]:
        die_at(os.environ["AT"])
    torch.manual_seed(0)
    trainer = compat.Trainer(model=gpt2(), args=args, train_dataset=Noisy(), eval_dataset=rows(8))

    class Stop(compat.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if "CKPT" in os.environ and state.global_step == 4:
                trainer.lightning.save_checkpoint(os.environ["CKPT"])
            if "ON_SAVE" not in os.environ:
                self.on_save(args, state, control)

        def on_save(self, args, state, control, **_):
            control.should_training_stop |= state.global_step == int(os.environ.get("LIMIT", "8"))

    trainer.add_callback(Stop())
    asked = os.environ.get("RESUME")
    found = {"error": None}
    try:
        trainer.train(resume_from_checkpoint={"": None, "True": True}.get(asked or "", asked))
    except compat.errors.CompatError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    else:
        found["weights"] = [whole(p).flatten().tolist() for p in trainer.model.parameters()]
        found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found["best"] = trainer.state.best_model_checkpoint
    found["heard"] = heard
    Path(f"learnt-{os.environ['RANK']}.json").write_text(json.dumps(found))
    # torch's gloo threads let go of the last tensors only while Python runs.
    time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
