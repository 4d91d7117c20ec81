"""One process of a job in which TRL's trainers generate while they train; writes what came of each run."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import trl

import compat
from tests.distributed.sharded import zero
from tests.parity.bench import ALWAYS
from tests.parity.parts.preferences import Models, lengths, rows, tokenizer
from tests.parity.record import isolated
from tests.parity.test_trl import find, scored_by_its_own_tokens

IS_STABLE = int(trl.__version__.split(".")[0]) >= 1

COMMON = {**ALWAYS, "bf16": False, "per_device_train_batch_size": 2}
GROUPS = {
    **{"num_generations": 2, "max_completion_length": 5, "num_iterations": 2, "max_steps": 4},
    **{"gradient_accumulation_steps": 2, "beta": 0.1},
    **{"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
}
BLOCKS = {"transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}
SHARDED = {"fsdp": "full_shard", "fsdp_config": {"version": 2, **BLOCKS}}


def groups(models, args):
    return "GRPO", {"model": models(), "reward_funcs": lengths}, {**GROUPS, **args}


def online(models, args):
    parts = {"model": models(), "ref_model": models(seed=6), "reward_funcs": lengths}
    if not IS_STABLE:
        parts = scored_by_its_own_tokens(models)
    return "OnlineDPO", parts, {"max_new_tokens": 4, "max_steps": 3, **args}


SETUPS = {
    "groups": (groups, {}),
    "groups-sharded": (groups, SHARDED),
    "online": (online, {}),
    "online-sharded": (online, SHARDED),
    "groups-zero": (groups, zero(2)),
    "online-zero": (online, zero(3)),
}


def whole(model, trainer):
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped) if model is trainer.model else {}
    found = model.state_dict().items()
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found}


def main(library: str, folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rebase = compat.on_lightning if library == "compat" else lambda kind: kind
    rank = os.environ["RANK"]
    for name in names:
        make, args = SETUPS[name]
        with isolated(forgiving=library == "transformers"):
            kind, parts, args = make(Models(folder.parent / "models"), args)
            trainer = rebase(find(f"{kind}Trainer"))(
                args=rebase(find(f"{kind}Config"))(str(folder / name), **{**COMMON, **args}),
                train_dataset=rows("prompt"),
                processing_class=tokenizer("left"),
                **parts,
            )
            trainer.train()
            found = {
                "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
                "weights": whole(trainer.model, trainer),
                "reference": whole(trainer.ref_model, trainer),
                "kind": trainer.accelerator.distributed_type.value,
            }
        torch.save(found, folder / f"{name}-{rank}.pt")
        dist.barrier()
    # torch's gloo threads let go of the last tensors only while Python runs: an interpreter that ends at once
    # may wait for them, and they for it.
    time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
